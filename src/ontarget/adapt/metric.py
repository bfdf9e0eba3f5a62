"""The metrics a task can be judged by, all "higher is better", and their row-wise shares for paired tests.

Definitions follow scikit-learn's functions of the same names; a constant column, which leaves R2 and
Spearman's correlation undefined, gives a finite number here so that a search can go on.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ontarget.errors import DataError, SettingError, nearest
from ontarget.task import CLASSIFICATION_METRICS, REGRESSION_METRICS
from ontarget.values import Array


def metric_value(name: str, scores: Array, targets: Array) -> float:
    """The metric ``name`` of ``scores`` against ``targets``.

    scores: (N, C) logits or probabilities for classification; (N,) or (N, 1) values for regression.
    targets: (N,) class indices in 0..C-1, or (N,) floats.
    Raises SettingError: unknown name. DataError: no rows, shapes that do not fit, or scores that are not
        finite.
    """
    return _VALUES[_known(name)](*_checked(name, scores, targets))


def row_scores(name: str, scores: Array, targets: Array) -> Array:
    """What each row adds to the metric, (N,) float64, for paired tests between two models on the same rows.

    The mean over rows is the metric itself, with two exceptions: for ``neg_rmse`` it is minus the mean
    squared error; for ``macro_f1``, which is no mean over rows, it is the balanced accuracy.
    """
    return _ROWS[_known(name)](*_checked(name, scores, targets))


def _known(name: str) -> str:
    if name not in _VALUES:
        allowed = ", ".join(_VALUES)
        raise SettingError(f"There is no metric '{name}'.", allowed=allowed, next_step=nearest(name, _VALUES))
    return name


def _checked(name: str, scores: Array, targets: Array) -> tuple[Array, Array]:
    scores, targets = np.asarray(scores), np.asarray(targets)
    if len(targets) == 0 or len(scores) != len(targets):
        raise DataError(f"{name} needs as many scores as targets, got {len(scores)} and {len(targets)}.")
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores).reshape(len(scores), -1).all(axis=1))[0])
        raise DataError(f"The score of row {row} is not finite.")
    if name in CLASSIFICATION_METRICS:
        if scores.ndim != 2 or targets.min() < 0 or targets.max() >= scores.shape[1]:
            raise DataError(
                f"{name} needs scores (N, C) and classes in 0..C-1, got scores {scores.shape} and classes "
                f"{targets.min()}..{targets.max()}."
            )
        return scores.argmax(axis=1), targets.astype(np.int64)
    values = scores.reshape(-1).astype(np.float64)
    if len(values) != len(targets):
        raise DataError(f"{name} needs one value a row, got scores of shape {scores.shape}.")
    return values, targets.astype(np.float64)


def _correct(predicted: Array, targets: Array) -> Array:
    correct: Array = (predicted == targets).astype(np.float64)
    return correct


def _balanced_correct(predicted: Array, targets: Array) -> Array:
    counts = np.bincount(targets)
    share = len(targets) / (np.count_nonzero(counts) * counts[targets])
    balanced: Array = share * (predicted == targets)
    return balanced


def _macro_f1(predicted: Array, targets: Array) -> float:
    classes = int(max(predicted.max(), targets.max())) + 1
    hits = np.bincount(targets[predicted == targets], minlength=classes)
    seen = np.bincount(targets, minlength=classes) + np.bincount(predicted, minlength=classes)
    present = seen > 0
    return float(np.mean(2 * hits[present] / seen[present]))


def _r2_rows(predicted: Array, targets: Array) -> Array:
    squared = (predicted - targets) ** 2
    variance = float(np.var(targets))
    if variance == 0:
        exact: Array = np.full(len(targets), 1.0 if not squared.any() else 0.0)
        return exact
    rows: Array = 1 - squared / variance
    return rows


def _standardised_ranks(values: Array) -> Array:
    """Ranks (mean rank for ties) with mean 0 and variance 1; zeros where all values tie."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[group]
    spread = float(ranks.std())
    standardised: Array = (ranks - ranks.mean()) / spread if spread > 0 else np.zeros(len(values))
    return standardised


def _spearman_rows(predicted: Array, targets: Array) -> Array:
    product: Array = _standardised_ranks(predicted) * _standardised_ranks(targets)
    return product


_ROWS: dict[str, Callable[[Array, Array], Array]] = {
    "accuracy": _correct,
    "balanced_accuracy": _balanced_correct,
    "macro_f1": _balanced_correct,
    "r2": _r2_rows,
    "neg_mae": lambda predicted, targets: -np.abs(predicted - targets),
    "neg_rmse": lambda predicted, targets: -((predicted - targets) ** 2),
    "spearman": _spearman_rows,
}


def _mean_of(rows: Callable[[Array, Array], Array]) -> Callable[[Array, Array], float]:
    return lambda predicted, targets: float(np.mean(rows(predicted, targets)))


_VALUES: dict[str, Callable[[Array, Array], float]] = {
    **{name: _mean_of(_ROWS[name]) for name in (*CLASSIFICATION_METRICS, *REGRESSION_METRICS)},
    "macro_f1": _macro_f1,
    "neg_rmse": lambda predicted, targets: -float(np.sqrt(np.mean((predicted - targets) ** 2))),
}
