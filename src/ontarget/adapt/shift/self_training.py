"""Self-training: a linear head labels unlabelled rows with its own surest guesses, class by class, and is fitted again.

H. J. Scudder, "Probability of Error of Some Adaptive Pattern-Recognition Machines", IEEE Trans. Inf. Theory 1965;
class-balanced and growing: Yang Zou, Zhiding Yu, Vijaya Kumar, Jinsong Wang, "Unsupervised Domain Adaptation for
Semantic Segmentation via Class-Balanced Self-Training", ECCV 2018, arXiv 1810.07911. Official code: none for this form.
Claim: none of its own; with few labels, guesses of the head on frozen features are worth something.
Left out: retraining the encoder; soft labels.
Checked in tests/adapt/test_self_training.py; what it brings on development sets is in benchmarks/self_training.py.

In round r of R each class takes its share r / R of the unlabelled rows, in proportion to the labelled classes: those
among the rows that the head gives to it that it is surest of. They count WEIGHT of a labelled row each.

>>> import numpy as np
>>> rows = np.array([[-3.0], [-1.0], [1.0], [3.0]])
>>> found = self_training(rows[1:3], np.array([0, 1]), rows, outputs=2, l2_grid=(1.0,), folds=np.array([0, 1]))
>>> (rows @ found.weight.T + found.bias).argmax(axis=1).tolist()
[0, 0, 1, 1]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ontarget.adapt.metric import metric_value
from ontarget.adapt.tune.held_out import check_rows, make_folds
from ontarget.adapt.tune.linear_head import L2_GRID, LinearHead, fit_weighted, linear_head
from ontarget.errors import DataError
from ontarget.values import Array

ROUNDS = 5  # (choice)
WEIGHT = 0.1  # of a guessed row against a labelled one (choice; see benchmarks/self_training.py)


def self_training(
    features: Array,
    targets: Array,
    unlabelled: Array,
    *,
    outputs: int,
    metric: str = "accuracy",
    l2_grid: Sequence[float] = L2_GRID,
    folds: Array | None = None,
    validation: tuple[Array, Array] | None = None,
    rounds: int = ROUNDS,
    weight: float = WEIGHT,
) -> LinearHead:
    """A linear head fitted on labelled rows and on its own guesses for unlabelled ones.

    features: (N, D) float, finite. targets: (N,) int classes in 0..outputs-1. unlabelled: (U, D) float, U >= 1.
    metric, l2_grid, folds, validation: as for `linear_head`, which chooses the L2 strength by the labelled rows alone.
    Scores are those of rows that were neither trained on nor guessed: on the validation rows, or out of fold, with the
    whole loop run for each fold.
    Raises DataError: shapes that do not fit, values that are not finite.
    """
    features, targets = check_rows(features, targets, outputs=outputs, kind="classification")
    unlabelled = np.asarray(unlabelled, dtype=np.float64)
    if unlabelled.ndim != 2 or unlabelled.shape[1:] != features.shape[1:] or not len(unlabelled):
        raise DataError(f"Unlabelled rows have shape {unlabelled.shape}, labelled ones {features.shape}.")
    if not np.isfinite(unlabelled).all():
        raise DataError("Features of unlabelled rows hold NaN or infinity.")
    if validation is None and (folds is None or not len(folds)):
        folds = make_folds(targets, kind="classification")
    plain = linear_head(
        features, targets, outputs=outputs, kind="classification", metric=metric, l2_grid=l2_grid, folds=folds,
        validation=validation,
    )  # fmt: skip

    def looped(rows: Array) -> tuple[Array, Array]:
        return _loop(features[rows], targets[rows], unlabelled, outputs, metric, plain.l2, rounds, weight)

    everything = np.arange(len(features))
    found = looped(everything)
    if validation is not None:
        held, held_targets = check_rows(*validation, outputs=outputs, kind="classification")
        scores = held @ found[0].T + found[1]
    else:
        assert folds is not None
        held_targets, scores = targets, np.zeros((len(features), outputs))
        for fold in np.unique(folds):
            own = looped(everything[folds != fold])
            inside = folds == fold
            scores[inside] = features[inside] @ own[0].T + own[1]
    value = metric_value(metric, scores, held_targets)
    return LinearHead(*found, plain.l2, scores.astype(np.float32), value, ((plain.l2, value),))


def _loop(
    features: Array, targets: Array, unlabelled: Array, outputs: int, metric: str, l2: float, rounds: int, weight: float
) -> tuple[Array, Array]:
    """Weight (C, D) and bias (C,) after all rounds."""
    head = fit_weighted(features, targets, np.ones(len(targets)), outputs=outputs, l2=l2, metric=metric)
    shares = np.bincount(targets, minlength=outputs) / len(targets)
    for part in range(1, rounds + 1):
        logits = unlabelled @ head[0].T + head[1]
        guesses = logits.argmax(axis=1)
        sure = np.exp(logits.max(axis=1) - _log_sums(logits))
        chosen = []
        for label in np.flatnonzero(shares):
            members = np.flatnonzero(guesses == label)
            count = int(np.ceil(len(unlabelled) * shares[label] * part / rounds))
            chosen.append(members[np.argsort(-sure[members], kind="stable")[:count]])
        kept = np.concatenate(chosen)
        weights = np.concatenate([np.ones(len(targets)), np.full(len(kept), weight)])
        head = fit_weighted(
            np.concatenate([features, unlabelled[kept]]), np.concatenate([targets, guesses[kept]]), weights,
            outputs=outputs, l2=l2, metric=metric,
        )  # fmt: skip
    return head


def _log_sums(logits: Array) -> Array:
    highest = logits.max(axis=1)
    sums: Array = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
    return sums
