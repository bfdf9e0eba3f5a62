"""The audit of intruder dimensions as a page: where they are, how many for each threshold, what a repair does."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from ontarget.plan.run_folder import write_atomic
from ontarget.report.build import style_and_policy
from ontarget.report.svg import dot, frame, line, linear, padded, plot, ticks, tip

if TYPE_CHECKING:
    from ontarget.judge.audit_intruders import Audit


def write_intruders_page(path: Path, audit: Audit, base: str, tuned: str) -> None:
    """Write the page."""
    style, policy = style_and_policy()
    words = (
        f"{audit.intruders} of {audit.top * len(audit.matrices)} directions" if audit.matrices else "Nothing changed"
    )
    facts = [("base", base), ("tuned", tuned), ("matrices that changed", str(len(audit.matrices))),
             (f"intruders (nearest below {audit.epsilon:g})", words)]  # fmt: skip
    rows = "".join(f"<tr><th scope=row>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts)
    curve = [(float(epsilon), float(count)) for epsilon, count in audit.curve.items()]
    page = f"""<!doctype html><html lang=en><head><meta charset=utf-8>
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name=viewport content="width=device-width"><title>Intruder dimensions</title><style>{style}</style></head>
<body><main><h1>Intruder dimensions</h1><table>{rows}</table>
<section><h2>Where they are</h2><p>Smallest similarity of a top direction to any of the pretrained matrix; in brackets
the intruders.</p>{grid(audit)}</section>
<section><h2>How many, by the threshold</h2>
<div class="figure">{_curve([curve], "threshold", "intruders")}</div></section>
{_repairs(audit)}</main></body></html>"""
    write_atomic(path, page.encode("utf-8", "replace"))


def grid(audit: Audit) -> str:
    """Layers by modules."""
    modules = list(dict.fromkeys(row["module"] for row in audit.matrices))
    layers = sorted({row["layer"] for row in audit.matrices})
    cells = {(row["layer"], row["module"]): row for row in audit.matrices}

    def cell(row: Any) -> str:
        if row is None:
            return "<td></td>"
        low = float(min(row["nearest"]))
        mark = f"<strong>{low:.2f} [{row['intruders']}]</strong>" if row["intruders"] else f"{low:.2f}"
        return f"<td>{mark}</td>"

    head = "".join(f"<th>{escape(module)}</th>" for module in modules)
    body = "".join(
        f"<tr><th scope=row>{layer}</th>{''.join(cell(cells.get((layer, module))) for module in modules)}</tr>"
        for layer in layers
    )
    return f"<table><tr><th>layer</th>{head}</tr>{body}</table>"


def _repairs(audit: Audit) -> str:
    if not audit.repairs:
        return ""
    rows = "".join(
        f"<tr><td>{row['factor']:g}</td><td>{row['proxy_loss']:.4f}</td><td>{row['target_loss']:.4f}</td></tr>"
        for row in audit.repairs
    )
    base = audit.base_losses
    says = (
        "No factor lowers the loss on the proxy within 1% of the target's." if audit.chosen is None
        else f"Taken: {audit.chosen:g}."
    )  # fmt: skip
    return f"""<section><h2>Repair</h2><p>Loss of the next token with intruders scaled by a factor; 1 is the tuned
model. The base has {base["proxy"]:.4f} on the proxy and {base["target"]:.4f} on the target. {escape(says)}</p>
<table><tr><th>factor</th><th>proxy</th><th>target</th></tr>{rows}</table></section>"""


def _curve(series: Sequence[Sequence[tuple[float, float]]], below: str, what: str) -> Markup:
    points = [point for one in series for point in one]
    height = 200.0
    low, high = padded([value for _, value in points])
    x, y = linear(min(a for a, _ in points), max(a for a, _ in points)), linear(low, high, height, 0)
    parts = frame(
        height, [(x(value), f"{value:g}") for value in ticks(points[0][0], points[-1][0])],
        [(y(value), f"{value:g}") for value in ticks(low, high)], below,
    )  # fmt: skip
    for one in series:
        parts += [line(x(a), y(b), x(c), y(d), "front") for (a, b), (c, d) in pairwise(one)]
        parts += [dot(x(a), y(b), 3, "chosen", tip(f"{below} {a:g}", f"{what} {b:g}")) for a, b in one]
    return plot(height, parts, f"{what} by {below}", "axes")
