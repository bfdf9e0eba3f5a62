"""LEEP: how well do a source model's own class predictions tell the target's classes?

Cuong V. Nguyen, Tal Hassner, Matthias Seeger, Cedric Archambeau, "LEEP: A New Measure to Evaluate Transferability of
Learned Representations", ICML 2020, arXiv 2002.12462. Official code: none by the authors; tllib.ranking.leep and
github.com/dbolya/parc have it.
Claim: the score predicts the accuracy after transfer better than NCE and the H-score.
Left out: sources without a classifier (see `nleep`).
Checked in tests/select/test_leep.py (tllib's formula, hand-worked values).

With theta(x)_z the source's probability of its class z on target row x:

    P(y, z) = 1/N sum_i [y_i = y] theta(x_i)_z,   P(y | z) = P(y, z) / P(z),
    LEEP = 1/N sum_i log sum_z P(y_i | z) theta(x_i)_z

>>> import numpy as np
>>> leep(np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]]), np.array([0, 0, 1, 1]))
0.0
"""

from __future__ import annotations

import numpy as np

from ontarget.errors import DataError
from ontarget.select._contract import RowScores, check
from ontarget.values import Array


def leep(probabilities: Array, targets: Array) -> float:
    """Mean log likelihood, at most 0, of the target's labels given the source's predictions: higher is better.

    probabilities: (N, Z) the source's class probabilities on target rows; each row sums to 1.
    targets: (N,) int class indices.
    Raises DataError: NaN, a negative probability, rows that do not sum to 1, a single class.
    Source: arXiv 2002.12462, eq. 2.
    """
    return leep_rows(probabilities, targets).value


def leep_rows(probabilities: Array, targets: Array) -> RowScores:
    """`leep` with each row's influence: its own term, and what its weight in P(y | z) adds to the others' terms."""
    probabilities, targets = check(probabilities, targets, "classification")
    if probabilities.min() < 0:
        row = int(np.argwhere(probabilities < 0)[0][0])
        raise DataError(f"probabilities: row {row} has a negative one.", next_step="give softmax outputs, not logits")
    sums = probabilities.sum(axis=1)
    off = int(np.argmax(np.abs(sums - 1)))
    if abs(sums[off] - 1) > 1e-3:
        raise DataError(f"probabilities: row {off} sums to {sums[off]:.4g}.", allowed="rows that sum to 1")
    likelihood, conditional, mass = _likelihoods(probabilities, targets)
    terms = np.log(likelihood)
    # d LEEP / d P(y, z) and / d P(z), gathered over the rows of a class once.
    n, classes = len(targets), conditional.shape[0]
    pull = np.zeros((classes, probabilities.shape[1]))
    np.add.at(pull, targets, probabilities / likelihood[:, None])
    pull /= n * np.where(mass > 0, mass, 1.0)
    back = (pull * conditional).sum(axis=0)
    influence = terms - terms.mean() + np.einsum("nz,nz->n", probabilities, pull[targets] - back)
    value = float(terms.mean())
    return RowScores(value, value + influence - influence.mean())


def _likelihoods(probabilities: Array, targets: Array) -> tuple[Array, Array, Array]:
    """(N,) likelihood of each row's label, P(y | z) (C, Z), P(z) (Z,)."""
    n, classes = len(targets), int(targets.max()) + 1
    joint = np.zeros((classes, probabilities.shape[1]))
    np.add.at(joint, targets, probabilities)
    joint /= n
    mass = joint.sum(axis=0)
    conditional = joint / np.where(mass > 0, mass, 1.0)
    likelihood = np.einsum("nz,nz->n", probabilities, conditional[targets])
    return likelihood, conditional, mass
