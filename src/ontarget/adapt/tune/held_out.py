"""Choosing one strength of a path by its score on rows that the fit has not seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ontarget.adapt.metric import metric_value
from ontarget.errors import DataError, SettingError
from ontarget.values import Array

PATIENCE = 3  # weaker strengths tried after the best one before the path ends (choice)


@dataclass(frozen=True)
class Chosen:
    """The strength of a path that scored best on held-out rows."""

    l2: float
    scores: Array
    value: float
    weight: Array
    bias: Array
    path: tuple[tuple[float, float], ...]


def choose(walk: Iterator[tuple[float, Array, Array, Array]], metric: str, targets: Array) -> Chosen:
    """The best of (l2, scores, weight, bias); the walk ends once PATIENCE strengths in a row did not improve.

    Ties in the metric go to the better likelihood: log loss, or squared error for regression.
    """
    best: tuple[tuple[float, float], float, Array, Array, Array] | None = None
    tried: list[tuple[float, float]] = []
    worse = 0
    for l2, scores, weight, bias in walk:
        value = metric_value(metric, scores, targets)
        key = (round(value, 9), -_surprise(scores, targets))
        tried.append((l2, value))
        if best is None or key > best[0]:
            best, worse = (key, l2, scores, weight, bias), 0
        else:
            worse += 1
            if worse >= PATIENCE:
                break
    assert best is not None
    key, l2, scores, weight, bias = best
    return Chosen(l2, scores.astype(np.float32), key[0], weight, bias, tuple(tried))


def _surprise(scores: Array, targets: Array) -> float:
    if scores.shape[1] == 1:
        return float(np.mean((scores[:, 0] - targets) ** 2))
    shifted = scores - scores.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(targets)), targets]))


def out_of_fold(
    design: Any, targets: Array, folds: Array, grid: Sequence[float], path: Any, *, outputs: int
) -> Iterator[tuple[float, Array, Array, Array]]:
    """Walk the paths of all folds side by side: (l2, out-of-fold scores (N, outputs), -, -)."""
    if len(folds) != len(targets) or len(np.unique(folds)) < 2:
        raise DataError(f"folds needs one entry a row and two folds or more, got {len(folds)} for {len(targets)} rows.")
    parts = [(np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)) for fold in np.unique(folds)]
    paths = [path(design[train], targets[train], grid) for _, train in parts]
    for steps in zip(*paths):
        scores = np.zeros((len(targets), outputs))
        for (held, _), (_, weight, bias) in zip(parts, steps):
            scores[held] = scored(design[held], weight, bias)
        yield steps[0][0], scores, np.zeros(0), np.zeros(0)


def scored(design: Any, weight: Array, bias: Array) -> Array:
    """(N, C) scores of a dense or sparse design."""
    scores: Array = np.asarray(design @ weight.T.astype(design.dtype)) + bias
    return scores


def make_folds(targets: Array, *, kind: str, count: int = 5, seed: int = 0) -> Array:
    """(N,) fold of each row: shuffled rows, dealt out class by class, or in turn for regression."""
    if len(targets) < 2:
        raise DataError(f"Held-out scores need two rows at least, got {len(targets)}.")
    order = np.random.default_rng(seed).permutation(len(targets))
    if kind == "classification":
        order = order[np.argsort(targets[order], kind="stable")]
    folds = np.empty(len(targets), dtype=np.int64)
    folds[order] = np.arange(len(targets)) % min(count, len(targets))
    return folds


def check_rows(features: Array, targets: Array, *, outputs: int, kind: str) -> tuple[Array, Array]:
    """Features (N, D) as float64 and targets as int64 or float64, or a DataError that says what is wrong."""
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) != len(targets) or len(features) == 0:
        raise DataError(f"Expected features (N, D) and N targets, got {features.shape} and {np.shape(targets)}.")
    broken = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(broken):
        raise DataError(f"Features of row {int(broken[0])} hold NaN or infinity.")
    return features, check_targets(targets, outputs=outputs, kind=kind)


def check_targets(targets: Array, *, outputs: int, kind: str) -> Array:
    """Targets as int64 classes or float64 values, or a DataError."""
    if kind == "classification":
        codes = np.asarray(targets).astype(np.int64)
        if codes.min() < 0 or codes.max() >= outputs:
            raise DataError(f"Classes must lie in 0..{outputs - 1}, got {codes.min()}..{codes.max()}.")
        return codes
    values = np.asarray(targets, dtype=np.float64)
    if not np.isfinite(values).all():
        raise DataError(f"The target of row {int(np.flatnonzero(~np.isfinite(values))[0])} is not finite.")
    return values


def check_grid(l2_grid: Sequence[float]) -> tuple[float, ...]:
    """The strengths, all positive, or a SettingError."""
    grid = tuple(float(l2) for l2 in l2_grid)
    if not grid or min(grid) <= 0:
        raise SettingError(f"The L2 strengths {grid} cannot be used.", allowed="one or more positive numbers")
    return grid
