"""k nearest neighbours, leave-one-out: the cheapest honest answer to "do these features know the target?".

T. Cover, P. Hart, "Nearest Neighbor Pattern Classification", IEEE Trans. Information Theory 1967.
Official code: none. Claim: none of its own; a baseline that every other score has to beat.
Left out: approximate search (rows are capped before they come here); distance weights.
Checked in tests/select/test_nearest_neighbours.py against scikit-learn.

>>> import numpy as np
>>> features = np.array([[0.0], [1.0], [2.0], [9.0], [10.0], [2.5]])
>>> nearest_neighbours(features, np.array([0, 0, 0, 1, 1, 1]), neighbours=1)  # 2.0 and 2.5 are each other's nearest
0.6666...
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from ontarget.errors import SettingError
from ontarget.select._contract import RowScores, check, r2_rows
from ontarget.values import Array

BLOCK = 1024  # rows whose distances to all others are held at once


def nearest_neighbours(
    features: Array,
    targets: Array,
    *,
    kind: Literal["classification", "regression"] = "classification",
    neighbours: int = 5,
    metric: Literal["euclidean", "cosine"] = "euclidean",
) -> float:
    """Leave-one-out accuracy of a majority vote (classification) or R2 of the mean (regression).

    features: (N, D) float. targets: (N,) int class indices, or (N,) float. neighbours: 1 to N - 1; more are cut to
    N - 1. A tied vote goes to the tied class with the nearest neighbour. Distances are float32.
    Raises DataError: NaN features, a single class, constant targets.
    """
    return nearest_neighbours_rows(features, targets, kind=kind, neighbours=neighbours, metric=metric).value


def nearest_neighbours_rows(
    features: Array,
    targets: Array,
    *,
    kind: Literal["classification", "regression"] = "classification",
    neighbours: int = 5,
    metric: Literal["euclidean", "cosine"] = "euclidean",
) -> RowScores:
    """`nearest_neighbours` with each row's correctness, or its influence on R2."""
    features, targets = check(features, targets, kind)
    if neighbours < 1:
        raise SettingError(f"neighbours is {neighbours}.", allowed="1 or more", option="neighbours")
    if metric not in ("euclidean", "cosine"):
        raise SettingError(f"metric is '{metric}'.", allowed="euclidean or cosine", option="metric")
    nearest = _nearest(features, min(neighbours, len(features) - 1), metric)
    if kind == "regression":
        return r2_rows(targets, targets - targets[nearest].mean(axis=1))
    n, k = nearest.shape
    votes = np.zeros((n, int(targets.max()) + 1))
    for place in range(k):
        # All smaller weights together are below 1/2, so they decide between equal counts only, nearest first.
        votes[np.arange(n), targets[nearest[:, place]]] += 1 + 2.0 ** -(place + 2)
    correct = votes.argmax(axis=1) == targets
    return RowScores(float(correct.mean()), correct.astype(np.float64), proportion=True)


def _nearest(features: Array, k: int, metric: str) -> Array:
    """(N, k) positions of the nearest other rows, nearest first."""
    # Where a mean is large against the spread, float32 distances would lose it: centre first, unless angles count.
    rows = features if metric == "cosine" else features - features.mean(axis=0)
    rows = rows.astype(np.float32)
    if metric == "cosine":
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    squares = np.einsum("nd,nd->n", rows, rows)
    found = np.empty((len(rows), k), dtype=np.int64)
    for start in range(0, len(rows), BLOCK):
        block = slice(start, min(start + BLOCK, len(rows)))
        distances = rows[block] @ rows.T
        distances *= -2
        distances += squares  # |a - b|^2 - |a|^2: the same order within a row
        own = np.arange(block.start, block.stop)
        distances[own - start, own] = np.inf
        candidates = np.argpartition(distances, k - 1, axis=1)[:, :k]
        order = np.argsort(np.take_along_axis(distances, candidates, axis=1), axis=1, kind="stable")
        found[block] = np.take_along_axis(candidates, order, axis=1)
    return found
