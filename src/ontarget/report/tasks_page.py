"""search.html of a search over several tasks: scores, latency and its table, topologies, the curves of the losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from ontarget.plan.run_folder import write_atomic
from ontarget.report.build import style_and_policy
from ontarget.report.search_page import curve, scatter
from ontarget.report.svg import dot, plot, text, tip

if TYPE_CHECKING:
    from ontarget.search.search_tasks import TasksSearched


def write_tasks_page(path: Path, found: TasksSearched) -> None:
    """Write the page."""
    style, policy = style_and_policy()
    rows = "".join(
        f"<tr><th scope=row>{escape(row['task'])}</th><td>{escape(row['kind'])}</td>"
        f"<td>{escape(row['metric'])}</td><td>{_score(row['validation'])}</td><td>{_score(row['test'])}</td>"
        f"<td>{row['measured_ms']:.3g}</td><td>{_figure(row['predicted_ms'])}</td><td>{_figure(row['limit_ms'])}</td>"
        f"<td>{row['macs'] / 1e6:.2f}</td>"
        f"<td>{sum(row['code'])} of {len(row['code'])}</td></tr>"
        for row in found.networks
    )
    pictures = "".join(
        f"<h3>{escape(row['task'])}</h3><div class=figure>{topology(found.blocks, row['code'], chances)}</div>"
        for row, chances in zip(found.networks, found.probabilities, strict=True)
    )
    curves = "".join(
        f"<h3>{escape(name)}</h3><div class=figure>"
        f"{curve([{'epoch': at + 1, 'loss': loss} for at, loss in enumerate(losses)])}</div>"
        for name, losses in found.training.items()
    )
    losses = "".join(
        f"<h3>{escape(row['task'])}</h3><div class=figure>"
        f"{curve([{'epoch': point['step'], 'loss': point[row['task']]} for point in found.curve], 'step')}</div>"
        for row in found.networks
    )
    agreement = ""
    if found.agreement:
        agreement = f"""<section><h2>Predicted and measured latency</h2><p>Of whole networks with all tasks' heads, that
the table was not made from: Kendall's tau {_figure(found.agreement["kendall"])}, median error
{found.agreement["error"]:.1%}.</p>
<div class=figure>{scatter(found.agreement["predicted_ms"], found.agreement["measured_ms"])}</div></section>
"""
    page = f"""<!doctype html><html lang=en><head><meta charset=utf-8>
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name=viewport content="width=device-width"><title>Search over tasks</title>
<style>{style}</style></head><body><main>
<h1>Search over tasks</h1>
<p>One search, {len(found.networks)} tasks, images of {found.image_size} x {found.image_size} pixels;
{found.steps} steps of the search, {found.epochs} epochs of each training, {found.budget_s:g} s of budget,
{found.setting["threads"]} thread(s).</p>
<section><h2>Networks</h2><p>Scores on images that neither search nor training nor choice saw, with 95% intervals over
the images; the test images were scored once, at the end. Latency of one image in ONNX Runtime, in a fresh process.</p>
<table><tr><th>task</th><th>kind</th><th>metric</th><th>validation</th><th>test</th><th>ms</th><th>predicted</th>
<th>limit</th><th>million MACs</th>
<th>blocks</th></tr>{rows}</table></section>
<section><h2>Topologies</h2><p>From left to right as they run, a row for each resolution. Large discs: blocks;
middle-sized: edges that arrive at the row; specks: left out, or never reached. Point at one for its name and the
probability that the search ended with.</p>{pictures}</section>
<section><h2>The search's losses</h2><p>Of the drawn topologies with shared weights, the mean of each tenth of the
steps.</p>{losses}</section>
{agreement}<section><h2>Training from scratch</h2>{curves}</section>
</main></body></html>"""
    write_atomic(path, page.encode("utf-8", "replace"))


def _score(found: Mapping[str, Any]) -> str:
    return f"{found['value']:.4f} ({found['low']:.4f} to {found['high']:.4f}; {found['images']} images)"


def _figure(value: float | None) -> str:
    """Three digits, or a dash for what there is none of."""
    return "–" if value is None else f"{value:.3g}"


def topology(blocks: Sequence[str], code: Sequence[int], probabilities: Sequence[float]) -> Markup:
    """Blocks from left to right in the order they run; a row for each branch, edges in the row they arrive in."""
    places = [int(name.split("branch")[-1].split("_")[0]) for name in blocks]
    parts = [text(0, 20 + 40 * row + 4, f"1/{2 ** (row + 1)}", "tick", dx=-8, anchor="end")
             for row in range(max(places) + 1)]  # fmt: skip
    for at, (name, bit, chance) in enumerate(zip(blocks, code, probabilities, strict=True)):
        x, inside = (
            100 * (at + 0.5) / len(blocks),
            tip(name, "kept" if bit else "left out", f"probability {chance:.2f}"),
        )
        edge = "_to_" in name
        radius, kind = ((5 if edge else 9), "mark chosen") if bit else (2, "mark trial")
        parts.append(dot(x, 20 + 40 * places[at], radius, kind, inside))
    height = 40.0 * (max(places) + 1)
    return plot(height, parts, f"Topology with {sum(code)} of {len(code)} blocks and edges", "axes")
