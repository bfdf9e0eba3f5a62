"""Multinomial logistic regression along a path of L2 strengths, by preconditioned L-BFGS.

Byrd, Lu, Nocedal, Zhu: A limited memory algorithm for bound constrained optimization (SIAM J. Sci. Comput.
1995), by SciPy's implementation. The preconditioner is Böhning's (Multinomial logistic regression algorithm,
1992) curvature at the class priors, taken as diagonal: exact at the start where the columns of the design are
orthogonal. The objective, for weights W (C, R), biases b and row weights v::

    sum_i v_i (logsumexp(W x_i + b) - (W x_i + b)[y_i]) + l2 / 2 * |W|^2

that is scikit-learn's ``LogisticRegression(C=1 / l2)``. Checked in tests/adapt/test_linear_head.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize

from ontarget.values import Array

ABSENT_MARGIN = 10.0  # logit by which a class without rows stays below all others (choice)


def class_weights(targets: Array, *, outputs: int, balanced: bool) -> Array:
    """Row weights (N,) float32 with mean 1: equal, or such that every class that occurs weighs the same."""
    if not balanced:
        return np.ones(len(targets), dtype=np.float32)
    counts = np.bincount(targets, minlength=outputs)
    weights: Array = (len(targets) / (np.count_nonzero(counts) * counts[targets])).astype(np.float32)
    return weights


def logistic_path(
    design: Any,
    targets: Array,
    *,
    outputs: int,
    l2_grid: Sequence[float],
    row_weights: Array | None = None,
    tolerance: float = 0.03,
    iterations: int = 200,
) -> Iterator[tuple[float, Array, Array]]:
    """Yield (l2, weight (C, R), bias (C,)) from the strongest L2 to the weakest, each started from the last.

    design: (N, R) float array or SciPy CSR matrix. targets: (N,) int in 0..outputs-1. Classes without rows
    get zero weights and a bias below all others.
    tolerance: largest gradient in preconditioned coordinates, where a unit is about one posterior standard
        deviation of a coefficient: 0.03 leaves errors far below the noise of the labels (choice).
    """
    present, codes = np.unique(targets, return_inverse=True)
    classes, width, rows = len(present), design.shape[1], np.arange(len(targets))
    if row_weights is None:
        row_weights = np.ones(len(targets), dtype=design.dtype)
    row_weights = row_weights.astype(design.dtype)
    total = float(row_weights.sum(dtype=np.float64))
    prior = np.bincount(codes, weights=row_weights, minlength=classes) / total
    slope = np.maximum(prior * (1 - prior), 1e-6)[:, None]
    squares = design.multiply(design) if hasattr(design, "multiply") else design**2
    energy = np.asarray(squares.T @ row_weights, dtype=np.float64).reshape(-1)
    weight = np.zeros((classes, width))
    bias = np.log(np.maximum(prior, 1e-12))
    transposed = design.T.tocsr() if hasattr(design, "tocsr") else design.T

    for l2 in sorted(l2_grid, reverse=True):
        if classes > 1:
            scale = np.concatenate([1 / np.sqrt(slope * energy + l2), 1 / np.sqrt(slope * total)], axis=1)

            def loss(flat: Array, scale: Array = scale, l2: float = l2) -> tuple[float, Array]:
                unscaled = flat.reshape(classes, width + 1) * scale
                weight, bias = unscaled[:, :-1], unscaled[:, -1]
                logits = design @ weight.T.astype(design.dtype) + bias.astype(design.dtype)
                logits -= logits.max(axis=1, keepdims=True)
                own = logits[rows, codes]
                np.exp(logits, out=logits)
                sums = logits.sum(axis=1)
                value = np.sum(row_weights * (np.log(sums) - own), dtype=np.float64) + l2 / 2 * np.sum(weight**2)
                logits *= (row_weights / sums)[:, None]
                logits[rows, codes] -= row_weights
                gradient = np.empty_like(unscaled)
                gradient[:, :-1] = (transposed @ logits).T + l2 * weight
                gradient[:, -1] = logits.sum(axis=0, dtype=np.float64)
                return float(value), (gradient * scale).reshape(-1)

            start = np.concatenate([weight, bias[:, None]], axis=1) / scale
            options = {"maxiter": iterations, "maxcor": 10, "gtol": tolerance, "ftol": 1e-10}
            found = minimize(loss, start.reshape(-1), jac=True, method="L-BFGS-B", options=options)
            unscaled = found.x.reshape(classes, width + 1) * scale
            weight, bias = unscaled[:, :-1], unscaled[:, -1]
            bias = bias - bias.mean()
        full_weight = np.zeros((outputs, width))
        full_bias = np.full(outputs, float(bias.min()) - ABSENT_MARGIN)
        full_weight[present], full_bias[present] = weight, bias
        yield float(l2), full_weight, full_bias
