"""What the test rows say: the model with its interval, paired tests against baselines, its errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ontarget.adapt.metric import metric_value
from ontarget.judge.paired import compare, holm, interval
from ontarget.values import Array, TargetData

WORST_ROWS = 20  # errors that the report shows (choice)
CALIBRATION_BINS = 10
THUMBNAIL_PX = 96
EXCERPT_CHARACTERS = 400


def judge(
    data: TargetData,
    final: Array,
    baselines: Mapping[str, Array],
    *,
    stages: Sequence[Mapping[str, Any]] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """The evidence of a run, JSON-able; its keys are those that report/build.py lists.

    final, baselines: scores (N_test, C or 1) on ``data.test``. stages: what each stage was given and gave, as
    validation scores ("before", "after") or values ("before_value", "after_value").
    """
    metric, targets = data.metric, data.test.targets
    low, high = interval(metric, final, targets, seed=seed)
    compared = holm([compare(name, metric, final, scores, targets, seed=seed) for name, scores in baselines.items()])
    result: dict[str, Any] = {
        "metric": metric,
        "rows": len(targets),
        "test": {"value": metric_value(metric, final, targets), "low": low, "high": high},
        "baselines": [asdict(entry) for entry in sorted(compared, key=lambda entry: -entry.value)],
        "stages": [_stage(stage, data, seed) for stage in stages],
        "worst": _worst(data, final),
    }
    if data.kind == "classification":
        result["confusion"] = _confusion(final, targets, len(data.classes))
        result["calibration"] = calibration(final, targets)
    else:
        chosen = np.random.default_rng(seed).permutation(len(targets))[:500]
        result["residuals"] = {"target": targets[chosen].tolist(), "predicted": final[chosen, 0].tolist()}
    return result


def _stage(stage: Mapping[str, Any], data: TargetData, seed: int) -> dict[str, Any]:
    row = {name: stage[name] for name in ("stage", "what", "kept", "reason") if name in stage}
    if "before" not in stage:
        before, after = float(stage["before_value"]), float(stage["after_value"])
        return {**row, "before": before, "after": after, "difference": after - before, "low": None, "high": None}
    found = compare("", data.metric, stage["after"], stage["before"], data.validation.targets, seed=seed)
    return {
        **row,
        "before": found.value,
        "after": found.value + found.difference,
        "difference": found.difference,
        "low": found.difference_low,
        "high": found.difference_high,
    }


def _confusion(scores: Array, targets: Array, classes: int) -> list[list[int]]:
    cells = np.bincount(targets * classes + scores.argmax(axis=1), minlength=classes * classes)
    table: list[list[int]] = cells.reshape(classes, classes).tolist()
    return table


def calibration(scores: Array, targets: Array, bins: int = CALIBRATION_BINS) -> dict[str, Any]:
    """Expected calibration error of the softmax's largest entry, and the bins it comes from.

    Guo, Pleiss, Sun, Weinberger, ICML 2017 (arXiv 1706.04599), eq. 3, bins of equal width.
    """
    shifted = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    confidence, right = probabilities.max(axis=1), scores.argmax(axis=1) == targets
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
            }
            error += abs(row["confidence"] - row["accuracy"]) * row["rows"] / len(targets)
            rows.append(row)
    return {"ece": error, "bins": rows}


def _worst(data: TargetData, scores: Array) -> list[dict[str, Any]]:
    """The rows with the largest loss, worst first; for classification, errors alone."""
    targets = data.test.targets
    if data.kind == "regression":
        loss = np.abs(scores[:, 0] - targets)
        order = np.argsort(-loss)[:WORST_ROWS]
    else:
        shifted = scores - scores.max(axis=1, keepdims=True)
        loss = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(targets)), targets]
        wrong = np.flatnonzero(scores.argmax(axis=1) != targets)
        order = wrong[np.argsort(-loss[wrong])][:WORST_ROWS]
    rows = []
    for at in order:
        row: dict[str, Any] = {"row": int(data.test.rows[at]), "loss": float(loss[at])}
        if data.kind == "classification":
            row["target"] = data.classes[int(targets[at])]
            row["predicted"] = data.classes[int(scores[at].argmax())]
        else:
            row["target"], row["predicted"] = float(targets[at]), float(scores[at, 0])
        rows.append({**row, "input": shown(data.test.inputs[int(at)], data.modality)})
    return rows


def shown(entry: Any, modality: str) -> str:
    """An input as a report shows it: an excerpt of a text, a thumbnail as a data URI, the first numbers."""
    if modality == "text":
        text = entry if isinstance(entry, str) else " | ".join(entry)
        return text if len(text) <= EXCERPT_CHARACTERS else text[:EXCERPT_CHARACTERS] + " …"
    if modality == "features":
        return ", ".join(f"{value:.3g}" for value in np.asarray(entry)[:8]) + (" …" if len(entry) > 8 else "")
    import base64
    import io

    from ontarget.runtime.preprocess import open_image

    image = open_image(entry).convert("RGB")
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
