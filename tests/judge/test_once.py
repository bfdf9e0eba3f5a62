import json
from pathlib import Path

import numpy as np
import pytest

from ontarget.errors import RunError
from ontarget.judge.once import model_digest, score_once, touches


class Scorer:
    """Counts its calls; its scores say which call they are from."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.calls += 1
        return {"bundle": np.full((3, 2), self.calls), "zero-shot": np.zeros((3, 2))}


def test_a_second_look_gets_the_stored_scores(tmp_path: Path) -> None:
    scorer = Scorer()
    first = score_once(tmp_path, "m", scorer)
    second = score_once(tmp_path, "m", scorer)
    assert scorer.calls == 1
    assert list(first) == list(second) == ["bundle", "zero-shot"]
    assert (second["bundle"] == 1).all()
    (touch,) = touches(tmp_path)
    assert (touch["model"], touch["rows"], touch["forced"]) == ("m", 3, False)


def test_another_model_is_refused_unless_forced(tmp_path: Path) -> None:
    scorer = Scorer()
    score_once(tmp_path, "m", scorer)
    with pytest.raises(RunError, match="another model"):
        score_once(tmp_path, "n", scorer)
    assert scorer.calls == 1
    assert (score_once(tmp_path, "n", scorer, forced=True)["bundle"] == 2).all()
    assert [touch["forced"] for touch in touches(tmp_path)] == [False, True]
    assert (score_once(tmp_path, "n", scorer)["bundle"] == 2).all()
    assert scorer.calls == 2


def test_killed_before_the_record_is_scored_again(tmp_path: Path) -> None:
    score_once(tmp_path, "m", Scorer())
    (tmp_path / "test-split.json").unlink()
    scorer = Scorer()
    score_once(tmp_path, "m", scorer)
    assert scorer.calls == 1
    assert len(touches(tmp_path)) == 1


def test_lost_or_changed_scores_are_counted_as_another_touch(tmp_path: Path) -> None:
    scorer = Scorer()
    score_once(tmp_path, "m", scorer)
    (tmp_path / "test-scores.npz").write_bytes(b"something else")
    assert (score_once(tmp_path, "m", scorer)["bundle"] == 2).all()
    assert len(touches(tmp_path)) == 2


def test_a_damaged_record_is_no_empty_one(tmp_path: Path) -> None:
    (tmp_path / "test-split.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        score_once(tmp_path, "m", Scorer())
    (tmp_path / "test-split.json").write_text(json.dumps([]))
    with pytest.raises(RunError, match="damaged"):
        touches(tmp_path)


def test_the_model_is_its_weights_and_preprocessing() -> None:
    files = {"model.onnx": "1", "preprocess.json": "2", "README.md": "3", "run/bundle.py": "4", "selftest.json": "5"}
    digest = model_digest(files)
    assert digest == model_digest({**files, "README.md": "x", "run/bundle.py": "x", "selftest.json": "x"})
    assert digest != model_digest({**files, "model.onnx": "x"})
    assert digest != model_digest({**files, "preprocess.json": "x"})
