"""Bootstrap of any metric over rows, vectorised: thousands of resamples in about the time of one loop over them.

Efron, "Bootstrap Methods: Another Look at the Jackknife", Annals of Statistics 1979; the ends of the interval are
expanded for few rows as in Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician 2015.
A resample is a count of each row. A classification metric needs to know only the row's cell (whether each model is
right, and where it matters the class and what the models said), and rows of one cell are alike: the cells' counts are
multinomial, whatever the number of rows. Ranks within a resample follow from the counts in sorted order, so that
Spearman's correlation needs no sorting again.
Left out: BCa.
Checked in tests/judge/test_judge_intervals.py: every metric against `metric_value` on drawn rows; coverage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy import sparse, stats

from ontarget.adapt.metric import metric_value
from ontarget.task import CLASSIFICATION_METRICS
from ontarget.values import Array

RESAMPLES = 2000  # (choice): the ends of a 95% interval move by about 3% of its width between seeds
BLOCK_NUMBERS = 200_000  # counts held at once: they stay in the processor's cache

Statistic = Callable[[Array], Array]


def interval(metric: str, scores: Array, targets: Array, *, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Interval of a metric. scores: (N, C or 1); targets: (N,).

    An accuracy's interval is widened to Wilson's where that is wider (choice): 16 right out of 16 does not mean that
    all would be right, which is what resampling alone says. The metric itself is always inside.
    Raises DataError, SettingError: see `metric_value`.
    """
    value = metric_value(metric, scores, targets)
    draws = resampled(metric, [scores], targets, seed=seed)[0]
    return ends(metric, value, draws, len(targets), level)


def ends(metric: str, value: float, draws: Array, rows: int, level: float = 0.95) -> tuple[float, float]:
    """The interval that `interval` gives, from the metric's value and its resampled values (resamples,)."""
    low, high = percentiles(draws, rows, level)
    if metric == "accuracy":
        wilson = stats.binomtest(round(value * rows), rows).proportion_ci(level, "wilson")
        low, high = min(low, float(wilson.low)), max(high, float(wilson.high))
    return min(low, value), max(high, value)


def percentiles(draws: Array, rows: int, level: float = 0.95) -> tuple[float, float]:
    """Ends of the expanded percentile interval: tails are taken further out, by Student's t, where rows are few."""
    if rows < 2:
        return float(draws.min()), float(draws.max())
    student = stats.t.ppf((1 - level) / 2, rows - 1)
    tail = float(stats.norm.cdf(np.sqrt(rows / (rows - 1)) * student))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def resampled(
    metric: str, models: Sequence[Array], targets: Array, *, seed: int = 0, resamples: int = RESAMPLES
) -> Array:
    """(models, resamples) float64: the metric of each model over the same resampled rows.

    models: scores (N, C or 1) each. targets: (N,).
    """
    targets = np.asarray(targets)
    if metric in CLASSIFICATION_METRICS:
        facts = _facts(metric, [np.asarray(scores).argmax(axis=1) for scores in models], targets.astype(np.int64))
        cells, sizes = np.unique(np.stack(facts), axis=1, return_counts=True)
        statistics = [_of_classes(metric, cells[0], cells[1 + at]) for at in range(len(models))]
    else:
        sizes = np.ones(len(targets), dtype=np.int64)
        # Sorted by target, a resample's target ranks are a running sum.
        order = np.argsort(targets, kind="stable")
        predicted = [np.asarray(scores, dtype=np.float64).reshape(-1)[order] for scores in models]
        statistics = [_of_numbers(metric, values, targets[order].astype(np.float64)) for values in predicted]
    blocks = [[statistic(counts) for statistic in statistics] for counts in _counts(sizes, resamples, seed)]
    found: Array = np.concatenate(blocks, axis=1)
    return found


def _facts(metric: str, predicted: Sequence[Array], targets: Array) -> list[Array]:
    """What a metric needs to know of each row: (N,) class, then (N,) prediction of each model.

    Fewer different rows make fewer cells: accuracy asks for right (0) or wrong (1) alone, balanced accuracy for the
    class and a prediction that is either right or another class.
    """
    if metric == "macro_f1":
        return [targets, *predicted]
    wrong = [(values != targets).astype(np.int64) for values in predicted]
    if metric == "accuracy":
        return [np.zeros_like(targets), *wrong]
    return [targets, *(np.where(values, (targets + 1) % (targets.max() + 2), targets) for values in wrong)]


def _counts(sizes: Array, resamples: int, seed: int) -> Iterator[Array]:
    """Blocks of (resamples, cells) float64: rows of each cell among as many rows drawn with replacement."""
    generator = np.random.default_rng(seed)
    rows, cells = int(sizes.sum()), len(sizes)
    block = max(1, min(resamples, BLOCK_NUMBERS // max(cells, 1 if 4 * cells < rows else rows)))
    owner = np.repeat(np.arange(cells, dtype=np.int64), sizes)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        if 4 * cells < rows:  # a binomial a cell costs about four drawn rows
            yield generator.multinomial(rows, sizes / rows, size=size).astype(np.float64)
        else:
            drawn = owner[generator.integers(0, rows, size=(size, rows), dtype=np.int32)]
            drawn += cells * np.arange(size)[:, None]
            yield np.bincount(drawn.ravel(), minlength=size * cells).reshape(size, cells).astype(np.float64)


def _of_classes(metric: str, targets: Array, predicted: Array) -> Statistic:
    """The metric from counts (B, cells) of cells with one class and one prediction each."""
    right = (targets == predicted).astype(np.float64)
    if metric == "accuracy":
        return lambda counts: counts @ right / counts.sum(axis=1)
    classes = int(max(targets.max(), predicted.max())) + 1
    of_class, of_predicted = indicator(targets, classes), indicator(predicted, classes)
    of_hits = indicator(targets, classes, right)

    def statistic(counts: Array) -> Array:
        hits, actual = (of_hits @ counts.T).T, (of_class @ counts.T).T
        if metric == "balanced_accuracy":
            return mean_share(hits, actual)
        return mean_share(2 * hits, actual + (of_predicted @ counts.T).T)

    return statistic


def indicator(groups: Array, count: int, weights: Array | None = None) -> Any:
    """Sparse (count, N) matrix that sums the columns of each group, weighted by (N,) ``weights``."""
    values = np.ones(len(groups)) if weights is None else weights
    return sparse.csr_array((values, (groups, np.arange(len(groups)))), shape=(count, len(groups)))


def mean_share(part: Array, whole: Array) -> Array:
    """Mean over the last axis of part / whole, over the classes whose ``whole`` is not 0."""
    present = whole > 0
    share: Array = np.where(present, part / np.where(present, whole, 1), 0).sum(axis=-1) / present.sum(axis=-1)
    return share


def _of_numbers(metric: str, predicted: Array, targets: Array) -> Statistic:
    """The metric from counts (B, N) of rows."""
    if metric == "spearman":
        return _spearman(predicted, targets)
    squared = (predicted - targets) ** 2
    if metric == "neg_mae":
        absolute = np.abs(predicted - targets)
        return lambda counts: -(counts @ absolute) / len(targets)
    if metric == "neg_rmse":
        return lambda counts: -np.sqrt(counts @ squared / len(targets))
    centred = targets - targets.mean()

    def r2(counts: Array) -> Array:
        error = counts @ squared
        total = counts @ centred**2 - (counts @ centred) ** 2 / len(targets)
        constant = total <= 1e-12 * max(float(centred @ centred), 1e-300)
        value: Array = np.where(constant, error == 0, 1 - error / np.where(constant, 1, total))
        return value

    return r2


def _spearman(predicted: Array, targets: Array) -> Statistic:
    first, second = _ranker(predicted), _ranker(targets)

    def statistic(counts: Array) -> Array:
        rows = counts.sum(axis=1)
        a, b = first(counts) - (rows[:, None] + 1) / 2, second(counts) - (rows[:, None] + 1) / 2
        weighted_a, weighted_b = counts * a, counts * b
        together = np.einsum("bn,bn->b", weighted_a, b)
        spread = np.sqrt(np.einsum("bn,bn->b", weighted_a, a) * np.einsum("bn,bn->b", weighted_b, b))
        value: Array = np.where(spread > 0, together / np.where(spread > 0, spread, 1), 0)
        return value

    return statistic


def _ranker(values: Array) -> Statistic:
    """Counts (B, N) -> ranks (B, N) of the rows in each resample, mean rank for ties."""
    order = np.argsort(values, kind="stable")
    _, starts, group = np.unique(values[order], return_index=True, return_inverse=True)
    sorted_already, ties = bool((order[:-1] < order[1:]).all()), len(starts) < len(values)
    back = np.empty(len(values), dtype=np.int64)
    back[order] = group

    def ranks(counts: Array) -> Array:
        sizes = counts if sorted_already else np.take(counts, order, axis=1)
        if ties:
            sizes = np.add.reduceat(sizes, starts, axis=1)
        found = np.cumsum(sizes, axis=1) - (sizes - 1) / 2
        result: Array = found if sorted_already and not ties else np.take(found, back, axis=1)
        return result

    return ranks
