import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from ontarget.judge.evidence import calibration, confusion, judge, per_class, residuals
from ontarget.judge.show_input import shown
from ontarget.plan.run_folder import to_json
from ontarget.values import Examples, TargetData


def text_data(targets: list[int]) -> TargetData:
    count = len(targets)
    test = Examples([f"text {row}" for row in range(count)], np.array(targets), np.arange(10, 10 + count))
    return TargetData("text", "classification", "accuracy", ("no", "yes"), test, test, test, test.take([]), "f")


def test_errors_are_listed_worst_first() -> None:
    scores = np.array([[3, 0], [0, 3], [0, 2], [0, 3], [0, 5], [3, 0]], dtype=np.float32)
    found = judge(text_data([0, 1, 0, 1, 0, 1]), scores, {"constant": np.tile([[1.0, 0.0]], (6, 1))})
    assert found["confusion"] == [[1, 2], [1, 2]]
    assert [row["row"] for row in found["worst"]] == [14, 15, 12]
    worst = found["worst"][0]
    assert (worst["input"], worst["target"], worst["predicted"]) == ("text 4", "no", "yes")
    assert worst["score"] == pytest.approx(1 / (1 + np.exp(-5)))
    assert worst["loss"] == pytest.approx(np.log(1 + np.exp(5)))
    assert found["test"]["value"] == pytest.approx(0.5)
    assert json.loads(to_json(found)) == json.loads(json.dumps(found))


def test_the_model_itself_is_no_baseline_to_beat() -> None:
    """Holm's correction counts two comparisons, not three; the model's own row stays in the list."""
    targets = [0, 1] * 30
    right, other = np.eye(2)[targets], np.eye(2)[[0] * 60]
    found = judge(text_data(targets), right, {"a": other, "b": other, "own": right}, same=["own"])
    rows = {row["name"]: row for row in found["baselines"]}
    assert rows["a"]["p_value"] == pytest.approx(2 * 2 * 0.5**30)
    assert (rows["own"]["same_model"], rows["a"]["same_model"]) == (True, False)


def test_stages_with_scores_get_an_interval() -> None:
    targets = [0, 1] * 20
    before, after = np.eye(2)[[0] * 40], np.eye(2)[targets]
    stages = [
        {"stage": "select", "what": "x", "before": before, "after": after, "kept": True, "reason": ""},
        {"stage": "compress", "what": "y", "before_value": 1.0, "after_value": 0.9, "kept": True, "reason": ""},
    ]
    first, second = judge(text_data(targets), after, {}, stages=stages)["stages"]
    assert (first["before"], first["after"], first["difference"]) == (0.5, 1.0, 0.5)
    assert 0.3 < first["low"] < 0.5 < first["high"] < 0.7
    assert (second["difference"], second["low"]) == (pytest.approx(-0.1), None)


def test_calibration_by_hand() -> None:
    """Two rows at confidence 0.9, one right: |0.9 - 0.5| = 0.4; a third, in another bin, adds |0.6 - 1| / 3."""
    logits = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]]))
    assert calibration(logits[:2], np.array([0, 1]))["ece"] == pytest.approx(0.4)
    found = calibration(logits, np.array([0, 1, 0]))
    assert found["ece"] == pytest.approx(0.4 * 2 / 3 + 0.4 / 3)
    assert [row["rows"] for row in found["bins"]] == [1, 2]
    assert (found["mean_confidence"], found["accuracy"]) == (pytest.approx(0.8), pytest.approx(2 / 3))


def test_confidence_of_one_has_a_bin() -> None:
    assert calibration(np.array([[1e4, 0.0]]), np.array([0]))["bins"][0]["to"] == 1


def test_confusion_and_classes_as_scikit_learn_counts_them() -> None:
    generator = np.random.default_rng(0)
    targets, scores = generator.integers(0, 4, 200), generator.normal(size=(200, 5))  # class 4 has no row
    table = confusion(scores, targets, 5)
    said = scores.argmax(axis=1)
    assert (table == confusion_matrix(targets, said, labels=range(5))).all()
    rows = per_class(table, list("abcde"))
    expected = precision_recall_fscore_support(targets, said, labels=range(5), zero_division=0)
    for name, values in zip(("precision", "recall", "f1"), expected, strict=False):
        assert [row[name] or 0 for row in rows] == pytest.approx(values)
    assert rows[4]["recall"] is None
    assert rows[0]["rows"] == (targets == 0).sum()


def test_residuals_by_hand() -> None:
    found = residuals(np.array([1.0, 2, 3, 5]), np.array([1.0, 1, 1, 1]))
    assert (found["bias"], found["middle"]) == (1.75, 1.5)
    assert len(residuals(np.zeros(2000), np.zeros(2000))["target"]) == 500


def test_regression_evidence() -> None:
    test = Examples(np.zeros((4, 2), dtype=np.float32), np.array([1.0, 2.0, 3.0, 4.0]), np.arange(4))
    data = TargetData("features", "regression", "neg_mae", (), test, test, test, test.take([]), "f")
    found = judge(data, np.array([[1.0], [2.0], [3.5], [2.0]]), {"mean": np.full((4, 1), 2.5)})
    assert [row["row"] for row in found["worst"]] == [3, 2, 0, 1]
    assert found["test"]["value"] == pytest.approx(-0.625)
    assert found["baselines"][0]["test"] == "permutation"
    assert "confusion" not in found


def test_inputs_are_shown_short(tmp_path) -> None:  # type: ignore[no-untyped-def]
    assert shown("x" * 1000, "text").endswith(" …")
    assert len(shown("x" * 1000, "text")) < 410
    assert shown(("a", "b"), "text") == "a | b"
    assert shown("half a pair \ud83d", "text") == "half a pair ?"
    assert shown(np.arange(20.0), "features").endswith("…")
    kind, content = shown(np.zeros((500, 400), dtype=np.uint8), "image").split(",")
    assert kind == "data:image/png;base64"
    assert max(Image.open(io.BytesIO(base64.b64decode(content))).size) == 96
    assert shown(tmp_path / "gone.png", "image").startswith("(no picture")
