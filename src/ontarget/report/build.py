"""report.json and the self-contained report.html of a run: one file that can be mailed, nothing loaded from outside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ontarget.errors import RunError
from ontarget.plan.run_folder import to_json, write_atomic
from ontarget.report import plots


def write_report(report: Mapping[str, Any], folder: Path) -> Path:
    """Write ``report.json`` and ``report.html`` into ``folder``; returns the page's path."""
    content = to_json(report)
    write_atomic(folder / "report.json", content)
    write_atomic(folder / "report.html", render(json.loads(content)).encode())
    return folder / "report.html"


def read_report(folder: Path) -> dict[str, Any]:
    """What `write_report` wrote. Raises RunError where there is none."""
    try:
        report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        return report
    except FileNotFoundError as error:
        raise RunError(
            f"{folder} has no report.json: the run is not finished.", next_step=f"ontarget fit --resume {folder}"
        ) from error


def render(report: Mapping[str, Any]) -> str:
    """The page. Everything that comes from the user's data is escaped."""
    from jinja2 import Environment

    template = (Path(__file__).parent / "report.html.jinja").read_text(encoding="utf-8")
    names = list(dict.fromkeys(name for row in report["ranking"]["entries"] for name in row["scores"]))
    return (
        Environment(autoescape=True, trim_blocks=True)
        .from_string(template)
        .render(r=report, plots=_plots(report), score_names=names, verdict=verdict(report))
    )


def verdict(report: Mapping[str, Any]) -> str:
    """In plain words: what was chosen, how it does against the best baseline, and whether it fits the limits."""
    evidence, bundle, limits = report["evidence"], report["bundle"], report["limits"]
    own = {"linear_head": "linear probe on the best source", "tfidf_linear": "TF-IDF + linear",
           "nearest_neighbours": "nearest neighbours"}  # fmt: skip
    method = next(trial["method"] for trial in report["trials"] if trial["number"] == report["decision"]["number"])
    rivals = [row for row in evidence["baselines"] if row["name"] != own.get(method)]
    parts = [
        f"Deployed as {bundle['form']}, it reaches {evidence['metric']} {evidence['test']['value']:.3f} on "
        f"{evidence['rows']} test rows."
    ]
    if rivals:
        best = max(rivals, key=lambda row: float(row["value"]))
        words = f"the best baseline, {best['name']} ({best['value']:.3f})"
        if best["p_value"] >= 0.05:
            parts.append(f"It is not significantly different from {words}; p = {best['p_value']:.2g}.")
        elif best["difference"] > 0:
            parts.append(f"It is better than {words} by {best['difference']:.3f}; p = {best['p_value']:.2g}.")
        else:
            parts.append(f"It is worse than {words}; p = {best['p_value']:.2g}. Prefer the baseline.")
    if limits.get("latency_ms"):
        parts.append(
            f"One call takes {bundle['latency_p50_ms']:.2f} ms, within the limit of {limits['latency_ms']:g} ms."
        )
    return " ".join(parts)


def _plots(report: Mapping[str, Any]) -> dict[str, Any]:
    evidence, decision, bundle = report["evidence"], report["decision"], report["bundle"]
    points = [
        {
            "name": f"trial {trial['number']}: {trial['method']} on {trial['source']}",
            "latency_ms": trial.get("latency_p50_ms"),
            "value": trial["metric"],
            "chosen": False,
        }
        for trial in report["trials"]
        if trial["state"] == "complete"
    ]
    chosen = next(trial for trial in report["trials"] if trial["number"] == decision["number"])
    points.append(
        {
            "name": f"deployed: {decision['title']}, {bundle['form']}",
            "latency_ms": bundle["latency_p50_ms"],
            "value": chosen["metric"],
            "chosen": True,
        }
    )
    decided = report["ranking"]["decided_by"]
    ranking = [
        {
            "name": row["source"],
            **{name: row["scores"][decided][name] for name in ("value", "low", "high")},
            "strong": row["picked"],
            "note": f"{row['scores'][decided]['value']:.3f}" + (" ≈" if row["too_close"] and place else ""),
        }
        for place, row in enumerate(report["ranking"]["entries"])
    ]
    baselines = [{"name": "this model", **evidence["test"], "strong": True}, *evidence["baselines"]]
    curves = [
        {
            "name": f"trial {trial['number']}: {trial['method']} on {trial['source']}",
            "points": [(point["epoch"], point["validation"]) for point in trial["curve"] if "validation" in point],
            "strong": trial["number"] == decision["number"],
        }
        for trial in report["trials"]
    ]
    residuals = evidence.get("residuals") or {"target": [], "predicted": []}
    return {
        "pareto": plots.pareto(points, metric=evidence["metric"], limit_ms=report["limits"].get("latency_ms")),
        "ranking": plots.intervals(ranking, label=f"sources by {decided}"),
        "baselines": plots.intervals(baselines, label="this model and the baselines on the test rows"),
        "curves": plots.curves(curves, label="validation metric by epoch"),
        "confusion": plots.confusion(evidence.get("confusion") or [], report["data"]["classes"]),
        "scatter": plots.scatter(residuals["target"], residuals["predicted"]),
        "reliability": plots.reliability(evidence["calibration"]["bins"]) if evidence.get("calibration") else "",
        "timeline": plots.timeline(report["timeline"]),
    }
