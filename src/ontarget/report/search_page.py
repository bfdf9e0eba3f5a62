"""search.html: what a search of networks looks like, on one self-contained page: front, history, table, choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from ontarget.plan.run_folder import write_atomic
from ontarget.report.build import style_and_policy
from ontarget.report.plots import pareto
from ontarget.report.svg import dot, frame, line, linear, padded, plot, ticks, tip

if TYPE_CHECKING:
    from ontarget.search.search_networks import Searched

SHOWN_SLOTS = 12  # choices that are listed, most important first


def write_search_page(path: Path, found: Searched, training: Sequence[Mapping[str, Any]]) -> None:
    """Write the page. training: the history of the super-network's training, an epoch an entry."""
    style, policy = style_and_policy()
    agreement = found.agreement
    facts = [
        ("metric", found.metric), ("space", found.space), ("networks evaluated", f"{len(found.evaluated):,}"),
        ("latency of the space", f"{found.fastest_ms:.3g} to {found.slowest_ms:.3g} ms"),
        ("limit", "none" if found.limit_ms is None else f"{found.limit_ms:g} ms"),
        ("how it runs", ", ".join(f"{name} {value}" for name, value in found.setting.items())),
        ("seconds", f"{found.spent_s:.0f} of {found.budget_s:.0f}"),
    ]  # fmt: skip
    rows = "".join(f"<tr><th scope=row>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts)
    networks = "".join(
        f"<tr><td>found/{at + 1}</td><td>{row['quality']:.4f}</td><td>{row['measured_ms']:.3g}</td>"
        f"<td>{row['predicted_ms']:.3g}</td><td>{escape(describe(row['config']))}</td></tr>"
        for at, row in enumerate(found.networks)
    )
    points = [
        {"name": str(tuple(row["code"])), "latency_ms": row["predicted_ms"], "value": row["quality"], "kind": "trial"}
        for row in found.evaluated
    ] + [
        {"name": f"found/{at + 1}", "latency_ms": row["measured_ms"], "value": row["quality"], "kind": "form"}
        for at, row in enumerate(found.networks)
    ]
    known = len(agreement["measured_ms"]) > 0
    says = (
        f"Kendall's tau {agreement['kendall']:.2f}, median error {agreement['error']:.1%}, on networks that the table "
        "was not made from."
        if known
        else "The table was given."
    )
    page = f"""<!doctype html><html lang=en><head><meta charset=utf-8>
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name=viewport content="width=device-width"><title>Network search</title><style>{style}</style></head><body><main>
<h1>Network search</h1>
<table>{rows}</table>
{taken_over(found.taken_over)}<section><h2>Networks found</h2><p>Quality on validation rows; latency measured in a
fresh process.</p>
<table><tr><th>folder</th><th>{escape(found.metric)}</th><th>ms</th><th>predicted</th><th>network</th></tr>{networks}
</table></section>
<section><h2>Quality and latency</h2><p>Dots: parts of the super-network, latency predicted. Squares: the networks
found, measured.</p><div class="figure">{pareto(points, metric=found.metric, limit_ms=found.limit_ms)}</div></section>
<section><h2>The search's progress</h2><div class="figure">{progress(found.history)}</div></section>
<section><h2>Training of the super-network</h2><div class="figure">{curve(training)}</div></section>
<section><h2>Predicted and measured latency</h2><p>{says}</p>
<div class="figure">{scatter(agreement["predicted_ms"], agreement["measured_ms"])}</div></section>
<section><h2>Choices that matter</h2><p>Change of {escape(found.metric)} against a slot's mean.</p>
{choices(found.importance)}</section>
</main></body></html>"""
    write_atomic(path, page.encode("utf-8", "replace"))


def taken_over(stored: Mapping[str, Any]) -> str:
    """What came from earlier searches and which choices were dropped; nothing where none was asked for."""
    from ontarget.search.take_over import TakenOver

    lines = TakenOver.from_json(stored).lines() if stored else []
    if not lines:
        return ""
    return (
        "<section><h2>Taken over from earlier searches</h2><ul>"
        + "".join(f"<li>{escape(line)}</li>" for line in lines)
        + "</ul></section>\n"
    )


def describe(config: Mapping[str, Any]) -> str:
    """A network in one line."""
    if config["network"] == "mobile":
        blocks = config["blocks"][1:]
        return f"{len(blocks)} blocks: " + " ".join(
            f"{block['kernel']}x{block['kernel']}/{block['expansion']}→{block['out']}" + "↓" * (block["stride"] > 1)
            for block in blocks
        )
    layers = config["layers"]
    return f"{len(layers)} layers: " + " ".join(_layer(layer) for layer in layers)


def _layer(layer: Mapping[str, int]) -> str:
    """Heads, or groups of heads, and neurons of a transformer's layer."""
    heads = f"{layer['heads']}h" if "heads" in layer else f"{layer['groups']}g"
    return f"{heads}/{layer['hidden']}"


def progress(history: Sequence[Mapping[str, Any]]) -> Markup:
    """Hypervolume after each round of real evaluations."""
    points = [(float(row["evaluations"]), float(row["hypervolume"])) for row in history]
    return _lines(points, "networks evaluated", "hypervolume")


def curve(history: Sequence[Mapping[str, Any]], below: str = "epoch") -> Markup:
    """Loss of each epoch. below: what the horizontal axis is called."""
    return _lines([(float(row["epoch"]), float(row["loss"])) for row in history], below, "loss")


def _lines(points: Sequence[tuple[float, float]], below: str, what: str) -> Markup:
    if len(points) < 2:
        return Markup("<p>Too little to draw.</p>")
    height = 200.0
    low_y, high_y = padded([value for _, value in points])
    x, y = linear(points[0][0], points[-1][0]), linear(low_y, high_y, height, 0)
    parts = frame(
        height, [(x(value), f"{value:g}") for value in ticks(points[0][0], points[-1][0])],
        [(y(value), f"{value:g}") for value in ticks(low_y, high_y)], below,
    )  # fmt: skip
    parts += [line(x(a), y(b), x(c), y(d), "front") for (a, b), (c, d) in pairwise(points)]
    parts += [dot(x(a), y(b), 3, "chosen", tip(f"{below} {a:g}", f"{what} {b:.4g}")) for a, b in points]
    return plot(height, parts, f"{what} by {below}", "axes")


def scatter(predicted: Sequence[float], measured: Sequence[float]) -> Markup:
    """Predicted against measured milliseconds, with the line where both are equal."""
    if len(predicted) < 2:
        return Markup("<p>Nothing was compared.</p>")
    height = 260.0
    low, high = padded([*predicted, *measured])
    x, y = linear(low, high), linear(low, high, height, 0)
    marks = [(x(value), f"{value:g}") for value in ticks(low, high)]
    parts = frame(height, marks, [(y(value), f"{value:g}") for value in ticks(low, high)], "measured, ms")
    parts.append(line(x(low), y(low), x(high), y(high), "limit"))
    parts += [
        dot(x(real), y(guess), 4, "mark trial", tip(f"measured {real:.4g} ms", f"predicted {guess:.4g} ms"))
        for guess, real in zip(predicted, measured, strict=True)
    ]
    return plot(height, parts, "Predicted against measured latency", "axes")


def choices(importance: Sequence[Mapping[str, Any]]) -> Markup:
    """The slots that matter most, with the effect of each of their choices."""
    rows = "".join(
        f"<tr><th scope=row>{escape(entry['slot'])}</th><td>"
        + ", ".join(f"{escape(name)}: {value:+.4f}" for name, value in entry["effects"].items())
        + "</td></tr>"
        for entry in importance[:SHOWN_SLOTS]
    )
    return Markup(f"<table>{rows}</table>")
