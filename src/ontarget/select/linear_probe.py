"""Linear probe: cross-validated ridge classification or regression on frozen features, in closed form.

Arthur Hoerl, Robert Kennard, "Ridge Regression", Technometrics 1970; exact leave-out residuals: M. Stone,
"Cross-Validatory Choice and Assessment of Statistical Predictions", JRSS B 1974 (PRESS, here for whole folds).
Official code: none. Claim: none of its own; the baseline that decides a ranking unless another score is named.
Left out: logistic loss (L-BFGS heads are in adapt/tune), class weights.
Checked in tests/select/test_linear_probe.py against scikit-learn's Ridge refitted for every fold.

With standardised features X = U S V', one eigendecomposition serves every penalty: the fit is H y with
H = 1/N + U diag(s^2 / (s^2 + penalty)) U', and the residuals of fold F when it is left out are exactly
(I - H_FF)^-1 (y - H y)_F, without fitting again.

>>> import numpy as np
>>> linear_probe(np.arange(20.0)[:, None], np.repeat([0, 1], 10))
1.0
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from ontarget.errors import SettingError
from ontarget.select._contract import RowScores, centred_one_hot, check, r2_rows
from ontarget.select._symmetric import eigh
from ontarget.values import Array

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # times the mean eigenvalue of X'X (choice)
RANK_TOLERANCE = 1e-10  # eigenvalues below this share of the largest are 0


def linear_probe(
    features: Array,
    targets: Array,
    *,
    kind: Literal["classification", "regression"] = "classification",
    folds: int = 10,
    penalties: tuple[float, ...] = PENALTIES,
    seed: int = 0,
) -> float:
    """Accuracy (one-hot least squares, largest output wins) or R2 of a ridge model on rows it was not fitted on.

    features: (N, D) float; columns are standardised. targets: (N,) int class indices, or (N,) float.
    folds: 2 or more, stratified; cut to the size of the smallest class with two rows or more. (Leaving out single
    rows of balanced classes would score uninformative features below chance.) penalties: multiples of the mean
    eigenvalue; the one with the least squared leave-one-out error is taken (choice: by squared error on all rows,
    not by the accuracy that is then reported).
    Raises DataError: NaN features, a single class, constant targets.
    """
    return linear_probe_rows(features, targets, kind=kind, folds=folds, penalties=penalties, seed=seed).value


def linear_probe_rows(
    features: Array,
    targets: Array,
    *,
    kind: Literal["classification", "regression"] = "classification",
    folds: int = 10,
    penalties: tuple[float, ...] = PENALTIES,
    seed: int = 0,
) -> RowScores:
    """`linear_probe` with each row's correctness when left out, or its influence on R2."""
    features, targets = check(features, targets, kind)
    if folds < 2:
        raise SettingError(f"folds is {folds}.", allowed="2 or more", option="folds")
    if not penalties or min(penalties) <= 0:
        raise SettingError(f"penalties are {penalties}.", allowed="numbers above 0", option="penalties")
    basis, eigenvalues = _standardised_basis(features)
    outputs = centred_one_hot(targets, kind)
    shrink = _choose(basis, eigenvalues, outputs, penalties)
    fold_of_row = _folds(targets, kind, folds, seed)
    residuals = _left_out_residuals(basis, shrink, outputs, fold_of_row)
    if kind == "regression":
        return r2_rows(targets, residuals[:, 0])
    correct = (outputs - residuals + np.bincount(targets) / len(targets)).argmax(axis=1) == targets
    return RowScores(float(correct.mean()), correct.astype(np.float64), proportion=True)


def _standardised_basis(features: Array) -> tuple[Array, Array]:
    """U (N, K) and eigenvalues (K,) of X X' for standardised X; constant columns are left out."""
    centred = features - features.mean(axis=0)
    spread = np.sqrt(np.einsum("nd,nd->d", centred, centred) / len(centred))
    # A column that varies by rounding error only is constant.
    varies = spread > 1e-12 * np.maximum(np.abs(features).max(axis=0), 1e-300)
    if not varies.any():
        return np.zeros((len(features), 0)), np.zeros(0)
    centred = (centred if varies.all() else centred[:, varies]) / spread[varies]
    wide = centred.shape[1] >= len(centred)
    values, vectors = eigh(centred @ centred.T if wide else centred.T @ centred)
    keep = values > values[-1] * RANK_TOLERANCE
    values, vectors = values[keep], vectors[:, keep]
    return (vectors if wide else (centred @ vectors) / np.sqrt(values)), values


def _choose(basis: Array, eigenvalues: Array, outputs: Array, penalties: tuple[float, ...]) -> Array:
    """(K,) s^2 / (s^2 + penalty) for the penalty with the least squared leave-one-out error."""
    if len(eigenvalues) == 0:
        return eigenvalues
    projected, squared = basis.T @ outputs, basis**2
    best, best_error = eigenvalues, np.inf
    for penalty in penalties:
        shrink = eigenvalues / (eigenvalues + penalty * eigenvalues.mean())
        residuals = outputs - basis @ (shrink[:, None] * projected)
        kept = np.maximum(1 - 1 / len(basis) - squared @ shrink, 1e-10)
        error = float(np.sum((residuals / kept[:, None]) ** 2))
        if error < best_error:
            best, best_error = shrink, error
    return best


def _left_out_residuals(basis: Array, shrink: Array, outputs: Array, fold_of_row: Array) -> Array:
    """(N, C) residuals of each row under the fit without its fold."""
    fitted = basis @ (shrink[:, None] * (basis.T @ outputs))
    residuals = np.empty_like(outputs)
    for fold in range(int(fold_of_row.max()) + 1):
        rows = np.flatnonzero(fold_of_row == fold)
        part = basis[rows]
        kept = np.eye(len(rows)) - (part * shrink) @ part.T - 1 / len(basis)
        residuals[rows] = np.linalg.solve(kept, outputs[rows] - fitted[rows])
    return residuals


def _folds(targets: Array, kind: str, folds: int, seed: int) -> Array:
    """(N,) fold of each row, shuffled; every class is dealt out over the folds in turn."""
    order = np.random.default_rng(seed).permutation(len(targets))
    if kind == "classification":
        sizes = np.bincount(targets)
        folds = min(folds, int(sizes[sizes >= 2].min(initial=2 if sizes.max() < 2 else len(targets))))
        order = order[np.argsort(targets[order], kind="stable")]
    fold_of_row = np.empty(len(targets), dtype=np.int64)
    fold_of_row[order] = np.arange(len(targets)) % min(folds, len(targets))
    return fold_of_row
