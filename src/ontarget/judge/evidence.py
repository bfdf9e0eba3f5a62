"""What the test rows say: the model with its interval, paired tests against baselines, its errors, its calibration."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ontarget.adapt.metric import metric_value
from ontarget.judge.intervals import interval
from ontarget.judge.paired import compare, holm
from ontarget.judge.show_input import shown
from ontarget.values import Array, TargetData

WORST_ROWS = 20  # errors that the report shows (choice)
CALIBRATION_BINS = 10
SHOWN_RESIDUALS = 500  # points of the plot, drawn at random (choice)


def judge(
    data: TargetData,
    final: Array,
    baselines: Mapping[str, Array],
    *,
    stages: Sequence[Mapping[str, Any]] = (),
    same: Collection[str] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """The evidence of a run, JSON-able; its keys are those that report/build.py lists.

    final, baselines: scores (N_test, C or 1) on ``data.test``. stages: what each stage was given and gave, as
    validation scores ("before", "after") or values ("before_value", "after_value", "low", "high").
    same: names of baselines that are the chosen model itself before compression: shown, but no test is made of them,
    and they do not count among the comparisons that Holm's correction is for.
    """
    metric, targets = data.metric, data.test.targets
    low, high = interval(metric, final, targets, seed=seed)
    compared = {name: compare(name, metric, final, scores, targets, seed=seed) for name, scores in baselines.items()}
    corrected = holm([entry for name, entry in compared.items() if name not in same])
    rows = [{**asdict(entry), "same_model": False} for entry in corrected]
    rows += [{**asdict(compared[name]), "same_model": True} for name in baselines if name in same]
    result: dict[str, Any] = {
        "metric": metric,
        "rows": len(targets),
        "test": {"value": metric_value(metric, final, targets), "low": low, "high": high},
        "baselines": sorted(rows, key=lambda row: -row["value"]),
        "stages": [_stage(stage, data, seed) for stage in stages],
        "worst": _worst(data, final),
    }
    if data.kind == "classification":
        table = confusion(final, targets, len(data.classes))
        result["confusion"] = table.tolist()
        result["per_class"] = per_class(table, data.classes)
        result["calibration"] = calibration(final, targets)
    else:
        result["residuals"] = residuals(final[:, 0], targets, seed=seed)
    return result


def _stage(stage: Mapping[str, Any], data: TargetData, seed: int) -> dict[str, Any]:
    row = {name: stage[name] for name in ("stage", "what", "kept", "reason") if name in stage}
    if "before" not in stage:
        before, after = float(stage["before_value"]), float(stage["after_value"])
        low, high = stage.get("low"), stage.get("high")
        return {**row, "before": before, "after": after, "difference": after - before, "low": low, "high": high}
    found = compare("", data.metric, stage["after"], stage["before"], data.validation.targets, seed=seed)
    return {
        **row,
        "before": found.value,
        "after": found.value + found.difference,
        "difference": found.difference,
        "low": found.difference_low,
        "high": found.difference_high,
    }


def confusion(scores: Array, targets: Array, classes: int) -> Array:
    """(C, C) int64: rows of each true class (first axis) and predicted class (second axis)."""
    cells = np.bincount(targets * classes + scores.argmax(axis=1), minlength=classes * classes)
    return cells.reshape(classes, classes)


def per_class(table: Array, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Precision, recall and F1 of each class from a confusion matrix (C, C); None where nothing could be counted."""
    hits, actual, predicted = table.diagonal(), table.sum(axis=1), table.sum(axis=0)

    def share(part: int, whole: int) -> float | None:
        return float(part / whole) if whole else None

    return [
        {
            "class": name,
            "rows": int(actual[at]),
            "precision": share(hits[at], predicted[at]),
            "recall": share(hits[at], actual[at]),
            "f1": share(2 * hits[at], actual[at] + predicted[at]),
        }
        for at, name in enumerate(classes)
    ]


def probabilities(scores: Array) -> Array:
    """Softmax of logits (N, C), float64."""
    shifted = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    result: Array = shifted / shifted.sum(axis=1, keepdims=True)
    return result


def calibration(scores: Array, targets: Array, bins: int = CALIBRATION_BINS) -> dict[str, Any]:
    """Expected calibration error of the softmax's largest entry, and the bins it comes from.

    Guo, Pleiss, Sun, Weinberger, ICML 2017 (arXiv 1706.04599), eq. 3, bins of equal width. Also the mean confidence
    and the accuracy, whose difference says in which direction: over- or underconfident.
    """
    chances = probabilities(scores)
    confidence, right = chances.max(axis=1), scores.argmax(axis=1) == targets
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    rows = []
    error = 0.0
    for place in range(bins):
        inside = places == place
        if inside.any():
            row = {
                "confidence": float(confidence[inside].mean()),
                "accuracy": float(right[inside].mean()),
                "rows": int(inside.sum()),
                "from": place / bins,
                "to": (place + 1) / bins,
            }
            error += abs(row["confidence"] - row["accuracy"]) * row["rows"] / len(targets)
            rows.append(row)
    return {
        "ece": error,
        "mean_confidence": float(confidence.mean()),
        "accuracy": float(right.mean()),
        "bins": rows,
    }


def residuals(predicted: Array, targets: Array, *, seed: int = 0) -> dict[str, Any]:
    """True and predicted values of at most `SHOWN_RESIDUALS` rows, and what all residuals are like.

    bias: mean of predicted - true. middle, p90: median and 90% quantile of the absolute residual, target's units.
    """
    difference = predicted.astype(np.float64) - targets
    chosen = np.sort(np.random.default_rng(seed).permutation(len(targets))[:SHOWN_RESIDUALS])
    middle, p90 = np.quantile(np.abs(difference), [0.5, 0.9])
    return {
        "target": targets[chosen].tolist(),
        "predicted": predicted[chosen].tolist(),
        "bias": float(difference.mean()),
        "middle": float(middle),
        "p90": float(p90),
    }


def _worst(data: TargetData, scores: Array) -> list[dict[str, Any]]:
    """The rows with the largest loss, worst first; for classification, errors alone."""
    targets = data.test.targets
    rows: list[tuple[Any, dict[str, Any]]] = []
    if data.kind == "regression":
        loss = np.abs(scores[:, 0] - targets)
        for at in np.argsort(-loss, kind="stable")[:WORST_ROWS]:
            rows.append((at, {"target": float(targets[at]), "predicted": float(scores[at, 0])}))
    else:
        shifted = scores.astype(np.float64) - scores.max(axis=1, keepdims=True)
        loss = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(targets)), targets]
        wrong = np.flatnonzero(scores.argmax(axis=1) != targets)
        chances = probabilities(scores)
        for at in wrong[np.argsort(-loss[wrong], kind="stable")][:WORST_ROWS]:
            said = int(scores[at].argmax())
            names = {"target": data.classes[int(targets[at])], "predicted": data.classes[said]}
            rows.append((at, {**names, "score": float(chances[at, said])}))
    return [
        {
            "row": int(data.test.rows[at]),
            "loss": float(loss[at]),
            **entry,
            "input": shown(data.test.inputs[int(at)], data.modality),
        }
        for at, entry in rows
    ]
