"""selection.html: what a data selection looks like. One self-contained page: scores, lengths, the first documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

from ontarget.plan.run_folder import write_atomic
from ontarget.report.build import style_and_policy
from ontarget.report.svg import dot, frame, linear, log_ticks, logarithmic, padded, plot, ticks, tip
from ontarget.values import Array

if TYPE_CHECKING:
    from ontarget.select.select_data import Selection

BINS = 40
POINTS = 1500  # documents drawn in the plot of lengths, at most
SHOWN = 20  # documents that are listed
LETTERS = 400  # of each


def write_selection_page(
    path: Path, found: Selection, scores: Array, lengths: Array, chosen: Array, texts: Sequence[str]
) -> None:
    """Write the page. scores, lengths: of all documents with text. chosen: positions among them; texts: theirs."""
    selected = np.zeros(len(scores), dtype=bool)
    selected[chosen] = True
    style, policy = style_and_policy()
    agreement = (
        "" if found.agreement is None else f" Fast scores; rank agreement with exact ones {found.agreement:.3f}."
    )
    facts = [
        ("documents in the pool", f"{found.documents:,}"), ("without text", f"{found.empty:,}"),
        ("selected", f"{found.chosen:,} ({found.selected_bytes / 2**20:.2f} MiB)"),
        ("equal to a better one", f"{found.exact_duplicates:,}"),
        ("near-duplicate of a better one", f"{found.near_duplicates:,}"),
        ("mean score, pool and selection", f"{found.mean:.4f} and {found.mean_selected:.4f}"),
        ("spread explained by length alone", f"{found.length_share:.0%}"),
    ]  # fmt: skip
    rows = "".join(f"<tr><th scope=row>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts)
    listed = "".join(
        f"<li><small>score {scores[at]:.4f}, {int(lengths[at]):,} bytes</small><pre>{escape(text[:LETTERS])}"
        f"{'…' if len(text) > LETTERS else ''}</pre></li>"
        for at, text in zip(chosen[:SHOWN], texts[:SHOWN], strict=False)
    )
    page = f"""<!doctype html><html lang=en><head><meta charset=utf-8>
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name=viewport content="width=device-width"><title>Data selection</title><style>{style}</style></head><body><main>
<h1>Data selection by {escape(found.method)}</h1>
<p>{found.chosen:,} of {found.documents:,} documents, best first in <code>selected.parquet</code>.{agreement}</p>
<table>{rows}</table>
<section><h2>Scores</h2><div class="figure">{histogram(scores, selected)}</div></section>
<section><h2>Score and length</h2><p>Documents are compared with those of like length.</p>
<div class="figure">{by_length(scores, lengths, selected)}</div></section>
<section><h2>The first {min(SHOWN, len(texts))}</h2><ol>{listed}</ol></section></main></body></html>"""
    write_atomic(path, page.encode("utf-8", "replace"))


def histogram(scores: Array, selected: Array) -> Markup:
    """Distribution of the scores: all documents, and the selected ones in front."""
    height = 220.0
    counts, edges = np.histogram(scores, BINS)
    chosen, _ = np.histogram(scores[selected], edges)
    x, y = linear(float(edges[0]), float(edges[-1])), linear(0, float(counts.max()), height, 0)
    parts = frame(
        height, [(x(value), f"{value:g}") for value in ticks(float(edges[0]), float(edges[-1]))],
        [(y(value), f"{value:g}") for value in ticks(0, float(counts.max()))], "score",
    )  # fmt: skip
    for kind, values in (("trial", counts), ("chosen", chosen)):
        parts += [_bar(x, y, edges, at, int(value), kind, height) for at, value in enumerate(values) if value]
    return plot(height, parts, "Histogram of the scores; the selected documents stand out", "axes")


def _bar(x: Any, y: Any, edges: Array, at: int, value: int, kind: str, height: float) -> str:
    left, right = x(float(edges[at])), x(float(edges[at + 1]))
    says = tip(
        f"{edges[at]:.4f} to {edges[at + 1]:.4f}", f"{value:,} {'selected' if kind == 'chosen' else 'documents'}"
    )
    return (
        f'<rect class="{kind}" x="{left:.2f}%" y="{y(value):.1f}" width="{max(0.1, right - left - 0.2):.2f}%" '
        f'height="{height - y(value):.1f}">{says}</rect>'
    )


def by_length(scores: Array, lengths: Array, selected: Array, seed: int = 0) -> Markup:
    """Score against length of a sample of the documents."""
    height = 260.0
    shown = np.random.default_rng(seed).permutation(len(scores))[:POINTS]
    low_x, high_x = max(1.0, float(lengths[shown].min())), max(2.0, float(lengths[shown].max()) * 1.05)
    low_y, high_y = padded([float(scores[shown].min()), float(scores[shown].max())])
    x, y = logarithmic(low_x, high_x), linear(low_y, high_y, height, 0)
    parts = frame(
        height, [(x(value), f"{value:g}") for value in log_ticks(low_x, high_x)],
        [(y(value), f"{value:g}") for value in ticks(low_y, high_y)], "bytes (logarithmic)",
    )  # fmt: skip
    for at in sorted(shown, key=lambda at: bool(selected[at])):
        kind = "chosen" if selected[at] else "trial"
        says = tip(f"score {scores[at]:.4f}", f"{int(lengths[at]):,} bytes", "selected" if selected[at] else "")
        parts.append(dot(x(max(1.0, float(lengths[at]))), y(float(scores[at])), 2.5, kind, says))
    return plot(height, parts, "Score against length of the documents", "axes")
