"""Paired comparison where every row has a score of its own: generated answers, for instance.

The value is the mean over rows, or for neg_perplexity minus the exponential of the mean loss. Intervals by bootstrap
over rows; the test swaps the models' names row by row (judge/paired.py). Checked in tests/judge/test_paired_rows.py.
"""

from __future__ import annotations

import numpy as np

from ontarget.judge.intervals import percentiles
from ontarget.judge.paired import Comparison, sign_flip_test
from ontarget.values import Array

RESAMPLES = 2000  # (choice)


def value_of(metric: str, rows: Array) -> float:
    """The metric of row scores (N,)."""
    return float(_value(metric, np.asarray(rows, dtype=np.float64).mean()))


def interval_of_rows(metric: str, rows: Array, *, seed: int = 0) -> tuple[float, float]:
    """95% interval of `value_of`."""
    draws = _value(metric, _means([np.asarray(rows, dtype=np.float64)], seed)[0])
    value = value_of(metric, rows)
    low, high = percentiles(draws, len(rows))
    return min(low, value), max(high, value)


def compare_rows(name: str, metric: str, model: Array, baseline: Array, *, seed: int = 0) -> Comparison:
    """A model against a baseline on the same rows: scores (N,) of both, higher is better."""
    ours, theirs = np.asarray(model, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    drawn = [_value(metric, means) for means in _means([ours, theirs], seed)]
    value = value_of(metric, theirs)
    difference = value_of(metric, ours) - value
    low, high = percentiles(drawn[0] - drawn[1], len(theirs))
    base_low, base_high = interval_of_rows(metric, theirs, seed=seed)
    return Comparison(
        name, value, base_low, base_high, difference, min(low, difference), max(high, difference),
        sign_flip_test(ours - theirs, seed=seed), "permutation",
    )  # fmt: skip


def _value(metric: str, mean: Array | float) -> Array:
    found: Array = -np.exp(-np.asarray(mean)) if metric == "neg_perplexity" else np.asarray(mean)
    return found


def _means(rows: list[Array], seed: int) -> list[Array]:
    """Means of the same resamples of each: (RESAMPLES,)."""
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(len(rows[0]), np.full(len(rows[0]), 1 / len(rows[0])), size=RESAMPLES)
    return [counts @ one / len(one) for one in rows]
