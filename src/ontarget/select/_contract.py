"""The one signature of the stage's scores, and the checks that every one of them makes.

A score is ``name(features, targets, *, ...) -> float``, higher is better, and beside it in the same file
``name_rows(features, targets, *, ...) -> RowScores``: the same number with a share for every row.

features: (N, D) float, D >= 1, finite. targets: (N,) int64 class indices >= 0 with at least two classes present,
or (N,) float64, finite and not all equal.

Constant columns are accepted: `linear_probe`, `nearest_neighbours`, and `h_score` without shrinkage give what they
give without them; TMI counts them in its factor D, shrinkage in the mean variance, and LogME, whose linear model has
no intercept, may use them as one. Class indices that no row has are accepted: scores count the classes that are
present (TMI divides by the highest index + 1 as published, a constant for one target).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ontarget.errors import DataError, SettingError
from ontarget.values import Array

KINDS = ("classification", "regression")


@dataclass(frozen=True)
class RowScores:
    """A score and the share that every row has in it.

    rows: (N,) float64 with mean ``value``. For an average over rows (accuracy, TMI) the terms of that average;
    for other scores ``value`` plus the row's influence, so that a weighted mean of ``rows`` is, to first order, the
    score of the weighted sample (Efron, "The jackknife, the bootstrap and other resampling plans", 1982, ch. 6).
    proportion: the rows are 0 or 1. notes: what the reader of the score should know.
    """

    value: float
    rows: Array
    proportion: bool = False
    notes: tuple[str, ...] = ()


def check_features(features: Array, name: str = "features") -> Array:
    """The features as float64 (N, D), C-contiguous; not copied if they are so already. Raises DataError."""
    features = np.asarray(features)
    if features.ndim != 2 or features.shape[0] < 3 or features.shape[1] < 1:
        raise DataError(f"{name}: the array has shape {features.shape}.", allowed="(N, D) with N >= 3 and D >= 1")
    if features.dtype.kind not in "fiub":
        raise DataError(f"{name}: the array has dtype {features.dtype}.", allowed="real numbers")
    features = np.ascontiguousarray(features, dtype=np.float64)
    # One pass without a mask: any NaN or infinity makes the sum of squares non-finite.
    if not np.isfinite(np.vdot(features, features)):
        bad = np.argwhere(~np.isfinite(features))
        if len(bad) == 0:
            raise DataError(f"{name}: values are too large to be squared.", next_step="rescale the features")
        row, column = bad[0]
        raise DataError(
            f"{name}: {len(bad)} values are NaN or infinite, the first in row {row}, column {column}.",
            allowed="finite numbers",
            next_step="check the source's preprocessing, or leave the source out",
        )
    return features


def check_targets(targets: Array, rows: int, kind: str) -> Array:
    """The targets as int64 class indices or as float64. Raises DataError, SettingError."""
    if kind not in KINDS:
        raise SettingError(f"kind is '{kind}'.", allowed=" or ".join(KINDS), option="kind")
    targets = np.asarray(targets)
    if targets.shape != (rows,):
        raise DataError(f"targets have shape {targets.shape}, features {rows} rows.", allowed=f"({rows},)")
    if kind == "regression":
        if targets.dtype.kind not in "fiub":
            raise DataError(f"targets have dtype {targets.dtype}.", allowed="real numbers")
        targets = targets.astype(np.float64)
        if not np.isfinite(targets).all():
            raise DataError(f"targets: row {int(np.argmin(np.isfinite(targets)))} is NaN or infinite.")
        if np.ptp(targets) == 0:
            raise DataError(f"targets: all {rows} are {targets[0]:g}.", allowed="at least two values")
        return targets
    if targets.dtype.kind not in "iu":
        raise DataError(
            f"targets have dtype {targets.dtype}.",
            allowed="integer class indices",
            next_step="encode the classes as 0..C-1, or set kind='regression'",
        )
    if targets.min() < 0:
        raise DataError(f"targets: row {int(np.argmin(targets))} is {targets.min()}.", allowed="indices >= 0")
    if targets.min() == targets.max():
        raise DataError(f"targets: all {rows} rows are of class {targets[0]}.", allowed="at least two classes")
    return targets.astype(np.int64, copy=False)


def check(features: Array, targets: Array, kind: str) -> tuple[Array, Array]:
    """Both checked; classes renumbered to 0..C-1 without gaps."""
    features = check_features(features)
    targets = check_targets(targets, len(features), kind)
    if kind == "classification":
        targets = np.unique(targets, return_inverse=True)[1].astype(np.int64)
    return features, targets


def check_class_sizes(targets: Array, neighbours: int) -> None:
    """Raises DataError where a class has rows, but not more than ``neighbours``."""
    sizes = np.bincount(targets)
    small = np.flatnonzero((sizes > 0) & (sizes <= neighbours))
    if len(small):
        raise DataError(
            f"class {small[0]} has {sizes[small[0]]} rows, and {neighbours} nearest neighbours are asked for"
            + (f" (so have {len(small) - 1} more classes)." if len(small) > 1 else "."),
            allowed=f"at least {neighbours + 1} rows a class",
            option="neighbours",
            next_step="add rows, merge rare classes, or ask for fewer neighbours",
        )


def centred_one_hot(targets: Array, kind: str) -> Array:
    """(N, C) one-hot classes, or (N, 1) targets, minus their mean."""
    columns = np.eye(int(targets.max()) + 1)[targets] if kind == "classification" else targets[:, None]
    return np.asarray(columns - columns.mean(axis=0), dtype=np.float64)


def r2_rows(targets: Array, residuals: Array) -> RowScores:
    """R2 of predictions that leave these residuals, with the rows' influence."""
    deviations = (targets - targets.mean()) ** 2
    unexplained = float(np.mean(residuals**2) / np.mean(deviations))
    influence = (unexplained * deviations - residuals**2) / np.mean(deviations)
    return RowScores(1 - unexplained, 1 - unexplained + influence)
