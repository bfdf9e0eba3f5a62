"""An encoder's model and a TF-IDF model as one: a weighted sum of their scores.

A logarithmic opinion pool (Heskes, "Selecting weighting factors in logarithmic opinion pools", NIPS 1997) for classes,
stacking with non-negative weights (Breiman, "Stacked regressions", Machine Learning 1996) for numbers. Words that a
frozen or briefly tuned encoder blurs are seen by the other model.
Left out: weights by class or by row.
Checked: tests/adapt/test_tfidf_blend.py (a grid, closed-form least squares, the network against the sum).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ontarget.errors import DataError
from ontarget.runtime.preprocess import Preprocess
from ontarget.values import Array

FOLDS = 5  # of `cross_fitted_scores` (choice)
PRIOR_ROWS = 1.0  # rows that the pull towards equal weights counts as (choice)


class TfidfBlend(torch.nn.Module):
    """input_ids, attention_mask (N, T), indices, values (N, L) -> scores (N, C) or (N, 1)."""

    def __init__(self, encoder: torch.nn.Module, tfidf: torch.nn.Module, weights: Sequence[float]) -> None:
        super().__init__()
        self.encoder, self.tfidf = encoder, tfidf
        self.weights = [float(weight) for weight in weights]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, indices: Tensor, values: Tensor) -> Tensor:
        first, second = self.weights
        scores: Tensor = first * self.encoder(input_ids, attention_mask) + second * self.tfidf(indices, values)
        return scores


def tfidf_blend(
    parts: Sequence[Array], targets: Array, *, kind: Literal["classification", "regression"], seed: int = 0
) -> tuple[Array, Array]:
    """Weights (2,) for `TfidfBlend`, and scores (N, C) or (N, 1) to judge the blend by: see `cross_fitted_scores`.

    parts: held-out scores of the encoder's model and of the TF-IDF model. Raises DataError: see `blend_weights`.
    """
    scores = cross_fitted_scores(parts, targets, kind=kind, seed=seed)
    return blend_weights(parts, targets, kind=kind), scores


def joined_preprocess(tokens: Preprocess, tfidf: Preprocess) -> Preprocess:
    """What both models take, in one pass over the texts."""
    return Preprocess("tokens+tfidf", {**tfidf.settings, **tokens.settings}, {**tfidf.files, **tokens.files})


def blend_weights(parts: Sequence[Array], targets: Array, *, kind: Literal["classification", "regression"]) -> Array:
    """(K,) float64 weights >= 0 of the models whose held-out scores ``parts`` are.

    parts: K arrays (N, C) of logits, or (N, 1) of values in the target's units. targets: (N,) indices or floats.
    Classes: least cross-entropy of softmax(sum_k w_k scores_k), with a pull towards w = 1 / K that counts as
    PRIOR_ROWS rows; the sum of the weights is free, so they calibrate too. Numbers: least squares, weights sum to 1.
    Raises DataError: no rows, shapes that differ.
    """
    stack = _checked(parts, targets)
    if kind == "regression":
        return _simplex_least_squares(stack[:, :, 0], targets.astype(np.float64))
    from scipy.optimize import minimize

    count, rows = stack.shape[:2]
    equal = np.full(count, 1 / count)
    own = stack[:, np.arange(rows), targets.astype(np.int64)]

    def loss(weights: Array) -> tuple[float, Array]:
        mixed = np.tensordot(weights, stack, axes=1)
        mixed -= mixed.max(axis=1, keepdims=True)
        exponentials = np.exp(mixed)
        totals = exponentials.sum(axis=1, keepdims=True)
        likelihood = mixed[np.arange(rows), targets.astype(np.int64)] - np.log(totals[:, 0])
        gradient = np.einsum("nc,knc->k", exponentials / totals, stack) - own.sum(axis=1)
        away = weights - equal
        return float(-likelihood.sum() + PRIOR_ROWS * away @ away) / rows, (gradient + 2 * PRIOR_ROWS * away) / rows

    found = minimize(loss, equal, jac=True, method="L-BFGS-B", bounds=[(0, None)] * count, options={"ftol": 1e-12})
    weights: Array = found.x
    return weights


def blended(parts: Sequence[Array], weights: Array) -> Array:
    """The weighted sum of scores, float32."""
    scores: Array = np.tensordot(weights, np.stack(parts).astype(np.float64), axes=1).astype(np.float32)
    return scores


def cross_fitted_scores(
    parts: Sequence[Array], targets: Array, *, kind: Literal["classification", "regression"], seed: int
) -> Array:
    """`blended` scores (N, C) or (N, 1) of which no row has had a say in its own weights: to compare with a part's.

    FOLDS folds, drawn by ``seed``; with fewer rows than folds, one row a fold. Raises DataError for a single row.
    """
    _checked(parts, targets)
    rows = len(targets)
    if rows < 2:
        raise DataError(f"Weights need at least 2 rows to be judged on, got {rows}.")
    folds = np.random.default_rng(seed).permutation(rows) % min(FOLDS, rows)
    scores = np.empty(parts[0].shape, dtype=np.float32)
    for fold in range(folds.max() + 1):
        held = folds == fold
        weights = blend_weights([part[~held] for part in parts], targets[~held], kind=kind)
        scores[held] = blended([part[held] for part in parts], weights)
    return scores


def _checked(parts: Sequence[Array], targets: Array) -> Array:
    """The scores as one float64 array (K, N, C)."""
    shapes = {part.shape for part in parts}
    if len(shapes) != 1 or len(targets) == 0 or len(parts[0]) != len(targets):
        raise DataError(f"A blend needs scores of the same shape for {len(targets)} rows, got {sorted(shapes)}.")
    return np.stack(parts).astype(np.float64)


def _simplex_least_squares(columns: Array, targets: Array) -> Array:
    """(K,) weights >= 0 that sum to 1: least squares with the sum as one row that outweighs all others."""
    from scipy.optimize import nnls

    centre = targets.mean()
    design = (columns - centre).T
    scale = 1e4 * max(1.0, float(np.abs(design).max())) * np.sqrt(len(targets))
    system = np.vstack([design, np.full((1, len(columns)), scale)])
    found: Array = nnls(system, np.concatenate([targets - centre, [scale]]))[0]
    weights: Array = found / found.sum()
    return weights
