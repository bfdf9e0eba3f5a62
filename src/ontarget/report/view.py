"""From the report's dictionary to what the page shows: plots, sections in order, and sentences with numbers in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ontarget.report import plots, quality_plots
from ontarget.report.verdict import metric_name, standing, verdict

Report = Mapping[str, Any]


def view(report: Report) -> dict[str, Any]:
    """Everything that the template does not read from the report itself. Tolerates missing keys and nulls."""
    evidence, data = _part(report, "evidence"), _part(report, "data")
    classes = [str(name) for name in data.get("classes") or ()]
    table = evidence.get("confusion") or []
    if len(table) != len(classes):
        classes = [str(place) for place in range(len(table))]
    residuals = evidence.get("residuals") or {}
    points = _points(report)
    names = list(dict.fromkeys(name for row in _entries(report) for name in row.get("scores") or {}))
    shown = {
        "verdict": verdict(report),
        "metric": metric_name(data.get("metric") or evidence.get("metric")),
        "pareto": plots.pareto(points, metric="validation", limit_ms=_part(report, "limits").get("latency_ms")),
        "front": plots.pareto_front(points),
        "ranking": _ranking(report),
        "title": _title(_part(report, "decision").get("title")),
        "score_names": names,
        "score_heads": [f"#{name}" for name in names],  # "#": a column of numbers
        "baselines": _baselines(evidence),
        "curves": _curves(report),
        "predictions": _predictions(report),
        "confusion": quality_plots.confusion(table, classes),
        "confused": quality_plots.most_confused(table, classes) if len(table) > 2 else [],
        "reliability": quality_plots.reliability(_part(evidence, "calibration").get("bins") or []),
        "confidence": _confidence(_part(evidence, "calibration")),
        "scatter": quality_plots.scatter(residuals.get("target") or [], residuals.get("predicted") or []),
        "timeline": plots.timeline([row for row in report.get("timeline") or () if row.get("seconds") is not None]),
        "costs": _costs(report),
        "undone": sum(not row.get("kept") for row in report.get("variants") or ()),
        "chosen": _part(report, "decision").get("number"),
        "standing": standing,
    }
    return {**shown, "sections": _sections(report, shown)}


def _part(report: Report, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = report.get(name) or {}
    return found


def _title(title: Any) -> str:
    """ "linear_head on zoo:minilm" as "Linear head on zoo:minilm"."""
    method, on, source = str(title or "Report of a run").partition(" on ")
    method = method.replace("_", " ")
    return method[:1].upper() + method[1:] + on + source


def _entries(report: Report) -> list[Mapping[str, Any]]:
    return list(_part(report, "ranking").get("entries") or ())


def _sections(report: Report, shown: Mapping[str, Any]) -> dict[str, str]:
    """Id -> title of the sections that have something to show, in the order of the page."""
    evidence, data = _part(report, "evidence"), _part(report, "data")
    present = {
        "warnings": ("Data warnings", data.get("warnings")),
        "evidence": ("Evidence", evidence.get("baselines")),
        "pareto": ("Latency", shown["pareto"]),
        "ranking": ("Sources", _entries(report) or _part(report, "ranking").get("rejected")),
        "stages": ("Stages", evidence.get("stages")),
        "trials": ("Trials", report.get("trials")),
        "curves": ("Learning curves", shown["curves"]),
        "labels": ("More labels", _part(report, "label_worth").get("after")),
        "variants": ("Compression", report.get("variants")),
        "confusion": ("Confusion", shown["confusion"]),
        "residuals": ("Residuals", shown["scatter"]),
        "worst": ("Errors", evidence.get("worst")),
        "calibration": ("Calibration", shown["reliability"]),
        "timeline": ("Time", shown["timeline"] or shown["costs"]),
        "bundle": ("Bundle", report.get("bundle")),
        "about": ("Reproduce", report.get("reproduce") or report.get("task") or report.get("device")),
    }
    return {name: title for name, (title, content) in present.items() if content}


def _points(report: Report) -> list[dict[str, Any]]:
    """Trials, forms of the chosen model and the deployed one, those that have a latency and a validation score."""
    bundle, decision = _part(report, "bundle"), _part(report, "decision")
    points: list[dict[str, Any]] = [
        {
            "name": f"trial {trial.get('number')}: {trial.get('method')} on {trial.get('source')}",
            "latency_ms": trial.get("latency_p50_ms"),
            "value": trial.get("metric"),
            "kind": "trial",
        }
        for trial in report.get("trials") or ()
        if trial.get("state", "complete") == "complete"
    ]
    for form in report.get("variants") or ():
        used = form.get("kept") and form.get("form") == bundle.get("form", form.get("form"))
        points.append(
            {
                "name": f"{'deployed: ' if used else ''}{decision.get('title', 'chosen model')} as {form.get('form')}",
                "latency_ms": form.get("latency_p50_ms"),
                "value": form.get("validation_metric", form.get("metric")),
                "kind": "chosen" if used else "form",
            }
        )
    return [point for point in points if point["latency_ms"] and point["value"] is not None]


def _ranking(report: Report) -> Any:
    decided = _part(report, "ranking").get("decided_by", "")
    rows = []
    for place, entry in enumerate(_entries(report)):
        score = (entry.get("scores") or {}).get(decided)
        if score:
            note = "too close to call" if entry.get("too_close") and place else ""
            rows.append({**score, "name": entry.get("source"), "strong": entry.get("picked"), "note": note})
    return plots.intervals(rows, label=f"sources by {decided}")


def _baselines(evidence: Mapping[str, Any]) -> Any:
    if not evidence.get("test"):
        return ""
    rows = [{"name": "this model", **evidence["test"], "strong": True}, *(evidence.get("baselines") or ())]
    rows = [{**row, "note": "same model before compression" if row.get("same_model") else ""} for row in rows]
    return plots.intervals(rows, label="this model and the baselines on the test rows")


def _curves(report: Report) -> Any:
    chosen = _part(report, "decision").get("number")
    series = [
        {
            "name": f"trial {trial.get('number')}: {trial.get('method')} on {trial.get('source')}",
            "points": [
                (point["epoch"], point["validation"])
                for point in trial.get("curve") or ()
                if point.get("validation") is not None and point.get("epoch") is not None
            ],
            "strong": chosen is not None and trial.get("number") == chosen,
        }
        for trial in report.get("trials") or ()
    ]
    return plots.curves(series, label="validation score by epoch")


def _predictions(report: Report) -> dict[str, str]:
    """How far predicted seconds and memory were from the truth, over trials that have both."""
    found = {}
    for name, predicted, true in (
        ("seconds", "predicted_seconds", "seconds"),
        ("memory", "predicted_memory_mb", "peak_memory_mb"),
    ):
        trials = [trial for trial in report.get("trials") or () if trial.get(predicted) and trial.get(true)]
        found[name] = plots.ratio_words([trial[true] / trial[predicted] for trial in trials])
    return found


def _confidence(calibration: Mapping[str, Any]) -> str:
    mean, accuracy = calibration.get("mean_confidence"), calibration.get("accuracy")
    if mean is None or accuracy is None:
        return ""
    words = "about as sure as it is right"
    if abs(mean - accuracy) >= 0.02:
        words = "surer than it is right" if mean > accuracy else "less sure than it is right"
    return f"On average the model is {words}: mean confidence {mean:.3f}, accuracy {accuracy:.3f}."


def _costs(report: Report) -> Any:
    costs = _part(report, "costs")
    names = ("features", "training", "measuring", "other")
    seconds = {name: float(costs[f"{name}_s"]) for name in names if costs.get(f"{name}_s") is not None}
    return plots.costs(seconds, costs.get("budget_s"))
