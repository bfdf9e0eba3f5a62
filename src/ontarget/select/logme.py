"""LogME: Practical Assessment of Pre-trained Models for Transfer Learning.

Kaichao You, Yong Liu, Jianmin Wang, Mingsheng Long, ICML 2021, arXiv 2102.11005; the fixed-point iteration is from
"Ranking and Tuning Pre-trained Models", JMLR 2022, arXiv 2110.10545. Official code: github.com/thuml/LogME.
Claim: the logarithm of the maximum evidence of a Bayesian linear model on frozen features ranks pretrained models
like fine-tuning does, 3,000 times faster.
Left out: posterior means for prediction (see `linear_probe`); targets with several columns.
Checked in tests/select/test_logme.py (the official code's numbers, a direct marginal likelihood) and timed against
the official code by benchmarks/logme.py.

With weights m ~ N(0, 1/alpha), noise N(0, 1/beta), F = features, t = alpha / beta, sigma = eigenvalues of F'F:

    log p(y | F) = N/2 log beta + D/2 log alpha - N/2 log 2 pi - 1/2 sum_j log(alpha + beta sigma_j)
                   - beta/2 |F m - y|^2 - alpha/2 |m|^2,          m = (F'F + t)^-1 F'y
    gamma = sum_j sigma_j / (t + sigma_j),   alpha <- gamma / |m|^2,   beta <- (N - gamma) / |F m - y|^2

LogME is its maximum over alpha, beta, divided by N, averaged over one-hot classes. Nothing here needs an
eigenvector: F'F (or FF', the smaller one) is brought to tridiagonal form T = Q'F'FQ once; then gamma, the
determinant, |m|^2 and |F m - y|^2 come from O(D) factorisations of T + t, all classes in one call.

>>> import numpy as np
>>> logme(np.array([[1.0], [1.0], [-1.0], [-1.0]]), np.array([1, 1, 0, 0]))
-1.0069...
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import sparse
from scipy.linalg import lapack

from ontarget.select._contract import RowScores, check
from ontarget.select._symmetric import blas_threads, eigh, gram, tridiagonal
from ontarget.values import Array

STEPS = 11  # as published: at most 11 steps, until t changes by at most 0.1%; it may stop short of the maximum
TOLERANCE = 1e-3
DENSE_CLASSES = 16  # up to so many, a dense product is faster than a sparse one (measured)
EPSILON = 1e-5  # as published, keeps alpha and beta finite


@dataclass(frozen=True)
class _Problem:
    """The regression in coordinates where F'F (primal) or FF' (dual) is tridiagonal.

    right: (K, C) F'y (primal) or y (dual) in these coordinates. squares: (C,) |y|^2.
    """

    diagonal: Array
    off: Array
    right: Array
    dual: bool
    squares: Array
    rows: int
    dim: int


@dataclass(frozen=True)
class _Fit:
    """Maximised evidence per row and the precisions of weights and noise: (C,) each."""

    evidence: Array
    alpha: Array
    beta: Array


def logme(
    features: Array,
    targets: Array,
    *,
    kind: Literal["classification", "regression"] = "classification",
    published_code: bool = False,
) -> float:
    """Log of the maximum evidence per row: higher transfers better; comparable between sources of any width.

    features: (N, D) float, no intercept is added. targets: (N,) int class indices, or (N,) float.
    published_code: reproduce the official fixed-point code also where N < D. There it sums log(alpha + beta
    sigma_j) over N eigenvalues and leaves out the D - N others, each of which is 0 and adds log(alpha); wide
    features score better for it. The paper's equation and the authors' earlier code (``_fit_icml``) have these
    terms, and so has the default (choice). With N >= D both are equal.
    Raises DataError: NaN features, a single class, constant targets.
    Source: arXiv 2102.11005, eq. 2; arXiv 2110.10545, algorithm 3.
    """
    features, targets = check(features, targets, kind)
    with blas_threads(features.size * min(features.shape)):
        product, right, squares, dual = _gram(features, targets, kind)
        diagonal, off, right = tridiagonal(product, right)
        problem = _Problem(diagonal, off, right, dual, squares, *features.shape)
        return float(np.mean(_fixed_point(problem, published_code).evidence))


def logme_rows(
    features: Array, targets: Array, *, kind: Literal["classification", "regression"] = "classification"
) -> RowScores:
    """`logme` with each row's influence on it.

    At the maximum, alpha, beta and m can be held fixed (envelope theorem), and the derivative of the log evidence
    by the weight of row i is the row's expected log likelihood under the posterior,
    log(beta / 2 pi) / 2 - beta/2 [(y_i - f_i m)^2 + f_i A^-1 f_i], A = alpha + beta F'F. Residuals are those of a
    fit without the row, squared in part (choice): the product of both residuals, which removes the optimism of
    in-sample residuals that makes intervals too narrow when D is not small against N.
    """
    features, targets = check(features, targets, kind)
    product, right, squares, dual = _gram(features, targets, kind)
    eigenvalues, vectors = eigh(product)
    right = vectors.T @ right
    problem = _Problem(eigenvalues, np.zeros(len(eigenvalues) - 1), right, dual, squares, *features.shape)
    fit = _fixed_point(problem, published_code=False)
    # (K, C): what the fit multiplies coordinates with, and (N, K): rows of F (of the identity, if dual) in them.
    weights = (eigenvalues[:, None] if dual else 1.0) / (eigenvalues[:, None] + fit.alpha / fit.beta)
    basis = vectors if dual else features @ vectors
    outputs = np.eye(right.shape[1])[targets] if kind == "classification" else targets[:, None]
    residuals = outputs - basis @ (weights * right)
    leverage = basis**2 @ weights
    squared_errors = residuals**2 / np.maximum(1 - leverage, 1e-3)
    influence = (0.5 * np.log(fit.beta) - 0.5 * fit.beta * squared_errors - 0.5 * leverage).mean(axis=1)
    value = float(fit.evidence.mean())
    return RowScores(value, value + influence - influence.mean())


def _fixed_point(problem: _Problem, published_code: bool) -> _Fit:
    """Maximise the evidence of every column over alpha and beta, in the published steps, all columns at once."""
    n, size, columns = problem.rows, len(problem.diagonal), problem.right.shape[1]
    # Below this, T + t is singular to rounding.
    smallest = 1e-15 * float(np.max(np.abs(problem.diagonal), initial=0.0)) + 1e-300
    alpha, beta = np.ones(columns), np.ones(columns)
    gamma, weights, residual = np.zeros(columns), np.zeros(columns), np.zeros(columns)
    active = np.arange(columns)
    for _ in range(STEPS):
        t = np.maximum(alpha[active] / beta[active], smallest)
        right = problem.right[:, active].T
        z, trace = _solve(problem, right, t)
        squared, product = np.einsum("ck,ck->c", z, z), np.einsum("ck,ck->c", z, right)
        if problem.dual:  # F m - y = -t z and |m|^2 = z'FF'z
            residual[active] = t**2 * squared
            weights[active] = np.maximum(product - t * squared, 0)
        else:  # m = z and |F m - y|^2 = y'y - 2 z'F'y + z'F'F z
            residual[active] = np.maximum(problem.squares[active] - product - t * squared, 0)
            weights[active] = squared
        gamma[active] = size - t * trace
        alpha[active] = np.maximum(gamma[active] / (weights[active] + EPSILON), 1e-200)  # 0 if all features are 0
        beta[active] = (n - gamma[active]) / (residual[active] + EPSILON)
        active = active[np.abs(alpha[active] / beta[active] - t) / t > TOLERANCE]
        if len(active) == 0:
            break
    log_det = _log_determinant(problem, np.maximum(alpha / beta, smallest)) + size * np.log(beta)
    counted = problem.dim if published_code else size
    evidence = 0.5 * (counted * np.log(alpha) + n * np.log(beta) - log_det)
    evidence -= 0.5 * (beta * residual + alpha * weights + n * np.log(2 * np.pi))
    return _Fit(evidence / n, alpha, beta)


def _solve(problem: _Problem, right: Array, t: Array) -> tuple[Array, Array]:
    """(T + t_c)^-1 right_c and the trace of (T + t_c)^-1, for every column c; right: (C, K), t: (C,).

    The columns' matrices make one long tridiagonal matrix with gaps. The inverse's diagonal follows from the pivots
    of elimination from the top and from the bottom: 1 / (top + bottom - diagonal).
    """
    diagonal, off = _stack(problem, t)
    top, lower, _ = lapack.dpttrf(diagonal, off)
    bottom = lapack.dpttrf(diagonal[::-1], off[::-1])[0][::-1]
    sides = np.zeros((len(diagonal), 1))
    sides[:-1, 0] = right.ravel()
    z = lapack.dpttrs(top, lower, sides, overwrite_b=1)[0][:-1].reshape(right.shape)
    inverse = 1 / (top + bottom - diagonal)[:-1]
    return z, inverse.reshape(right.shape).sum(axis=1)


def _log_determinant(problem: _Problem, t: Array) -> Array:
    """(C,) log |T + t_c|."""
    pivots = lapack.dpttrf(*_stack(problem, t))[0][:-1]
    return np.asarray(np.log(pivots).reshape(len(t), -1).sum(axis=1))


def _stack(problem: _Problem, t: Array) -> tuple[Array, Array]:
    """Diagonal and off-diagonal of all T + t_c in a row; a last 1 by itself, as LAPACK wants two rows or more."""
    diagonal, off = np.ones(len(t) * len(problem.diagonal) + 1), np.zeros((len(t), len(problem.diagonal)))
    np.add(problem.diagonal, t[:, None], out=diagonal[:-1].reshape(off.shape))
    off[:, :-1] = problem.off
    return diagonal, off.ravel()


def _gram(features: Array, targets: Array, kind: str) -> tuple[Array, Array, Array, bool]:
    """The smaller Gram matrix (its lower triangle), its right-hand sides, |y|^2, and whether it is FF'."""
    n, dim = features.shape
    dual = n <= dim
    if kind == "classification":
        classes = int(targets.max()) + 1
        if dual:
            right = np.eye(classes)[targets]
        elif classes <= DENSE_CLASSES:
            right = features.T @ np.eye(classes)[targets]
        else:  # as a sparse matrix, one-hot targets cost N D for all classes together, not for each
            one_hot = sparse.csr_array((np.ones(n), (targets, np.arange(n))), shape=(classes, n))
            right = (one_hot @ features).T
        squares = np.bincount(targets).astype(np.float64)
    else:
        right = targets[:, None] if dual else (features.T @ targets)[:, None]
        squares = np.array([targets @ targets])
    return gram(features.T.copy() if dual else features), right, squares, dual
