"""A compressed language model as a page: what it costs and what it loses; bits against perplexity where several were
tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from ontarget.plan.run_folder import write_atomic
from ontarget.report.build import style_and_policy
from ontarget.report.svg import dot, frame, line, linear, padded, plot, ticks, tip

if TYPE_CHECKING:
    from ontarget.compress.compress_language_model import Compression


def write_compression_page(path: Path, found: Compression) -> None:
    """Write the page."""
    from ontarget.compress.compress_language_model import perplexity

    style, policy = style_and_policy()
    small, whole = found.sizes["weights_bytes"], found.sizes["bfloat16_bytes"]
    facts = [
        ("model", found.model),
        ("bits", f"{found.bits}; {found.sizes['matrix_bits']:.2f} a weight with scales and outliers"),
        ("weights in few bits", f"{found.quantised_share:.1%}"),
        ("size", f"{small / 2**20:,.1f} MiB; bfloat16 {whole / 2**20:,.1f} MiB"),
        ("bytes a weight, all counted", f"{found.sizes['bytes_per_weight']:.3f}"),
        ("perplexity on held-out rows", f"{perplexity(found.loss_before):.3f} before, "
         f"{perplexity(found.loss_after):.3f} after"),
        ("rise of the loss, nats a token", f"{found.rise:.4f} ({found.rise_low:.4f} to {found.rise_high:.4f}, 95% over "
         f"{found.units} {found.unit}s); allowed {found.tolerance:g}"),
        ("speed", found.speed),
        *((f"latency of {name}", f"a token {one['decode_ms']:.1f} ms, a prompt {one['prefill_ms']:.1f} ms")
          for name, one in found.latency.items()),
        *(("kept all the same", reason) for reason in found.undone),
    ]  # fmt: skip
    rows = "".join(f"<tr><th scope=row>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts)
    tried = ""
    if found.tried:
        tried = (
            f'<section><h2>Bits</h2><p>Perplexity on rows that were set apart to choose by; the line is the model as '
            f'it was.</p><div class="figure">{bits_plot(found.tried, found.bits)}</div></section>'
        )  # fmt: skip
    page = f"""<!doctype html><html lang=en><head><meta charset=utf-8>
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name=viewport content="width=device-width"><title>Compressed model</title><style>{style}</style></head>
<body><main><h1>Compressed model</h1><table>{rows}</table>{tried}</main></body></html>"""
    write_atomic(path, page.encode("utf-8", "replace"))


def bits_plot(tried: Sequence[Mapping[str, float]], chosen: int) -> Markup:
    """Bits a weight, everything counted, against perplexity; those beyond 20 times the original's are left out."""
    whole = tried[0]["perplexity_before"]
    shown = [row for row in tried if row["perplexity"] <= 20 * whole] or [min(tried, key=lambda row: row["perplexity"])]
    height = 200.0
    low, high = padded([*(row["perplexity"] for row in shown), whole])
    left, right = padded([row["matrix_bits"] for row in shown])
    x, y = linear(left, right), linear(low, high, height, 0)
    parts = frame(
        height, [(x(value), f"{value:g}") for value in ticks(left, right)],
        [(y(value), f"{value:g}") for value in ticks(low, high)], "bits a weight, all counted",
    )  # fmt: skip
    parts.append(line(0, y(whole), 100, y(whole), "grid"))
    points = [(row["matrix_bits"], row["perplexity"]) for row in shown]
    parts += [line(x(a), y(b), x(c), y(d), "front") for (a, b), (c, d) in pairwise(points)]
    for row in shown:
        told = tip(f"{row['bits']:g} bits, {row['matrix_bits']:.2f} all counted", f"perplexity {row['perplexity']:.3f}")
        kind, radius = ("chosen", 5) if row["bits"] == chosen else ("", 3)
        parts.append(dot(x(row["matrix_bits"]), y(row["perplexity"]), radius, kind, told))
    return plot(height, parts, "perplexity by bits a weight", "axes")
