"""report.html of an optimizer discovery: the verdict, the rule, the funnel, and fitness over the search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ontarget.search.proxy_tasks import ProxyTask
    from ontarget.search.symbolic_optimizer import Discovery


def optimizer_page(found: Discovery, tasks: Sequence[ProxyTask]) -> str:
    """The self-contained report: verdict, rule, funnel, and fitness over the search."""
    from markupsafe import Markup, escape

    from ontarget.report.build import style_and_policy
    from ontarget.report.svg import dot, frame, line, linear, padded, plot, ticks, tip

    style, policy = style_and_policy()
    finite = [(at, value) for at, value in enumerate(found.history) if math.isfinite(value)]
    figure = Markup("")
    if finite:
        height = 240.0
        start = finite[0][1]
        floor = start - 2 * max(max(value for _, value in finite) - start, 0.05 * abs(start))  # failures lie below
        low, high = padded([max(value, floor) for _, value in finite])
        x, y = linear(0, max(1, len(found.history) - 1), 2, 98), linear(low, high, height, 0)
        parts = frame(
            height, [(x(at), f"{at:g}") for at in ticks(0, len(found.history))],
            [(y(value), f"{value:g}") for value in ticks(low, high)], "programs evaluated",
        )  # fmt: skip
        best, best_at = start, finite[0][0]
        for at, value in finite:
            parts.append(dot(x(at), y(max(value, floor)), 2.5, "trial", tip(f"program {at + 1}", f"{value:.4f}")))
            if value > best:
                parts.append(line(x(best_at), y(best), x(at), y(best), "front"))
                parts.append(line(x(at), y(best), x(at), y(value), "front"))
                best, best_at = value, at
        parts.append(line(x(best_at), y(best), 98, y(best), "front"))
        figure = plot(height, parts, "Fitness of each program, and the best so far", "axes")
    heads = "".join(f"<th scope=col>{escape(task.name.split(',')[0])}</th>" for task in tasks)
    rows = "".join(
        f"<tr><th scope=row>{escape(row.name)}</th>"
        + "".join(f"<td>{value:.4f} (lr {rate:.3g})</td>" for value, rate in zip(row.fitness, row.rates, strict=True))
        + "<td>not reached</td>" * (len(tasks) - len(row.fitness)) + "</tr>"
        for row in found.funnel
    )  # fmt: skip
    verdict = (
        "It beats AdamW, tuned in the same way, on the validation rows of the largest task."
        if found.improved
        else "No rule was shown to beat AdamW on the largest task; what you see is AdamW without bias correction."
        if found.finished
        else "The search was stopped by its deadline; the rule was not compared with AdamW on larger tasks. Go on with "
        "the same command."
    )
    return f"""<!doctype html><html lang=en><head><meta charset=utf-8>
<meta http-equiv="Content-Security-Policy" content="{policy}"><meta name=viewport content="width=device-width">
<title>Optimizer discovery</title><style>{style}</style></head><body><main><h1>Optimizer discovery</h1>
<p>{escape(verdict)} {len(found.history)} programs, {found.restarts} restarts; state: {len(found.program.states)}
numbers a parameter (AdamW: 2).</p>
<section><h2>The rule</h2><p>w &larr; w &minus; update, with lr = {found.rate:.3g} at the schedule's peak.
<code>optimizer.py</code> holds it as an optimizer.</p><pre>{escape(found.program.text())}</pre></section>
<section><h2>Funnel</h2><p>Minus the validation loss of each task, higher is better; in brackets the rate that the task
wants: a multiple of the rule's own, and for AdamW, which has bias correction here, the rate itself.</p>
<table><tr><th></th>{heads}</tr>{rows}</table></section>
<section><h2>Search</h2><div class="figure">{figure}</div></section></main></body></html>"""
