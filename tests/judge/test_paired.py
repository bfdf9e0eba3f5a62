import numpy as np
import pytest
from scipy.stats import binom

from ontarget.adapt.metric import metric_value
from ontarget.judge.evidence import calibration, judge, shown
from ontarget.judge.paired import Comparison, compare, holm, interval, mcnemar
from ontarget.judge.zero_shot import zero_shot
from ontarget.values import Examples, TargetData


def scores_for(predicted: np.ndarray, classes: int = 3) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[predicted]


def test_mcnemar_by_its_binomial() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == pytest.approx(1.0)
    assert mcnemar(1, 9) == pytest.approx(2 * binom.cdf(1, 10, 0.5))
    assert mcnemar(9, 1) == mcnemar(1, 9)


def test_holm_by_hand() -> None:
    """p = .01, .04, .03 over three tests: .03, then max(.03, .06) = .06, then max(.06, .04) = .06."""
    rows = [Comparison(str(p), 0, 0, 0, 0, 0, 0, p, "mcnemar") for p in (0.01, 0.04, 0.03)]
    assert [row.p_value for row in holm(rows)] == pytest.approx([0.03, 0.06, 0.06])


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "macro_f1"])
def test_interval_is_near_the_normal_one_and_holds_the_value(metric: str) -> None:
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 3, 600)
    predicted = np.where(generator.random(600) < 0.8, targets, (targets + 1) % 3)
    scores = scores_for(predicted)
    low, high = interval(metric, scores, targets)
    value = metric_value(metric, scores, targets)
    assert low < value < high
    half = 1.96 * np.sqrt(0.8 * 0.2 / 600)
    assert (high - low) / 2 == pytest.approx(half, rel=0.2)


@pytest.mark.parametrize("metric", ["balanced_accuracy", "macro_f1"])
def test_fast_statistics_equal_the_metric(metric: str) -> None:
    """The resampled value over all rows in order is the metric itself."""
    from ontarget.judge.paired import _fast_statistic

    generator = np.random.default_rng(1)
    targets, predicted = generator.integers(0, 4, 50), generator.integers(0, 4, 50)
    fast = _fast_statistic(metric, targets)
    assert fast is not None
    scores = scores_for(predicted, 4)
    rows = generator.integers(0, 50, 50)
    assert fast(scores)(np.arange(50)) == pytest.approx(metric_value(metric, scores, targets))
    assert fast(scores)(rows) == pytest.approx(metric_value(metric, scores[rows], targets[rows]))


def test_equal_models_do_not_differ_and_better_ones_do() -> None:
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 3, 300)
    good = scores_for(np.where(generator.random(300) < 0.9, targets, (targets + 1) % 3))
    poor = scores_for(np.where(generator.random(300) < 0.6, targets, (targets + 1) % 3))
    same = compare("same", "accuracy", good, good, targets)
    assert (same.difference, same.p_value, same.difference_low, same.difference_high) == (0, 1, 0, 0)
    better = compare("poor", "accuracy", good, poor, targets)
    assert better.difference_low > 0.1
    assert better.p_value < 1e-6


def test_regression_is_compared_by_bootstrap() -> None:
    generator = np.random.default_rng(0)
    targets = generator.normal(size=200)
    near, far = (targets + spread * generator.normal(size=200) for spread in (0.1, 1.0))
    found = compare("far", "r2", near[:, None], far[:, None], targets)
    assert found.test == "bootstrap"
    assert found.p_value < 0.01
    assert found.difference_low > 0


def test_calibration_by_hand() -> None:
    """Two rows at confidence 0.9, one right: |0.9 - 0.5| = 0.4."""
    logits = np.log(np.array([[0.9, 0.1], [0.9, 0.1]]))
    found = calibration(logits, np.array([0, 1]))
    assert found["ece"] == pytest.approx(0.4)
    assert found["bins"][0]["rows"] == 2


def test_zero_shot_takes_the_nearest_name() -> None:
    names = np.eye(3)
    texts = np.array([[0.9, 0.1, 0.0], [0.0, 0.2, 5.0]])
    assert zero_shot(texts, names).argmax(axis=1).tolist() == [0, 2]


def test_evidence_lists_errors_worst_first() -> None:
    texts = [f"text {row}" for row in range(6)]
    test = Examples(texts, np.array([0, 1, 0, 1, 0, 1]), np.arange(10, 16))
    data = TargetData("text", "classification", "accuracy", ("no", "yes"), test, test, test, test.take([]), "f")
    scores = np.array([[3, 0], [0, 3], [0, 2], [0, 3], [0, 5], [3, 0]], dtype=np.float32)
    found = judge(data, scores, {"constant": np.tile([[1.0, 0.0]], (6, 1))})
    assert found["confusion"] == [[1, 2], [1, 2]]
    assert [row["row"] for row in found["worst"]] == [14, 15, 12]
    assert found["worst"][0]["input"] == "text 4"
    assert found["test"]["value"] == pytest.approx(0.5)


def test_inputs_are_shown_short() -> None:
    assert shown("x" * 1000, "text").endswith(" …")
    assert shown(("a", "b"), "text") == "a | b"
    assert shown(np.zeros((50, 40), dtype=np.uint8), "image").startswith("data:image/png;base64,")
    assert shown(np.arange(20.0), "features").endswith("…")
