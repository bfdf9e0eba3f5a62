import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ontarget.adapt.metric import metric_value
from ontarget.judge import intervals
from ontarget.judge.intervals import interval, percentiles, resampled
from ontarget.task import CLASSIFICATION_METRICS, REGRESSION_METRICS

METRICS = (*CLASSIFICATION_METRICS, *REGRESSION_METRICS)


def problem(metric: str, rows: int, seed: int = 0, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Scores and targets of a task; numbers are rounded, so that ranks tie."""
    generator = np.random.default_rng(seed)
    if metric in CLASSIFICATION_METRICS:
        targets = generator.integers(0, classes, rows)
        scores = generator.normal(size=(rows, classes))
        scores[np.arange(rows), targets] += 1
        return scores, targets
    targets = generator.normal(size=rows).round(1)
    return (targets + generator.normal(size=rows)).round(1)[:, None], targets


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rows", [25, 400])
def test_each_resample_has_the_metric_of_the_rows_it_drew(metric: str, rows: int, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Counts that are given, one row each, against `metric_value` on the rows repeated as often."""
    scores, targets = problem(metric, rows)
    generator = np.random.default_rng(1)
    drawn = generator.integers(0, rows, (20, rows))
    seen = {}

    def given_counts(sizes, resamples, seed):  # type: ignore[no-untyped-def]
        seen["sizes"] = sizes
        yield counts

    # Row numbers in the order of the cells (classification) or of the sorted targets (regression).
    if metric in CLASSIFICATION_METRICS:
        facts = intervals._facts(metric, [scores.argmax(axis=1)], targets)
        place = np.unique(np.stack(facts), axis=1, return_inverse=True)[1].reshape(-1)
    else:
        place = np.empty(rows, dtype=np.int64)
        place[np.argsort(targets, kind="stable")] = np.arange(rows)
    counts = np.stack([np.bincount(place[row], minlength=place.max() + 1) for row in drawn]).astype(float)
    monkeypatch.setattr(intervals, "_counts", given_counts)
    found = resampled(metric, [scores], targets)[0]
    assert found == pytest.approx([metric_value(metric, scores[row], targets[row]) for row in drawn], abs=1e-9)
    assert seen["sizes"].sum() == rows


@pytest.mark.parametrize("cells", [[30, 70], [1] * 40, [2, 1, 1, 3, 5, 1, 1, 1, 1, 1, 40]])
def test_counts_are_those_of_drawn_rows(cells: list[int]) -> None:
    """Both ways of drawing give N rows with the mean and variance of a multinomial."""
    sizes = np.array(cells)
    rows = sizes.sum()
    counts = np.concatenate(list(intervals._counts(sizes, 4000, 0)))
    assert counts.shape == (4000, len(cells))
    assert (counts.sum(axis=1) == rows).all()
    share = sizes / rows
    spread = np.sqrt(rows * share * (1 - share))
    assert np.abs((counts.mean(axis=0) - sizes) / (spread / np.sqrt(4000))).max() < 4.5
    assert counts.std(axis=0) == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize("metric", METRICS)
def test_two_models_share_their_resamples(metric: str) -> None:
    scores, targets = problem(metric, 60)
    first, second = resampled(metric, [scores, scores], targets, resamples=50)
    assert (first == second).all()


def test_accuracy_interval_against_the_normal_one() -> None:
    scores, targets = problem("accuracy", 2000)
    value = metric_value("accuracy", scores, targets)
    low, high = interval("accuracy", scores, targets)
    half = 1.96 * np.sqrt(value * (1 - value) / 2000)
    assert (low, high) == pytest.approx((value - half, value + half), abs=0.003)


def test_all_right_does_not_mean_certain() -> None:
    """16 of 16: Wilson's lower end is n / (n + z^2)."""
    low, high = interval("accuracy", np.eye(2)[[0, 1] * 8], np.array([0, 1] * 8))
    assert high == 1
    assert low == pytest.approx(16 / (16 + stats.norm.ppf(0.975) ** 2))


def test_spearman_interval_against_fisher() -> None:
    """For a bivariate normal: tanh(atanh(r) +- 1.96 sqrt((1 + r^2/2) / (n - 3))), Bonett and Wright 2000."""
    generator = np.random.default_rng(3)
    targets = generator.normal(size=500)
    predicted = targets + generator.normal(size=500)
    value = stats.spearmanr(predicted, targets).statistic
    half = 1.96 * np.sqrt((1 + value**2 / 2) / 497)
    expected = np.tanh(np.arctanh(value) + np.array([-half, half]))
    assert interval("spearman", predicted[:, None], targets) == pytest.approx(tuple(expected), abs=0.015)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "r2"])
def test_intervals_hold_the_truth_about_as_often_as_they_say(metric: str) -> None:
    truth = metric_value(metric, *problem(metric, 200_000, seed=99))
    inside = 0
    for seed in range(150):
        low, high = interval(metric, *problem(metric, 60, seed=seed), seed=seed)
        inside += low <= truth <= high
    assert 0.89 <= inside / 150 <= 0.995


def test_few_rows_give_wider_ends_than_plain_percentiles() -> None:
    draws = np.linspace(0, 1, 10_001)
    assert percentiles(draws, 5)[0] < 0.005
    assert percentiles(draws, 100_000) == pytest.approx((0.025, 0.975), abs=1e-3)
    assert percentiles(np.array([0.3, 0.4]), 1) == (0.3, 0.4)


@given(st.integers(1, 40), st.integers(2, 6), st.sampled_from(METRICS), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_the_value_is_inside_whatever_the_rows(rows: int, classes: int, metric: str, seed: int) -> None:
    scores, targets = problem(metric, rows, seed, classes)
    low, high = interval(metric, scores, targets, seed=seed)
    assert np.isfinite([low, high]).all()
    assert low <= metric_value(metric, scores, targets) <= high
    assert (low, high) == interval(metric, scores, targets, seed=seed)


def test_constant_values_are_no_obstacle() -> None:
    same = np.ones(10)
    assert interval("r2", same[:, None], same) == (1, 1)
    assert interval("spearman", same[:, None], np.arange(10.0)) == (0, 0)
