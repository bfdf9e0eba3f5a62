"""A generation run as a page and in the terminal: what was chosen, against what, what was tried, answers to read.

The user's texts are escaped; the page loads nothing and runs no script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ontarget.judge.paired_rows import value_of
from ontarget.plan.run_folder import write_atomic
from ontarget.report.build import style_and_policy
from ontarget.report.svg import dot, frame, line, linear, padded, plot, text, ticks, tip
from ontarget.report.verdict import standing
from ontarget.report.words import duration, p_value

MARKS = {"better": "better", "alike": "too close to call", "worse": "worse", "same": "this model"}


def headline(report: Mapping[str, Any]) -> str:
    """The result in one sentence."""
    test, rivals = report["evidence"]["test"], [row for row in report["evidence"]["baselines"] if not row["same_model"]]
    better = sum(standing(row) == "better" for row in rivals)
    against = (
        f"better than all {len(rivals)} baselines" if rivals and better == len(rivals)
        else f"better than {better} of {len(rivals)} baselines"
    )  # fmt: skip
    return (
        f"{report['bundle']['method']} on {report['bundle']['source']}: {report['data']['metric']} {test['value']:.3f} "
        f"[{test['low']:.3f}, {test['high']:.3f}] on {report['evidence']['rows']:,} test rows, {against}"
    )


def print_generation(report: Mapping[str, Any], path: Path) -> None:
    """The result in the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(headline(report), markup=False)
    table = Table("baseline", "value [95%]", "difference [95%]", "p", "")
    for row in report["evidence"]["baselines"]:
        table.add_row(
            row["name"], f"{row['value']:.3f} \\[{row['low']:.3f}, {row['high']:.3f}]",
            f"{row['difference']:+.3f} \\[{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]",
            p_value(row["p_value"]), MARKS[standing(row)],
        )  # fmt: skip
    console.print(table)
    console.print(f"merge: {report['merge']['says']}", markup=False)
    kept = next((row for row in report["decision"]["variants"] if row["kept"]), None)
    if kept:
        console.print(f"{kept['dtype']}: {kept['latency_ms']:.1f} ms a token, {kept['first_ms']:.0f} ms a prompt, "
                      f"{kept['size_mb']:.0f} MiB, {kept['memory_mb']:.0f} MiB of memory", markup=False)  # fmt: skip
    for warning in report["data"]["warnings"]:
        console.print(f"note: {warning}", markup=False)
    console.print(f"{path / 'report.html'}\n{path / 'bundle'}", markup=False)


def write_generation_page(path: Path, report: Mapping[str, Any]) -> None:
    """Write the page."""
    style, policy = style_and_policy()
    rows = report["data"]["rows"]
    facts = [
        ("task", report["task"]["name"] or report["task"]["data"]),
        ("rows", f"{rows['train']:,} to train on, {rows['validation']:,} to choose by, {rows['test']:,} to judge by"),
        ("metric", report["data"]["metric"]), ("time", duration(report["seconds"])),
        *(("note", warning) for warning in report["data"]["warnings"]),
    ]  # fmt: skip
    page = f"""<!doctype html><html lang=en><head><meta charset=utf-8>
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name=viewport content="width=device-width"><title>{escape(headline(report))}</title><style>{style}</style></head>
<body><main><h1>{escape(headline(report))}</h1>{_facts(facts)}
<section><h2>Against the baselines</h2><p>On test rows, looked at once. Intervals of 95%; p-values after Holm's
correction.</p>{_baselines(report)}</section>
<section><h2>What was tried</h2><div class="figure">{_trials_plot(report)}</div>{_trials(report)}</section>
{_merges(report)}
<section><h2>Forms of the weights</h2>{_variants(report)}</section>
<section><h2>Answers</h2><p>The worst, then some of the best, on test rows.</p>{_answers(report)}</section>
</main></body></html>"""
    write_atomic(path, page.encode("utf-8", "replace"))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are escaped already."""
    top = "".join(f"<th>{name}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f"<tr><th scope=row>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts)
    return f"<table>{rows}</table>"


def _baselines(report: Mapping[str, Any]) -> str:
    return _table(
        ["baseline", "value", "difference of the model", "p", ""],
        [
            [
                escape(row["name"]), f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]",
                f"{row['difference']:+.3f} [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]",
                escape(p_value(row["p_value"])), MARKS[standing(row)],
            ]
            for row in report["evidence"]["baselines"]
        ],
    )  # fmt: skip


def _name(trial: Mapping[str, Any]) -> str:
    mode = trial["settings"].get("mode")
    return f"{trial['method']}{f' ({mode})' if mode else ''} on {trial['source']}"


def _trials(report: Mapping[str, Any]) -> str:
    rows = []
    for trial in report["trials"]:
        notes = trial.get("notes") or {}
        told = trial["reason"]
        if notes.get("shares"):
            told = ", ".join(f"{share:.0%} {name}" for name, share in notes["shares"].items())
        elif trial["method"] == "merge":
            told = ", ".join(f"{weight:.2f} of trial {name}" for name, weight in trial["settings"]["weights"].items())
        value = f"{value_of(report['data']['metric'], trial['metric']):.3f}" if trial["state"] == "complete" else "-"
        mark = "chosen" if trial["number"] == report["decision"]["number"] else ""
        rows.append([str(trial["number"]), escape(_name(trial)), value, duration(trial["seconds"]), escape(told), mark])
    for one in report["tuning"]["skipped"]:
        rows.append(["", escape(_name(one)), "-", "", escape(one["reason"]), "not run"])
    return _table(["", "trial", "validation", "time", "", ""], rows)


def _trials_plot(report: Mapping[str, Any]) -> Markup:
    metric = report["data"]["metric"]
    done = [trial for trial in report["trials"] if trial["state"] == "complete"]
    values = [value_of(metric, trial["metric"]) for trial in done]
    seconds = [trial["start_s"] + trial["seconds"] for trial in done]
    height = 200
    x, y = linear(*padded(seconds)), linear(*padded(values), height, 0)
    parts = frame(
        height, [(x(at), f"{at:g}") for at in ticks(min(seconds), max(seconds)) if min(seconds) <= at <= max(seconds)],
        [(y(at), f"{at:g}") for at in ticks(*padded(values))], "seconds since the run began",
    )  # fmt: skip
    for trial, value, at in zip(done, values, seconds, strict=True):
        kind = "chosen" if trial["number"] == report["decision"]["number"] else "trial"
        parts.append(dot(x(at), y(value), 5, kind, tip(_name(trial), f"{metric} {value:.3f} on validation rows")))
    return plot(height, parts, f"{metric} on validation rows by time", "axes")


def _merges(report: Mapping[str, Any]) -> str:
    merge = report["merge"]
    if not merge.get("tried"):
        return f"<section><h2>Merging</h2><p>{escape(merge['says'])}.</p></section>"
    rows = [
        [", ".join(f"{weight:.2f} of trial {name}" for name, weight in one["weights"].items()), f"{one['score']:.4f}"]
        for one in merge["tried"]
    ]
    values, height = [one["score"] for one in merge["tried"]], 160
    x, y = linear(0, max(1, len(values) - 1), 2, 98), linear(*padded(values), height, 0)
    parts = frame(height, [(x(at), str(at + 1)) for at in range(len(values))],
                  [(y(at), f"{at:g}") for at in ticks(*padded(values))], "merge")  # fmt: skip
    best = values[0]
    for at, value in enumerate(values):
        if at:
            parts.append(line(x(at - 1), y(best), x(at), y(max(best, value)), "front"))
        best = max(best, value)
        parts.append(dot(x(at), y(value), 4, "trial", tip(rows[at][0], rows[at][1])))
    parts.append(text(x(0), y(best), "best so far", dx=6))
    figure = plot(height, parts, "score by merge", "axes")
    return (
        f"<section><h2>Merging</h2><p>{escape(merge['says'])}.</p><div class=figure>{figure}</div>"
        f"{_table(['weights', 'validation'], rows)}</section>"
    )


def _variants(report: Mapping[str, Any]) -> str:
    rows = report["decision"]["variants"]
    if not rows:
        return "<p>The answers are looked up: there are no weights.</p>"

    def said(row: Mapping[str, Any]) -> str:
        if not row["kept"]:
            return escape(row["reason"])
        return escape(f"deployed, as the best within the limits: {row['reason']}" if row["reason"] else "deployed")

    def number(row: Mapping[str, Any], name: str, places: int) -> str:
        return f"{row[name]:.{places}f}" if row.get(name) is not None else ""

    return _table(
        ["form", "ms a token", "ms a prompt", "MiB", "MiB of memory", "validation", ""],
        [
            [escape(row["dtype"]), number(row, "latency_ms", 1), number(row, "first_ms", 0), number(row, "size_mb", 0),
             number(row, "memory_mb", 0) if row.get("memory_mb") else "", number(row, "validation", 3), said(row)]
            for row in rows
        ],
    )  # fmt: skip


def _answers(report: Mapping[str, Any]) -> str:
    return _table(
        ["row", "prompt", "answer", "reference", "score"],
        [
            [str(row["row"]), escape(row["prompt"]), escape(row["answer"]), escape(row["reference"]),
             f"{row['score']:.2f}"]
            for row in report["evidence"]["shown"]
        ],
    )  # fmt: skip
