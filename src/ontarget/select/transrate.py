"""TransRate: how many bits do features spend on telling the classes apart?

Long-Kai Huang, Junzhou Huang, Yu Rong, Qiang Yang, Ying Wei, "Frustratingly Easy Transferability Estimation", ICML
2022, arXiv 2106.09362. Official code: in the paper's appendix; tllib.ranking.transrate repeats it.
Claim: the mutual information of features and labels, estimated by coding rates, correlates better with fine-tuned
accuracy than LEEP, NCE, H-score and LogME, at a fraction of their time.
Left out: the label-based choice between layers (score each layer as a source of its own).
Checked in tests/select/test_transrate.py (the published formulas, hand-worked values); no claim of its own.

    R(Z) = 1/2 log det(I + Z'Z / (n eps)),        TransRate = R(Z) - (1 / C) sum_c R(Z_c)

with Z centred once, over all rows, and Z_c its rows of class c. The rate needs only the smaller Gram matrix.

>>> import numpy as np
>>> transrate(np.array([[1.0], [1.0], [-1.0], [-1.0]]), np.array([0, 0, 1, 1]))  # each class has the whole variance
0.0
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from ontarget.errors import SettingError
from ontarget.select._contract import RowScores, check
from ontarget.values import Array

DISTORTION = 1e-4


def transrate(features: Array, targets: Array, *, distortion: float = DISTORTION) -> float:
    """Coding rate of all features minus the mean over the classes', in nats: higher transfers better.

    features: (N, D) float. targets: (N,) int class indices. distortion: eps > 0, in squared units of the features.
    Neither width nor magnitude is divided out: compare sources of like features, or scale them first.
    Raises DataError: NaN features, a single class; SettingError: a distortion of 0 or less.
    Source: arXiv 2106.09362, eq. 4 and appendix; classes without a row are left out of the mean (the published code
    counts them with a rate of NaN).
    """
    return transrate_rows(features, targets, distortion=distortion).value


def transrate_rows(features: Array, targets: Array, *, distortion: float = DISTORTION) -> RowScores:
    """`transrate` with each row's influence: 1/2 z' (eps I + S)^-1 z less its mean, S the second moment of the set."""
    features, targets = check(features, targets, "classification")
    if not distortion > 0:
        raise SettingError(f"distortion is {distortion}.", allowed="more than 0", option="distortion")
    centred = features - features.mean(axis=0)
    total, influence = _rate(centred, distortion)
    classes = np.unique(targets)
    for label in classes:
        members = np.flatnonzero(targets == label)
        rate, shares = _rate(centred[members], distortion)
        total -= rate / len(classes)
        influence[members] -= shares * len(targets) / len(members) / len(classes)
    return RowScores(total, total + influence - influence.mean())


def _rate(rows: Array, distortion: float) -> tuple[float, Array]:
    """Coding rate of (n, D) rows, and the influence (n,) of each row's weight, with mean 0."""
    n, dim = rows.shape
    wide = dim > n
    gram = (rows @ rows.T if wide else rows.T @ rows) / (n * distortion)
    gram[np.diag_indices(len(gram))] += 1.0
    factor = cho_factor(gram, lower=True, overwrite_a=True, check_finite=False)
    rate = float(np.log(np.diag(factor[0])).sum())
    # z' (eps + S)^-1 z; with the rows' Gram matrix G it is n (1 - (I + G / (n eps))^-1_ii), by Woodbury's identity.
    if wide:
        leverage = n * (1 - np.diag(cho_solve(factor, np.eye(n), check_finite=False)))
    else:
        leverage = np.einsum("nd,dn->n", rows, cho_solve(factor, rows.T, check_finite=False)) / distortion
    return rate, 0.5 * (leverage - leverage.mean())
