"""What the terminal shows: a ranking, or the result of a run in a few lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ontarget.values import Ranking


def ranking_as_dict(ranking: Ranking) -> dict[str, Any]:
    """JSON-able form of a ranking."""
    from dataclasses import asdict

    return asdict(ranking)


def print_ranking(ranking: Ranking) -> None:
    """One line a source: the deciding score with its interval, the other scores, costs."""
    from rich.console import Console
    from rich.table import Table

    names = list(dict.fromkeys(name for entry in ranking.entries for name in entry.scores))
    others = [name for name in names if name != ranking.decided_by]
    table = Table("", "source", f"{ranking.decided_by} [95%]", *others, "D", "features s", "scores s")
    for place, entry in enumerate(ranking.entries, start=1):
        decided = entry.scores[ranking.decided_by]
        close = " ≈" if entry.too_close and place > 1 else ""
        table.add_row(
            str(place),
            entry.source,
            f"{decided.value:.3f} [{decided.low:.3f}, {decided.high:.3f}]{close}",
            *(f"{entry.scores[name].value:.3f}" if name in entry.scores else "" for name in others),
            str(entry.dim),
            f"{entry.features_s:.1f}" if entry.features_s else "cached",
            f"{sum(score.seconds for score in entry.scores.values()):.2f}",
        )
    console = Console()
    console.print(table)
    if any(entry.too_close for entry in ranking.entries[1:]):
        console.print("≈ too close to call: the interval overlaps that of the first")


def print_report(report: Mapping[str, Any], path: Path) -> None:
    """The result: what was chosen, how good, against what, at which cost, and where everything is."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    evidence, bundle, costs = report["evidence"], report["bundle"], report["costs"]
    test = evidence["test"]
    console.print(f"\n[bold]{report['decision']['title']}[/], deployed as {bundle['form']}")
    console.print(report["decision"]["reason"])
    table = Table("on the test rows", evidence["metric"], "95%", "difference", "p")
    table.add_row("[bold]this model[/]", f"{test['value']:.4f}", f"[{test['low']:.4f}, {test['high']:.4f}]", "", "")
    for row in evidence["baselines"]:
        table.add_row(
            row["name"],
            f"{row['value']:.4f}",
            f"[{row['low']:.4f}, {row['high']:.4f}]",
            f"{row['difference']:+.4f}",
            f"{row['p_value']:.3g}",
        )
    console.print(table)
    limit = report["limits"].get("latency_ms")
    against = f" (limit {limit:g} ms)" if limit else ""
    console.print(
        f"latency p50 {bundle['latency_p50_ms']:.2f} ms, p95 {bundle['latency_p95_ms']:.2f} ms{against}, "
        f"bundle {bundle['size_mb']:.1f} MiB, {costs['total_s']:.0f} s of {costs['budget_s']:.0f} s"
    )
    for warning in report["data"]["warnings"]:
        console.print(f"[yellow]note[/] {warning}")
    console.print(f"report  {path / 'report.html'}\nbundle  {bundle['path']}")
