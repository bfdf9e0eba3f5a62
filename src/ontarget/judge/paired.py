"""Paired comparison of two models on the same rows: an exact or permutation test, and the difference's interval.

McNemar, Psychometrika 1947 (accuracy, in its exact binomial form); Noreen, "Computer-Intensive Methods for Testing
Hypotheses", 1989, and Yeh, "More accurate tests for the statistical significance of result differences", COLING 2000
(arXiv cs/0008005): if two models are alike, whose output is whose could be swapped row by row, so the difference is
compared with what such swaps give. Holm, Scandinavian Journal of Statistics 1979, for several baselines.
Left out: tests over training seeds (a run trains the chosen model once).
Checked in tests/judge/test_paired.py: binomial sums, full enumeration by hand, false alarms on models that are alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ontarget.adapt.metric import metric_value, row_scores
from ontarget.judge.intervals import ends, indicator, mean_share, percentiles, resampled
from ontarget.values import Array

SWAPS = 9999  # random swaps of a permutation test (choice): p-values are multiples of 1e-4
ENUMERATED_ROWS = 13  # with at most so many rows that differ, all swaps are tried


@dataclass(frozen=True)
class Comparison:
    """``value`` of a baseline, and the model's difference to it: positive where the model is better.

    low, high: interval of ``value``. test: "mcnemar" (exact) for accuracy, else "permutation". p_value: two-sided,
    after Holm's correction where several baselines were compared.
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


def compare(name: str, metric: str, model: Array, baseline: Array, targets: Array, *, seed: int = 0) -> Comparison:
    """The model against one baseline. model, baseline: scores (N, C or 1) of the same rows; targets: (N,).

    Raises DataError, SettingError: see `metric_value`.
    """
    value = metric_value(metric, baseline, targets)
    difference = metric_value(metric, model, targets) - value
    ours, theirs = resampled(metric, [model, baseline], targets, seed=seed)
    low, high = percentiles(ours - theirs, len(targets))
    base_low, base_high = ends(metric, value, theirs, len(targets))
    if metric == "accuracy":
        right, other = model.argmax(axis=1) == targets, baseline.argmax(axis=1) == targets
        p_value, test = mcnemar(int((right & ~other).sum()), int((~right & other).sum())), "mcnemar"
    elif metric == "macro_f1":
        p_value, test = swap_test_macro_f1(model, baseline, targets, seed=seed), "permutation"
    else:
        # The other metrics grow with a mean over rows that swaps leave alike: its differences change their sign.
        rows = row_scores(metric, model, targets) - row_scores(metric, baseline, targets)
        p_value, test = sign_flip_test(rows, seed=seed), "permutation"
    return Comparison(
        name, value, base_low, base_high, difference, min(low, difference), max(high, difference), p_value, test
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value of McNemar's test: are the two discordant counts a fair coin's?

    only_first: rows that only the first model has right.
    """
    from scipy.stats import binomtest

    total = only_first + only_second
    return 1.0 if total == 0 else float(binomtest(only_first, total, 0.5).pvalue)


def sign_flip_test(differences: Array, *, seed: int = 0, swaps: int = SWAPS) -> float:
    """Two-sided p-value that the mean of paired differences (N,) is 0: exact for few rows, else by random signs."""
    changed = np.asarray(differences, dtype=np.float64)
    changed = changed[changed != 0]
    if len(changed) == 0:
        return 1.0
    # Sums that differ by rounding alone count as equal.
    reached = abs(float(changed.sum())) - 1e-9 * float(np.abs(changed).sum())
    if len(changed) <= ENUMERATED_ROWS:
        signs = 1 - 2 * ((np.arange(2 ** len(changed))[:, None] >> np.arange(len(changed))) & 1)
        return float(np.mean(np.abs(signs @ changed) >= reached))
    generator = np.random.default_rng(seed)
    beyond, block = 0, max(1, 4_000_000 // len(changed))
    for start in range(0, swaps, block):
        size = min(block, swaps - start)
        bits = np.frombuffer(generator.bytes(size * (len(changed) + 7 & ~7) // 8), dtype=np.uint8)
        flipped = np.unpackbits(bits).reshape(size, -1)[:, : len(changed)].astype(np.float32)
        sums = changed.sum() - 2 * (flipped @ changed.astype(np.float32)).astype(np.float64)
        beyond += int(np.count_nonzero(np.abs(sums) >= reached))
    return (1 + beyond) / (1 + swaps)


def swap_test_macro_f1(model: Array, baseline: Array, targets: Array, *, seed: int = 0, swaps: int = SWAPS) -> float:
    """Two-sided p-value that two models have the same macro F1, from random swaps of their predictions.

    Rows with the same class and the same two predictions are alike: how many of them are swapped is binomial.
    """
    first, second = model.argmax(axis=1), baseline.argmax(axis=1)
    classes = int(max(first.max(), second.max(), targets.max())) + 1
    hits = [np.bincount(targets[said == targets], minlength=classes) for said in (first, second)]
    seen = [np.bincount(targets, minlength=classes) + np.bincount(said, minlength=classes) for said in (first, second)]
    observed = float(mean_share(2 * hits[0], seen[0]) - mean_share(2 * hits[1], seen[1]))
    differ = first != second
    if not differ.any():
        return 1.0
    rows = np.stack([targets.astype(np.int64), first, second])[:, differ]
    cells, sizes = np.unique(rows, axis=1, return_counts=True)
    # What one swapped row of each cell takes from the first model and gives to the second.
    of_first, of_second = indicator(cells[1], classes), indicator(cells[2], classes)
    moved_hits = indicator(cells[1], classes, (cells[0] == cells[1]).astype(float)) - indicator(
        cells[2], classes, (cells[0] == cells[2]).astype(float)
    )
    moved = of_first - of_second
    generator = np.random.default_rng(seed)
    beyond, block = 0, max(1, 400_000 // len(sizes))
    for start in range(0, swaps, block):
        swapped = _halves(sizes, min(block, swaps - start), generator)
        gone, gone_hits = (moved @ swapped.T).T, (moved_hits @ swapped.T).T
        found = mean_share(2 * (hits[0] - gone_hits), seen[0] - gone)
        found = found - mean_share(2 * (hits[1] + gone_hits), seen[1] + gone)
        beyond += int(np.count_nonzero(np.abs(found) >= abs(observed) - 1e-12))
    return (1 + beyond) / (1 + swaps)


def _halves(sizes: Array, draws: int, generator: np.random.Generator) -> Array:
    """(draws, cells) float64: heads among as many coins as each cell has rows."""
    single = sizes == 1
    heads = np.empty((draws, len(sizes)))
    heads[:, single] = generator.integers(0, 2, size=(draws, int(single.sum())), dtype=np.uint8)
    heads[:, ~single] = generator.binomial(sizes[~single], 0.5, size=(draws, int((~single).sum())))
    return heads


def holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with p-values that hold for all of them together, in the order given."""
    order = sorted(range(len(comparisons)), key=lambda at: comparisons[at].p_value)
    corrected, running = list(comparisons), 0.0
    for rank, at in enumerate(order):
        running = max(running, min(1.0, (len(comparisons) - rank) * comparisons[at].p_value))
        corrected[at] = replace(comparisons[at], p_value=running)
    return corrected
