from typing import Any

import numpy as np
import pytest

from ontarget.plan.decision import alike, eligible, order, surprise
from ontarget.values import Array, Examples, TargetData

ROWS = 150
TARGETS = np.arange(ROWS) % 2


def data(kind: Any = "classification", metric: str = "accuracy", targets: Array = TARGETS) -> TargetData:
    rows = Examples([""] * len(targets), targets, np.arange(len(targets)))
    return TargetData("text", kind, metric, ("a", "b"), rows, rows, rows, rows, "f")


def logits(right: Array, margin: float | Array) -> Array:
    """Scores (N, 2) whose right class leads by ``margin`` where ``right``, and trails by it elsewhere."""
    lead = np.where(right, margin, -np.asarray(margin, dtype=float))
    scores = np.zeros((len(right), 2), dtype=np.float32)
    scores[np.arange(len(right)), TARGETS[: len(right)]] = lead
    return scores


def trial(number: int, metric: float, source: str = "zoo:minilm", **more: Any) -> dict[str, Any]:
    return {"number": number, "metric": metric, "source": source, "method": "linear_head", "state": "complete", **more}


def first_right(count: int) -> Array:
    right: Array = np.random.default_rng(0).permutation(ROWS) < count
    return right


def test_one_lucky_row_does_not_decide_and_twenty_do() -> None:
    """The second model is wrong where it hesitates, the first one without a warning."""
    sure = logits(first_right(120), 2.0)
    right = first_right(119)
    careful = logits(right, np.where(right, 2.0, 0.1))
    worse_right = first_right(95)
    worse = logits(worse_right, np.where(worse_right, 2.0, 0.01))
    scores = [sure, careful, worse]
    trials = [trial(0, 120 / ROWS), trial(1, 119 / ROWS), trial(2, 95 / ROWS)]
    assert surprise("accuracy", worse, TARGETS) < surprise("accuracy", sure, TARGETS)
    assert [entry["number"] for entry in order(trials, data(), scores.__getitem__)] == [1, 0, 2]


def test_regression_goes_by_the_metric_alone_and_ties_by_latency_then_number() -> None:
    values = data("regression", "r2", np.linspace(0, 1, ROWS))
    trials = [trial(0, 0.5), trial(1, 0.6, "zoo:slow"), trial(2, 0.6, "zoo:fast"), trial(3, 0.6, "zoo:fast")]
    found = order(trials, values, lambda number: np.zeros((ROWS, 1)), {"zoo:slow": 9.0, "zoo:fast": 1.0})
    assert [entry["number"] for entry in found] == [2, 3, 1, 0]


def test_the_same_scores_twice_are_told_apart_by_latency() -> None:
    scores = logits(first_right(120), 2.0)
    trials = [trial(0, 0.8, "zoo:slow"), trial(1, 0.8, "zoo:fast")]
    found = order(trials, data(), lambda number: scores, {"zoo:slow": 9.0, "zoo:fast": 1.0})
    assert [entry["number"] for entry in found] == [1, 0]


def test_the_bound_is_two_standard_errors_of_the_paired_difference() -> None:
    """best is right on n rows that the other has wrong, and nowhere the reverse: n / N <= 2 sqrt(p (1 - p) / N)."""
    best = logits(np.ones(ROWS, dtype=bool), 1.0)
    for lost in range(1, 12):
        right = np.arange(ROWS) >= lost
        share = lost / ROWS
        assert alike("accuracy", best, logits(right, 1.0), TARGETS) == (
            share <= 2 * np.sqrt(share * (1 - share) / ROWS)
        )
    assert alike("accuracy", best, best, TARGETS)


@pytest.mark.parametrize("factor", [0.1, 1.0, 30.0])
def test_surprise_does_not_depend_on_the_temperature(factor: float) -> None:
    """Right on 112 of 150 rows with one margin: calibrated, about the entropy of that share, 0.566 nats."""
    scores = factor * logits(first_right(112), 1.0)
    assert surprise("accuracy", scores, TARGETS) == pytest.approx(0.5661, abs=0.01)
    assert surprise("accuracy", scores, TARGETS) == pytest.approx(surprise("accuracy", scores / factor, TARGETS))


def test_a_single_row_and_perfect_scores_give_numbers() -> None:
    one = np.array([[3.0, 0.0]], dtype=np.float32)
    assert 0 < surprise("accuracy", one, np.array([0])) < np.log(2)
    assert surprise("accuracy", -one, np.array([0])) == pytest.approx(np.log(2), abs=1e-3)
    assert surprise("accuracy", 0 * one, np.array([0])) == pytest.approx(np.log(2))
    # 120 rows of 150 calibrate: one row's worth of doubt, spread over two classes, is a chance of 0.5 / 121.
    perfect = surprise("macro_f1", logits(np.ones(ROWS, dtype=bool), 50.0), TARGETS)
    assert perfect == pytest.approx(-np.log(1 - 0.5 / 121), rel=1e-3)


def test_a_rare_class_counts_as_much_where_the_metric_says_so() -> None:
    targets = np.array([0] * 90 + [1] * 10)
    common, rare = np.zeros((100, 2)), np.zeros((100, 2))
    common[:90, 0], common[90:, 0] = 3.0, 3.0  # knows the first class alone
    rare[:90, 0], rare[90:, 1] = 1.0, 1.0  # leans to the right class everywhere
    noise = np.random.default_rng(0).normal(size=(100, 2)) / 10
    assert surprise("balanced_accuracy", rare + noise, targets) < surprise("balanced_accuracy", common + noise, targets)


def test_controls_and_what_did_not_end_are_no_choice() -> None:
    trials = [
        trial(0, 0.9, "control:random-minilm"), {**trial(1, 0.9), "method": "majority"},
        {**trial(2, 0.9), "state": "pruned"}, trial(3, 0.5),
    ]  # fmt: skip
    assert [entry["number"] for entry in eligible(trials)] == [3]
