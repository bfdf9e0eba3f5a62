"""From what a run stored to the one dictionary that report.json, report.html and the console show."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ontarget.plan.run_folder import RunFolder
from ontarget.task import Request


def collect_report(run: RunFolder, request: Request, elapsed_s: float) -> dict[str, Any]:
    """The report of a finished run; see report/build.py for its shape."""
    from ontarget import __version__

    decision = run.read("decision")
    trials = run.trials()
    chosen = next(trial for trial in trials if trial["number"] == decision["number"])
    admission = run.read("admission")
    data = run.read("data")
    ranking: dict[str, Any] = {"decided_by": "", "entries": [], "rejected": []}
    if run.has("ranking"):
        ranking = run.read("ranking")
    for entry in ranking["entries"]:
        entry["picked"] = entry["source"] == chosen["source"]
    evidence = run.read("evidence")
    bundle = run.read("bundle")
    timeline = run.timeline()
    task = request.task.model_dump(exclude_none=True)
    return {
        "ontarget": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": run.path.name,
        "task": {name: value for name, value in task.items() if isinstance(value, (str, int, float, tuple, list))},
        "limits": request.limits.model_dump(exclude_none=True),
        "data": {name: value for name, value in data.items() if name != "fingerprint"},
        "device": run.read("device"),
        "ranking": ranking,
        "admission": admission,
        "search": run.read("search") if run.has("search") else {},
        "trials": [
            {**trial, "latency_p50_ms": admission.get(trial["source"], {}).get("latency_p50_ms")} for trial in trials
        ],
        "variants": decision["variants"],
        "label_worth": run.read("label_worth") if run.has("label_worth") else {},
        "tuning": run.read("tuning") if run.has("tuning") else {},
        "evidence": evidence,
        "timeline": timeline,
        "costs": _costs(timeline, elapsed_s, request.limits.budget_s),
        "bundle": bundle,
        "decision": {
            "number": decision["number"],
            "title": f"{chosen['method']} on {chosen['source']}",
            "reason": _reason(chosen, trials, data["metric"], {entry["number"] for entry in decision["rejected"]})
            + _again(run, decision["number"]),
            "rejected": decision["rejected"],
        },
        "reproduce": f"ontarget fit {run.path / 'task.toml'}",
    }


def _costs(timeline: list[dict[str, Any]], elapsed_s: float, budget_s: float) -> dict[str, float]:
    seconds = dict.fromkeys(("features", "training", "measuring"), 0.0)
    for row in timeline:
        if row["what"] in seconds:
            seconds[row["what"]] += float(row["seconds"])
    return {
        "total_s": elapsed_s,
        **{f"{kind}_s": value for kind, value in seconds.items()},
        "other_s": max(0.0, elapsed_s - sum(seconds.values())),
        "budget_s": budget_s,
    }


def _again(run: RunFolder, number: int) -> str:
    """What came of training the chosen model again on all rows but the test ones."""
    refit = run.read("refit") if run.has("refit") else {"kept": [], "reason": ""}
    if number in refit["kept"]:
        return f"; then trained again on all {refit['rows']} training and validation rows"
    return f"; not trained again on the validation rows: {refit['reason']}" if refit["reason"] else ""


def _reason(chosen: dict[str, Any], trials: list[dict[str, Any]], metric: str, broke_limits: set[int]) -> str:
    others = [
        trial
        for trial in trials
        if trial["state"] == "complete"
        and trial["number"] not in {chosen["number"], *broke_limits}
        and trial["metric"] is not None
    ]
    second = max(others, key=lambda trial: float(trial["metric"]), default=None)
    if second is not None and second["metric"] > chosen["metric"]:
        return (
            f"validation {metric} within the limits: {chosen['metric']:.4f}; {second['method']} on {second['source']} "
            f"has {second['metric']:.4f}, which so few rows cannot tell from it, and is less sure of the right classes"
        )
    text = f"best validation {metric} within the limits: {chosen['metric']:.4f}"
    if second is not None:
        text += f"; next was {second['method']} on {second['source']} with {second['metric']:.4f}"
    return text
