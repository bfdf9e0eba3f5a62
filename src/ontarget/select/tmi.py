"""TMI: rank pretrained models by the class-conditional entropy of their features.

Huiwen Xu, U Kang, "Fast and Accurate Transferability Measurement by Evaluating Intra-class Feature Variance",
ICCV 2023, arXiv 2308.05986. Official code: github.com/snudatalab/TMI (non-commercial; this is written afresh).
Claim: against LEEP, LogME and H-score-type scores, TMI picks better top-5 models and correlates better with
fine-tuned accuracy on 13 of 17 targets.
Left out: the choice between layers of one model (score each layer's features as a source of its own).
Checked in tests/select/test_tmi.py (hand-worked values, the official code's numbers) and claims/20_tmi.py.

For each class c with n_c rows, the Kozachenko-Leonenko entropy in the maximum norm

    H_c = psi(n_c) - psi(k) + (D / n_c) sum_i log(2 r_i),    r_i = max(distance to the k-th neighbour in c, floor)

and TMI = (1 / C) sum_c (n_c / N) H_c. The sum grows with D and with the features' magnitude, and features
whose distances all fall below the floor are scored by D and the class sizes alone: the share of floored distances
belongs beside the score. `tmi_scaled` is this toolkit's addition that divides both out.

>>> import numpy as np
>>> tmi(np.array([[0.0], [2.0], [10.0], [14.0]]), np.array([0, 0, 1, 1]), neighbours=1)  # mean log(4) + 1, log(8) + 1
1.3664...
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist, squareform
from scipy.special import digamma

from ontarget.errors import SettingError
from ontarget.select._contract import RowScores, check_class_sizes, check_features, check_targets
from ontarget.values import Array

TREE_DIMENSIONS = 12  # up to here a k-d tree is faster than all pairs (choice, measured at 1,000 rows a class)
PAIRS_AT_ONCE = 4096  # rows of a class up to which all pairs are held in memory: 67 MB


def tmi(features: Array, targets: Array, *, neighbours: int = 3, min_distance: float = 1.0) -> float:
    """Class-conditional entropy of the features in nats, divided by the number of classes: higher transfers better.

    features: (N, D) float, pooled before the head, evaluation mode. targets: (N,) int class indices.
    neighbours: k >= 1. min_distance: floor of the distances, > 0, in units of the features.
    Raises DataError: NaN features; a class with ``neighbours`` rows or fewer. (The published code drops classes of
    2 to k rows without a word and counts one row as 0.) Classes without a row count 0, as published.
    Source: arXiv 2308.05986, eq. 4 and algorithm 1; r_i are float32 (relative error 1e-7).
    """
    return tmi_rows(features, targets, neighbours=neighbours, min_distance=min_distance).value


def tmi_scaled(features: Array, targets: Array, *, neighbours: int = 3, min_distance: float = 1e-3) -> float:
    """TMI per dimension of features scaled to unit average norm (choice): width and magnitude win nothing.

    The floor applies after scaling and only keeps duplicate rows from counting as infinitely close (choice).
    Parameters and errors as for `tmi`.
    """
    return tmi_scaled_rows(features, targets, neighbours=neighbours, min_distance=min_distance).value


def floored_share(features: Array, targets: Array, *, neighbours: int = 3, min_distance: float = 1.0) -> float:
    """Share, 0 to 1, of the distances that the floor replaces; at 1, TMI says nothing about the features."""
    return float(np.mean(find_neighbours(features, targets, neighbours=neighbours).distances < min_distance))


@dataclass(frozen=True)
class Neighbours:
    """Each row's k nearest rows of its own class in the maximum norm; not floored, in units of the features.

    distances: (N,) to the k-th. next_distances: (N,) to the one after it, the k-th if there is none.
    nearest: (N, k) positions. norm: mean Euclidean norm of the centred rows.
    """

    distances: Array
    next_distances: Array
    nearest: Array
    norm: float
    dim: int


def tmi_rows(
    features: Array,
    targets: Array,
    *,
    neighbours: int = 3,
    min_distance: float = 1.0,
    found: Neighbours | None = None,
) -> RowScores:
    """`tmi` with each row's influence. found: from `find_neighbours`, where they are known already.

    A row's influence is its own term, and what the distances of the rows that it is a neighbour of would grow by if
    it were not there (delete-one jackknife). Terms alone give intervals that are a third too narrow, resampled
    rows copies at distance 0; this one is rather too wide, by up to a third (choice).
    """
    found = found or find_neighbours(features, targets, neighbours=neighbours)
    rows = _rows(np.asarray(targets), found, 1.0, min_distance)
    share = float(np.mean(found.distances < min_distance))
    note = (f"tmi: {share:.0%} of the distances are floored at {min_distance:g}",) if share else ()
    return RowScores(float(rows.mean()), rows, notes=note)


def tmi_scaled_rows(
    features: Array,
    targets: Array,
    *,
    neighbours: int = 3,
    min_distance: float = 1e-3,
    found: Neighbours | None = None,
) -> RowScores:
    """`tmi_scaled` with each row's influence; parameters as for `tmi_rows`."""
    found = found or find_neighbours(features, targets, neighbours=neighbours)
    rows = _rows(np.asarray(targets), found, found.norm or 1.0, min_distance) / found.dim
    return RowScores(float(rows.mean()), rows)


def find_neighbours(features: Array, targets: Array, *, neighbours: int = 3) -> Neighbours:
    """The neighbours that TMI needs; they do not depend on the floor or on the features' scale."""
    features = check_features(features)
    targets = check_targets(targets, len(features), "classification")
    if neighbours < 1:
        raise SettingError(f"neighbours is {neighbours}.", allowed="1 or more", option="neighbours")
    check_class_sizes(targets, neighbours)
    features = features - features.mean(axis=0)  # float32 keeps more digits of what is near 0
    distances, after = np.empty(len(features)), np.empty(len(features))
    nearest = np.empty((len(features), neighbours), dtype=np.int64)
    for label in np.unique(targets):
        members = np.flatnonzero(targets == label)
        count = min(neighbours + 1, len(members) - 1)
        sorted_distances, positions = _nearest(features[members], count)
        distances[members] = sorted_distances[:, neighbours - 1]
        after[members] = sorted_distances[:, -1]
        nearest[members] = members[positions[:, :neighbours]]
    norm = float(np.linalg.norm(features, axis=1).mean())
    return Neighbours(distances, after, nearest, norm, features.shape[1])


def _nearest(rows: Array, count: int) -> tuple[Array, Array]:
    """Distances and positions (n, count) of the nearest other rows, nearest first."""
    n, dim = rows.shape
    if dim <= TREE_DIMENSIONS:
        found, positions = cKDTree(rows).query(rows, count + 1, p=np.inf)
        # Each row is its own first neighbour, unless a copy of it came first.
        own = positions == np.arange(n)[:, None]
        own[~own.any(axis=1), -1] = True
        return found[~own].reshape(n, count), positions[~own].reshape(n, count)
    if n <= PAIRS_AT_ONCE:
        # torch.pdist is several times faster here than scipy's: single precision, each pair once.
        pairs = torch.pdist(torch.from_numpy(rows.astype(np.float32)), p=float("inf")).numpy()
        return _smallest(squareform(pairs, checks=False), 0, count)
    step = PAIRS_AT_ONCE**2 // n
    blocks = [_smallest(cdist(rows[s : s + step], rows, "chebyshev"), s, count) for s in range(0, n, step)]
    return np.concatenate([block[0] for block in blocks]), np.concatenate([block[1] for block in blocks])


def _smallest(distances: Array, first: int, count: int) -> tuple[Array, Array]:
    """The ``count`` smallest of each row and where; row i is row ``first + i`` of all, and no neighbour of itself."""
    own = np.arange(len(distances))
    distances[own, own + first] = np.inf
    positions = np.argpartition(distances, count - 1, axis=1)[:, :count]
    values = np.take_along_axis(distances, positions, axis=1)
    order = np.argsort(values, axis=1, kind="stable")
    sorted_values = np.take_along_axis(values, order, axis=1).astype(np.float64)
    return sorted_values, np.take_along_axis(positions, order, axis=1)


def _rows(targets: Array, found: Neighbours, norm: float, floor: float) -> Array:
    """(N,) terms of the entropy divided by the number of classes, with influences of mean 0; the mean is TMI."""
    if not floor > 0:
        raise SettingError(f"min_distance is {floor}.", allowed="more than 0", option="min_distance")
    sizes = np.bincount(targets)
    k = found.nearest.shape[1]
    logs = np.log(np.maximum(found.distances / norm, floor))
    terms = digamma(sizes[targets]) - digamma(k) + found.dim * (np.log(2) + logs)
    growth = found.dim * (np.log(np.maximum(found.next_distances / norm, floor)) - logs)
    lost = np.bincount(found.nearest.ravel(), weights=np.repeat(growth, k), minlength=len(targets))
    return np.asarray((terms - lost + lost.mean()) / len(sizes))
