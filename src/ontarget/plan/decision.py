"""Which trials go on to the compress stage, and in which order.

The task's metric decides where it can. On the few validation rows of a small task it seldom can: of models that it
cannot tell apart, the highest has been lucky. Those are ordered by the surprise of their calibrated probabilities,
which takes more than a yes or no from each row. On two development sets (benchmarks/few_rows_choice.py), choosing among
seven recipes by 150 rows: 0.784 and 0.876 by accuracy alone, 0.787 and 0.878 with this rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ontarget.values import Array, TargetData

CHEAP_SOURCES = ("control:tfidf", "control:pixels", "control:majority")
FOLDS = 5  # of the rows that calibrate and those that are judged (choice)
STANDARD_ERRORS = 2.0  # a paired difference below so many of its standard errors decides nothing (choice)


def eligible(trials: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Complete trials but those of random controls and the majority baseline, which are there for comparison."""
    return [
        trial
        for trial in trials
        if trial["state"] == "complete"
        and trial["method"] != "majority"
        and not trial["source"].startswith("control:random")
    ]


def order(
    trials: Sequence[Mapping[str, Any]],
    data: TargetData,
    scores_of: Callable[[int], Array],
    latency_ms: Mapping[str, float] = {},
) -> list[Mapping[str, Any]]:
    """The trials from best to worst, judged on the validation rows.

    scores_of: number of a trial -> its scores. latency_ms: by source.
    First those whose metric is not STANDARD_ERRORS below the highest (paired, row by row), by `surprise`; then the
    others by their metric. Regression: all by the metric. Ties go to the lower latency, then to the lower number.
    """

    def by_metric(trial: Mapping[str, Any]) -> tuple[float, float, int]:
        return -trial["metric"], latency_ms.get(trial["source"], 0.0), trial["number"]

    ranked = sorted(trials, key=by_metric)
    if data.kind == "regression" or len(ranked) < 2:
        return ranked
    targets = data.validation.targets
    scores = {trial["number"]: scores_of(trial["number"]) for trial in ranked}
    best = scores[ranked[0]["number"]]
    near = [trial for trial in ranked if alike(data.metric, best, scores[trial["number"]], targets)]
    surprises = {trial["number"]: round(surprise(data.metric, scores[trial["number"]], targets), 9) for trial in near}
    near.sort(key=lambda trial: (surprises[trial["number"]], *by_metric(trial)[1:]))
    return [*near, *(trial for trial in ranked if trial["number"] not in surprises)]


def alike(metric: str, best: Array, other: Array, targets: Array) -> bool:
    """Whether the metric of ``other`` is less than STANDARD_ERRORS below that of ``best``, on the same rows."""
    from ontarget.adapt.metric import row_scores

    shortfall = row_scores(metric, best, targets) - row_scores(metric, other, targets)
    error = float(shortfall.std()) / np.sqrt(len(shortfall))
    return bool(shortfall.mean() <= STANDARD_ERRORS * error)


def surprise(metric: str, scores: Array, targets: Array) -> float:
    """Mean negative log likelihood (nats) of the classes, at a temperature that fits the other rows best.

    It does not depend on the scale of ``scores`` (N, C). Classes weigh the same where the metric is not accuracy.
    """
    logits = scores.astype(np.float64)
    logits -= logits.mean(axis=1, keepdims=True)
    logits /= max(float(np.sqrt(np.mean(logits**2))), 1e-12)
    targets = targets.astype(np.int64)
    folds = np.random.default_rng(0).permutation(len(targets)) % min(FOLDS, len(targets))
    rows = np.empty(len(targets))
    for fold in range(int(folds.max()) + 1):
        held = folds == fold
        # A single row has no others.
        others = ~held if len(targets) > 1 else held
        rows[held] = _surprises(logits[held] * _sharpness(logits[others], targets[others]), targets[held])
    if metric == "accuracy":
        return float(rows.mean())
    return float(np.average(rows, weights=1 / np.bincount(targets)[targets]))


def _surprises(logits: Array, targets: Array) -> Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    rows: Array = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(targets)), targets]
    return rows


def _sharpness(logits: Array, targets: Array) -> float:
    """The factor of ``logits`` of the best likelihood, with one row's worth of doubt: each row counts 1 / N for any
    class, so that rows which are all right do not call for certainty (choice). Rows of ``logits`` have mean 0."""
    from scipy.optimize import minimize_scalar

    def loss(logarithm: float) -> float:
        rows = _surprises(logits * np.exp(logarithm), targets)
        doubt = rows + np.exp(logarithm) * logits[np.arange(len(targets)), targets]
        return float(rows.sum() + doubt.mean())

    found = minimize_scalar(loss, bounds=(-7.0, 7.0), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))
