"""What the terminal shows: a ranking, or a run's result in a few lines. The user's text is never read as markup."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ontarget.report import words
from ontarget.report.verdict import metric_name, standing, verdict
from ontarget.values import Ranking

if TYPE_CHECKING:
    from rich.console import Console

    from ontarget.select.choose_ensemble import EvaluatedEnsemble
    from ontarget.select.next_labels import NextLabels
    from ontarget.select.select_data import Selection

TONES = {"better": "green", "alike": "yellow", "worse": "red", "unknown": "dim", "same": "dim"}
MARKS = {"better": "✓", "alike": "≈", "worse": "✕", "same": "="}
SHOWN_BASELINES = 8


def ranking_as_dict(ranking: Ranking, together: EvaluatedEnsemble | None = None) -> dict[str, Any]:
    """JSON-able form of a ranking, with the ensemble where one was chosen."""
    from dataclasses import asdict

    return asdict(ranking) | ({"ensemble": asdict(together)} if together is not None else {})


def print_ranking(ranking: Ranking, together: EvaluatedEnsemble | None = None, console: Console | None = None) -> None:
    """One line a source: the deciding score with its interval, the other scores, costs; then the ensemble."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    names = list(dict.fromkeys(name for entry in ranking.entries for name in entry.scores))
    others = [name for name in names if name != ranking.decided_by]
    table = Table("", "source", f"{ranking.decided_by} \\[95%]", *others, "D", "features s", "scores s")
    for place, entry in enumerate(ranking.entries, start=1):
        decided = entry.scores[ranking.decided_by]
        close = " ≈" if entry.too_close and place > 1 else ""
        table.add_row(
            str(place),
            escape(entry.source),
            f"{decided.value:.3f} \\[{decided.low:.3f}, {decided.high:.3f}]{close}",
            *(f"{entry.scores[name].value:.3f}" if name in entry.scores else "" for name in others),
            str(entry.dim),
            f"{entry.features_s:.1f}" if entry.features_s else "cached",
            f"{sum(score.seconds for score in entry.scores.values()):.2f}",
        )
    console = console or Console()
    console.print(table)
    if any(entry.too_close for entry in ranking.entries[1:]):
        console.print("≈ too close to call: the interval overlaps that of the first")
    if together is not None:
        console.print(f"ensemble (OSBORN): {', '.join(together.chosen)}", markup=False)
        gain, value = together.gain, together.value
        standing_of = "better" if gain.low > 0 else "worse" if gain.high < 0 else "too close to call"
        console.print(
            f"  {together.metric} {value.value:.3f}, [{value.low:.3f}, {value.high:.3f}]; the best single source, "
            f"{together.best_single}: {together.best_value:.3f}; gain {gain.value:+.3f} [{gain.low:+.3f}, "
            f"{gain.high:+.3f}]: {standing_of}",
            markup=False,
        )
        console.print(f"  {'; '.join(together.notes)}", markup=False)


def print_report(report: Mapping[str, Any], path: Path, console: Console | None = None) -> None:
    """The result: what was chosen, how good, against what, at which cost, and where everything is.

    Parts that the report lacks are left out.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    evidence, bundle, decision = (report.get(name) or {} for name in ("evidence", "bundle", "decision"))
    found = verdict(report)
    form = f", deployed as {bundle['form']}" if bundle.get("form") else ""
    console.print()
    console.print(Text.assemble((str(decision.get("title", report.get("run", ""))), "bold"), form))
    console.print(Text(found.headline, style=f"bold {TONES[found.tone]}"))
    for sentence in found.sentences:
        console.print(Text(sentence))
    for sentence in found.warnings:
        console.print(Text(sentence, style="red"))
    test = evidence.get("test") or {}
    if evidence.get("baselines"):
        table = Table("on the test rows", metric_name(evidence.get("metric")), "95%", "lead", "p", "")
        table.add_row(Text("this model", style="bold"), words.number(test.get("value")), _ends(test, "low", "high"))
        for row in evidence["baselines"][:SHOWN_BASELINES]:
            kind = standing(row)
            table.add_row(
                Text(str(row.get("name"))),
                words.number(row.get("value")),
                _ends(row, "low", "high"),
                words.signed(row.get("difference")),
                "" if row.get("same_model") else words.p_value(row.get("p_value")),
                Text(MARKS[kind], style=TONES[kind]),
            )
        console.print(table)
        console.print(Text("✓ better, ≈ not shown to be better, ✕ worse, = the same model", style="dim"))
    console.print(Text(_costs(report)), soft_wrap=True)
    for warning in (report.get("data") or {}).get("warnings") or ():
        console.print(Text.assemble(("note ", "yellow"), str(warning)), soft_wrap=True)
    console.print(Text(f"report  {path / 'report.html'}"), soft_wrap=True)
    if bundle.get("path"):
        console.print(Text(f"bundle  {bundle['path']}"), soft_wrap=True)


def _ends(row: Mapping[str, Any], low: str, high: str) -> Any:
    from rich.text import Text

    ends = words.number(row.get(low)), words.number(row.get(high))
    return Text(f"[{ends[0]}, {ends[1]}]" if all(ends) else "")


def _costs(report: Mapping[str, Any]) -> str:
    bundle, costs = report.get("bundle") or {}, report.get("costs") or {}
    parts = []
    for name, text in (("latency_p50_ms", "latency p50"), ("latency_p95_ms", "p95")):
        if bundle.get(name) is not None:
            parts.append(f"{text} {bundle[name]:.2f} ms")
    if bundle.get("size_mb") is not None:
        parts.append(f"bundle {bundle['size_mb']:.1f} MiB")
    if costs.get("total_s") is not None:
        budget = f" of {words.duration(costs['budget_s'])}" if costs.get("budget_s") else ""
        parts.append(f"{words.duration(costs['total_s'])}{budget}")
    return ", ".join(parts)


def print_selection(found: Selection, console: Console | None = None) -> None:
    """A data selection: how much was chosen from what, how scores spread, what was left out, where it is."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    console.print(Text(f"{found.chosen:,} of {found.documents:,} documents selected by {found.method}", style="bold"))
    size = found.selected_bytes / 2**10
    amount = f"{size / 2**10:.1f} MiB" if size >= 2**10 else f"{size:.0f} KiB"
    left_out = [
        (found.empty, "without text"), (found.exact_duplicates, "equal to a better one"),
        (found.near_duplicates, "near-duplicates of a better one"),
    ]  # fmt: skip
    passed = ", ".join(f"{count:,} {what}" for count, what in left_out if count)
    console.print(f"{amount} of text; passed over: {passed or 'none'}")
    if found.method in ("zipfit", "dsir"):
        console.print(
            f"scores: mean {found.mean:.4f} in the pool, {found.mean_selected:.4f} selected, lowest selected "
            f"{found.lowest_selected:.4f}; length alone explains {found.length_share:.0%} of their spread"
        )
    if found.agreement is not None:
        console.print(
            f"fast scores: rank agreement with exact ones {found.agreement:.3f} (Spearman, held-out documents)"
        )
    console.print(
        Text(f"{found.seconds:.1f} s\nselected {found.folder}/selected.parquet\npicture  {found.folder}/selection.html")
    )


SHOWN_ROWS = 10


def print_next_labels(found: NextLabels, output: Path | None, console: Console | None = None) -> None:
    """What more labels would bring, and the first rows to check again."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = console or Console()
    if found.worth is not None:
        worth = found.worth
        table = Table("further labels", f"{worth.metric} of a linear head", "90%", "gain")
        for more, score in ((0, worth.now), *worth.after.items()):
            gain = "" if not more else f"{score.value - worth.now.value:+.3f}"
            table.add_row(f"{more:,}", f"{score.value:.3f}", f"\\[{score.low:.3f}, {score.high:.3f}]", gain)
        console.print(table)
        console.print(f"features of {found.source}; a model that is tuned may gain more")
    if found.recheck:
        table = Table("row", "label", "suggested", "sure", "input")
        for row in found.recheck[:SHOWN_ROWS]:
            table.add_row(
                str(row["row"]), escape(str(row["label"])), escape(str(row["suggested"])),
                f"{100 * row['probability']:.0f}%", escape(str(row["input"])[:60]),
            )  # fmt: skip
        console.print(table)
        where = f" in {output}" if output else "; -o FILE writes them for a person to correct"
        console.print(f"{len(found.recheck)} rows to check again, the most harmful first{where}", markup=False)


def print_latency_table(table: Any, path: Path) -> None:
    """The table's size, how well it predicts whole networks, its slowest operators, and where it is."""
    from rich.console import Console
    from rich.table import Table

    agreement = table.agreement
    console = Console()
    console.print(
        f"{len(table.operators)} operators on {table.device['cpu']}, {table.setting.runtime}, "
        f"{table.setting.precision}, {table.setting.threads} thread(s), batch {table.setting.batch_size}; "
        f"{table.seconds:.0f} s"
    )
    if len(agreement.measured_ms) > 1:
        console.print(
            f"Predicted against measured, {len(agreement.measured_ms)} whole networks not used for the table: "
            f"Kendall's tau {agreement.kendall:.2f}, median error {agreement.median_error:.1%}"
        )
    rows = Table("operator", "µs", "alone, µs")
    for key, value in sorted(table.operators.items(), key=lambda entry: -entry[1])[:8]:
        rows.add_row(key, f"{1000 * value:.1f}", f"{1000 * table.alone.get(key, float('nan')):.1f}")
    console.print(rows)
    console.print(f"Table: {path}\nNext: ontarget search DATA --table {path} --threads {table.setting.threads}")


def print_search(found: Any) -> None:
    """The networks found, best first, and what to do with them."""
    from rich.console import Console
    from rich.table import Table

    from ontarget.report.search_page import describe
    from ontarget.search.take_over import TakenOver

    console = Console()
    limit = "no limit" if found.limit_ms is None else f"limit {found.limit_ms:g} ms"
    console.print(
        f"{len(found.evaluated)} networks evaluated in {found.seconds:.0f} s; the space spans "
        f"{found.fastest_ms:.3g} to {found.slowest_ms:.3g} ms, {limit}"
    )
    for line in TakenOver.from_json(found.taken_over).lines():
        console.print(line, markup=False, highlight=False)
    rows = Table("source", found.metric, "ms, measured", "predicted", "network")
    for row in found.networks:
        rows.add_row(
            row["locator"], f"{row['quality']:.4f}", f"{row['measured_ms']:.3g}", f"{row['predicted_ms']:.3g}",
            describe(row["config"]),
        )  # fmt: skip
    console.print(rows)
    if found.overrun:
        console.print(found.overrun, style="yellow", markup=False, highlight=False)
    console.print(f"Page: {found.folder}/search.html\nNext: ontarget fit DATA --pool {found.networks[0]['locator']}")


def print_discovery(found: Any, folder: Path) -> None:
    """Whether an update rule beats AdamW on the largest proxy, the rule, and where it is."""
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    if found.improved:
        console.print("A rule was found that beats tuned AdamW on the largest proxy task:")
    else:
        console.print("No rule that was tried beats tuned AdamW on the largest proxy task. The start is handed out:")
    console.print(escape(found.program.text()), highlight=False)
    console.print(f"Learning rate {found.rate:g}. Files: {folder}/optimizer.py, program.json, report.html")
