"""Intervals of a metric and paired comparisons of two models on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ontarget.adapt.metric import metric_value
from ontarget.values import Array

DRAWS = 2000  # bootstrap resamples (choice)


@dataclass(frozen=True)
class Comparison:
    """``value`` of a baseline and the model's difference to it: positive where the model is better.

    test: "mcnemar" (exact) for accuracy, "bootstrap" else. p_value: two-sided, after Holm's correction where
    several baselines were compared.
    """

    name: str
    value: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    p_value: float
    test: str


def interval(metric: str, scores: Array, targets: Array, *, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Bootstrap percentile interval of a metric over rows."""
    draws = _draws(metric, [scores], targets, seed)[0]
    tail = 50 * (1 - level)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def compare(name: str, metric: str, model: Array, baseline: Array, targets: Array, *, seed: int = 0) -> Comparison:
    """The model against one baseline. model, baseline: scores (N, C or 1). Resampled rows are the same for both."""
    ours, theirs = _draws(metric, [model, baseline], targets, seed)
    low, high = np.percentile(ours - theirs, [2.5, 97.5])
    base_low, base_high = np.percentile(theirs, [2.5, 97.5])
    value = metric_value(metric, baseline, targets)
    if metric == "accuracy":
        right, wrong = _correct(model, targets), _correct(baseline, targets)
        p_value, test = mcnemar(int((right & ~wrong).sum()), int((~right & wrong).sum())), "mcnemar"
    else:
        draws = ours - theirs
        one_sided = min((draws <= 0).mean(), (draws >= 0).mean())
        p_value, test = min(1.0, 2 * max(one_sided, 1 / len(draws))), "bootstrap"
    return Comparison(
        name, value, float(base_low), float(base_high), metric_value(metric, model, targets) - value,
        float(low), float(high), float(p_value), test,
    )  # fmt: skip


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value of McNemar's test: are the two discordant counts a fair coin's?

    McNemar, Psychometrika 1947. ``only_first``: rows that only the first model has right.
    """
    from scipy.stats import binomtest

    total = only_first + only_second
    return 1.0 if total == 0 else float(binomtest(only_first, total, 0.5).pvalue)


def holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with p-values that hold for all of them together (Holm, Scand. J. Statistics 1979)."""
    order = sorted(range(len(comparisons)), key=lambda at: comparisons[at].p_value)
    corrected, running = list(comparisons), 0.0
    for rank, at in enumerate(order):
        running = max(running, min(1.0, (len(comparisons) - rank) * comparisons[at].p_value))
        corrected[at] = replace(comparisons[at], p_value=running)
    return corrected


def _correct(scores: Array, targets: Array) -> Array:
    right: Array = scores.argmax(axis=1) == targets
    return right


def _draws(metric: str, models: Sequence[Array], targets: Array, seed: int, draws: int = DRAWS) -> list[Array]:
    """(draws,) values of the metric for each model over the same resampled rows."""
    generator = np.random.default_rng(seed)
    rows = len(targets)
    fast = _fast_statistic(metric, targets)
    found = [np.empty(draws) for _ in models]
    prepared = [fast(scores) for scores in models] if fast else []
    for draw in range(draws):
        chosen = generator.integers(0, rows, rows)
        for at, scores in enumerate(models):
            found[at][draw] = prepared[at](chosen) if fast else metric_value(metric, scores[chosen], targets[chosen])
    return found


def _fast_statistic(metric: str, targets: Array) -> Callable[[Array], Callable[[Array], float]] | None:
    """For a metric: scores -> (rows -> value) without repeating what does not change between resamples."""
    if metric == "accuracy":

        def accuracy(scores: Array) -> Callable[[Array], float]:
            right = _correct(scores, targets)
            return lambda rows: float(right[rows].mean())

        return accuracy
    if metric in ("balanced_accuracy", "macro_f1"):

        def from_counts(scores: Array) -> Callable[[Array], float]:
            classes = scores.shape[1]
            cells = targets * classes + scores.argmax(axis=1)

            def value(rows: Array) -> float:
                table = np.bincount(cells[rows], minlength=classes * classes).reshape(classes, classes)
                hits, actual, predicted = table.diagonal(), table.sum(axis=1), table.sum(axis=0)
                if metric == "balanced_accuracy":
                    return float((hits[actual > 0] / actual[actual > 0]).mean())
                seen = actual + predicted
                return float((2 * hits[seen > 0] / seen[seen > 0]).mean())

            return value

        return from_counts
    return None
