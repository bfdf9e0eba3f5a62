"""What would more labels bring? A learning curve from the labels at hand, carried on with its interval.

Inverse power law: Cortes et al., "Learning Curves: Asymptotic Values and Rate of Convergence", NIPS 1993; the usual
choice for such extrapolation (Viering, Loog, "The Shape of Learning Curves: a Review", 2021, arXiv 2103.10948).
Official code: none. Claim: none of its own.
Left out: curves that rise and fall (double descent); choosing which rows to label (see `inffeed`).
Checked in tests/select/test_label_worth.py: known power laws are recovered, intervals cover.

A linear head is fitted to growing random parts of the labelled rows and scored on the rest; then

    error(n) = floor + scale n^-rate,      floor, scale >= 0, 0 < rate <= 2

is fitted by weighted least squares, and refitted to bootstrap draws of the repeats, whose spread gives the interval.

>>> sizes, errors = [10, 20, 40, 80], [[0.4], [0.3], [0.225], [0.16875]]  # a quarter less each time they double
>>> found = extrapolate(sizes, errors, [160])
>>> round(found[0].value, 3)
0.127
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ontarget.errors import DataError, SettingError
from ontarget.values import Array, Score

MORE = (10, 100, 1000)
PARTS = (0.125, 0.25, 0.5, 1.0)  # of the largest training part (choice)
REPEATS = 8  # random parts of each size (choice)
HELD_SHARE = 0.25  # of the rows, that every part is scored on (choice)
REPLICATES = 200


@dataclass(frozen=True)
class LabelWorth:
    """sizes: (S,) rows of the parts. values: (S, R) metric of each repeat. now: the curve at all rows at hand.

    after: number of further labels -> the metric that the curve gives there.
    """

    metric: str
    sizes: tuple[int, ...]
    values: Array
    now: Score
    after: dict[int, Score]


def label_worth(
    features: Array,
    targets: Array,
    *,
    outputs: int,
    kind: Literal["classification", "regression"] = "classification",
    metric: str | None = None,
    more: Sequence[int] = MORE,
    repeats: int = REPEATS,
    seed: int = 0,
) -> LabelWorth:
    """The metric of a linear head with 10, 100, 1,000 more labels, with 90% intervals; its limit is assumed to be 1.

    features: (N, D) float. targets: (N,) int class indices or float. metric: one that is at most 1 (accuracy,
    balanced_accuracy, macro_f1, r2, spearman); "accuracy" or "r2" by default.
    The figures are for the linear head and for labels drawn like those at hand; a model that is tuned may gain more.
    Raises DataError: fewer than 16 rows; SettingError: a metric without an upper limit.
    """
    from ontarget.adapt.metric import metric_value
    from ontarget.adapt.tune.linear_head import linear_head

    metric = metric or ("accuracy" if kind == "classification" else "r2")
    if metric in ("neg_mae", "neg_rmse"):
        raise SettingError(f"{metric} has no upper limit.", allowed="accuracy, r2, ...", option="metric")
    rows = len(features)
    if rows < 16:
        raise DataError(f"{rows} labelled rows are too few for a learning curve.", allowed="16 or more")
    largest = rows - max(2, int(HELD_SHARE * rows))
    # One strength for all parts: it refers to the sum over rows, so that it weighs less the more rows there are.
    l2 = linear_head(features, targets, outputs=outputs, kind=kind, metric=metric).l2
    sizes = tuple(dict.fromkeys(max(4, int(part * largest)) for part in PARTS))
    generator = np.random.default_rng(seed)
    values = np.zeros((len(sizes), repeats))
    for repeat in range(repeats):
        order = _mixed_classes(targets, kind, generator)
        held = order[largest:]
        for at, size in enumerate(sizes):
            part = order[:size]
            if kind == "classification" and len(np.unique(targets[part])) < 2:
                values[at, repeat] = metric_value(metric, np.eye(outputs)[targets[part][:1].repeat(len(held))],
                                                  targets[held])  # fmt: skip
                continue
            values[at, repeat] = linear_head(
                features[part], targets[part], outputs=outputs, kind=kind, metric=metric, l2_grid=(l2,),
                validation=(features[held], targets[held]),
            ).value  # fmt: skip
    found = extrapolate(sizes, 1 - values, [rows, *(rows + extra for extra in more)], seed=seed)
    turned = [Score(1 - score.value, 1 - score.high, 1 - score.low) for score in found]
    return LabelWorth(metric, sizes, values, turned[0], dict(zip(more, turned[1:], strict=True)))


def extrapolate(
    sizes: Sequence[int], errors: Sequence[Sequence[float]] | Array, at: Sequence[int], *, confidence: float = 0.9,
    seed: int = 0,
) -> list[Score]:  # fmt: skip
    """The error at each size of ``at``. errors: (S, R) of R repeats at each of the S sizes.

    Repeats are drawn anew column by column, since the parts of one repeat contain each other; a residual of the curve
    itself is added to each draw (wild bootstrap, Mammen 1993), so that a badly fitting curve has a wide interval.
    """
    table = np.asarray(errors, dtype=np.float64)
    if table.ndim != 2 or len(table) != len(sizes) or len(sizes) < 2:
        raise DataError(f"errors have shape {table.shape} for {len(sizes)} sizes.", allowed="(S, R), S >= 2")
    grid = np.asarray(at, dtype=np.float64)
    means = table.mean(axis=1)
    weights = np.sqrt(np.asarray(sizes, dtype=np.float64))
    fitted = fit_power_law(sizes, means, weights)
    misfit = means - power_law(fitted, np.asarray(sizes, dtype=np.float64))
    generator = np.random.default_rng(seed)
    draws = np.empty((REPLICATES, len(grid)))
    for replicate in range(REPLICATES):
        chosen = generator.integers(0, table.shape[1], table.shape[1])
        noise = misfit * generator.choice([-1.0, 1.0], len(means))
        draws[replicate] = power_law(fit_power_law(sizes, table[:, chosen].mean(axis=1) + noise, weights), grid)
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    value = power_law(fitted, grid)
    return [Score(float(v), float(min(l, v)), float(max(h, v))) for v, l, h in zip(value, low, high, strict=True)]


def power_law(law: tuple[float, float, float], sizes: Array) -> Array:
    """floor + scale n^-rate for ``law`` = (floor, scale, rate)."""
    floor, scale, rate = law
    found: Array = floor + scale * np.asarray(sizes, dtype=np.float64) ** -rate
    return found


def fit_power_law(sizes: Sequence[int], errors: Array, weights: Array) -> tuple[float, float, float]:
    """(floor, scale, rate) of least weighted squares: rates on a grid, the other two in closed form (choice)."""
    from scipy.optimize import nnls

    places = np.asarray(sizes, dtype=np.float64)
    best: tuple[float, tuple[float, float, float]] | None = None
    for rate in np.geomspace(0.05, 2.0, 60):
        design = np.stack([np.ones(len(places)), places**-rate], axis=1) * weights[:, None]
        (floor, scale), residual = nnls(design, np.maximum(errors, 0.0) * weights)
        if best is None or residual < best[0] - 1e-12:
            best = residual, (float(floor), float(scale), float(rate))
    assert best is not None
    return best[1]


def _mixed_classes(targets: Array, kind: str, generator: np.random.Generator) -> Array:
    """A random order of the rows in which every stretch holds the classes in about their shares."""
    order = generator.permutation(len(targets))
    if kind == "regression":
        return order
    place = np.empty(len(targets))
    for label in np.unique(targets):
        members = order[targets[order] == label]
        place[members] = (np.arange(len(members)) + generator.random()) / len(members)
    return np.argsort(place, kind="stable")
