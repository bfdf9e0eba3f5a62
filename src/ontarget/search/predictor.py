"""A predictor of one objective from one-hot codes: ridge regression or RBF support vectors, whichever errs less.

Sarah et al., arXiv 2202.12954, section 3; official code: IntelLabs/DyNAS-T, predictors. Labels are divided by a power
of ten; both models' settings come from a cross-validated grid on the mean absolute percentage error (MAPE).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ontarget.errors import DataError
from ontarget.values import Array

ALPHAS = np.arange(0.1, 10.05, 0.1)  # of ridge
COSTS = np.unique(np.round(np.geomspace(1, 100, 15)))  # of support vectors; 15 of the published 1 to 100 (choice)
FOLDS = 5


@dataclass(frozen=True)
class Predictor:
    """kind: "ridge" or "svr". mape: cross-validated error of the kept model, of either kind in ``tried``."""

    model: Any
    scale: float
    kind: str
    mape: float
    tried: dict[str, float]

    def __call__(self, features: Array) -> Array:
        """features (N, F) -> predicted labels (N,)."""
        found: Array = np.asarray(self.model.predict(features)) * self.scale
        return found


def fit_predictor(features: Array, labels: Array, *, seed: int = 0) -> Predictor:
    """Fit both models. features (N, F), labels (N,) finite, N >= 10. Raises DataError otherwise."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import KFold
    from sklearn.svm import SVR

    labels = np.asarray(labels, dtype=float)
    if len(labels) < 2 * FOLDS or not np.isfinite(labels).all():
        raise DataError(
            f"A predictor cannot be fitted on {len(labels)} networks.", allowed="10 or more with finite values"
        )
    scale = power_of_ten(labels)
    scaled = labels / scale
    splits = list(KFold(FOLDS, shuffle=True, random_state=seed).split(features))
    alpha, ridge_error = _best_ridge(features, scaled, splits)
    errors = {
        cost: float(
            np.mean(
                [_mape(SVR(C=cost, epsilon=0.0).fit(features[train], scaled[train]).predict(features[test]),
                       scaled[test]) for train, test in splits]
            )
        )
        for cost in COSTS
    }  # fmt: skip
    cost = min(errors, key=lambda key: errors[key])
    tried = {"ridge": ridge_error, "svr": errors[cost]}
    kind = min(tried, key=lambda key: tried[key])
    model = Ridge(alpha=alpha) if kind == "ridge" else SVR(C=cost, epsilon=0.0)
    return Predictor(model.fit(features, scaled), scale, kind, tried[kind], tried)


def power_of_ten(labels: Array) -> float:
    """The power of ten that brings the largest label into [1, 10); 1 where all are 0."""
    largest = float(np.abs(labels).max())
    return 10.0 ** np.floor(np.log10(largest)) if largest > 0 else 1.0


def _best_ridge(features: Array, labels: Array, splits: list[Any]) -> tuple[float, float]:
    """(alpha, MAPE) of the best alpha: one eigendecomposition a fold serves all of them."""
    errors = np.zeros(len(ALPHAS))
    for train, test in splits:
        centre, middle = features[train].mean(axis=0), labels[train].mean()
        left, values, right = np.linalg.svd(features[train] - centre, full_matrices=False)
        inner = left.T @ (labels[train] - middle)
        projected = (features[test] - centre) @ right.T
        for at, alpha in enumerate(ALPHAS):
            predicted = projected @ (values / (values**2 + alpha) * inner) + middle
            errors[at] += _mape(predicted, labels[test]) / len(splits)
    best = int(errors.argmin())
    return float(ALPHAS[best]), float(errors[best])


def _mape(predicted: Array, labels: Array) -> float:
    return float(np.mean(np.abs(predicted - labels) / np.maximum(np.abs(labels), 1e-12)))
