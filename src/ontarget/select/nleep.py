"""N-LEEP: LEEP for sources without a classifier; clusters of their features take the place of source classes.

Yandong Li, Xuhui Jia, Ruoxin Sang, Yukun Zhu, Bradley Green, Liqiang Wang, Boqing Gong, "Ranking Neural Checkpoints",
CVPR 2021, arXiv 2011.11200. Official code: none.
Claim: on checkpoints of different kinds, supervised or not, it ranks better than LEEP, H-score and LogME's
predecessors.
Left out: the paper's combination with dropout and its study of layers.
Checked in tests/select/test_leep.py (against LEEP of scikit-learn's mixture); no claim of its own.

The features' principal components that hold a share of the energy are clustered by a Gaussian mixture; LEEP of the
components' posteriors is the score.

>>> import numpy as np
>>> rows = np.concatenate([np.zeros((20, 2)), np.full((20, 2), 9.0)]) + np.random.default_rng(0).normal(size=(40, 2))
>>> round(nleep(rows, np.repeat([0, 1], 20), components=1), 3)
-0.0
"""

from __future__ import annotations

import warnings

import numpy as np

from ontarget.errors import SettingError
from ontarget.select._contract import RowScores, check
from ontarget.select.leep import leep_rows
from ontarget.values import Array

ENERGY = 0.8  # share of the variance that the principal components keep (as usual for this score)
COMPONENTS = 5  # of the mixture, for each class of the target (as usual)


def nleep(
    features: Array,
    targets: Array,
    *,
    energy: float = ENERGY,
    components: int = COMPONENTS,
    seed: int = 0,
) -> float:
    """Mean log likelihood, at most 0, of the labels given the features' clusters: higher transfers better.

    features: (N, D) float. targets: (N,) int class indices. energy: share of variance kept, in (0, 1].
    components: clusters for each class; no more than a fifth of the rows in all (choice).
    Diagonal covariances, started by k-means with the seed (choice: full ones need more rows than a target has).
    Raises DataError: NaN features, a single class; SettingError: energy or components out of range.
    Source: arXiv 2011.11200, section 3.2.
    """
    return nleep_rows(features, targets, energy=energy, components=components, seed=seed).value


def nleep_rows(
    features: Array,
    targets: Array,
    *,
    energy: float = ENERGY,
    components: int = COMPONENTS,
    seed: int = 0,
) -> RowScores:
    """`nleep` with each row's influence; the clusters are held (choice)."""
    features, targets = check(features, targets, "classification")
    if not 0 < energy <= 1:
        raise SettingError(f"energy is {energy}.", allowed="above 0, at most 1", option="energy")
    if components < 1:
        raise SettingError(f"components is {components}.", allowed="1 or more", option="components")
    posteriors = _posteriors(_principal(features, energy), components * (int(targets.max()) + 1), seed)
    return leep_rows(posteriors, targets)


def _principal(features: Array, energy: float) -> Array:
    """Principal components with at least ``energy`` of the variance; one column of zeros for constant features."""
    centred = features - features.mean(axis=0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    variance = singular**2
    if variance.sum() <= 1e-20 * max(1.0, float(np.abs(features).max()) ** 2) * len(features):
        return np.zeros((len(features), 1))
    share = np.cumsum(variance) / variance.sum()
    kept = int(np.searchsorted(share, energy - 1e-12)) + 1
    found: Array = left[:, :kept] * singular[:kept]
    return found


def _posteriors(rows: Array, components: int, seed: int) -> Array:
    """(N, K) probability of each mixture component."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    distinct = len(np.unique(np.round(rows, 9), axis=0))
    count = max(1, min(components, len(rows) // 5, distinct))
    # Signs of principal axes are arbitrary, rows may come in any order: neither may decide where k-means starts.
    rows = rows * np.where(rows[np.abs(rows).argmax(axis=0), np.arange(rows.shape[1])] < 0, -1.0, 1.0)
    order = np.lexsort(np.round(rows, 6).T)
    mixture = GaussianMixture(count, covariance_type="diag", random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(rows[order])
    posteriors: Array = mixture.predict_proba(rows)
    shares: Array = posteriors / posteriors.sum(axis=1, keepdims=True)
    return shares
