"""Pieces of inline SVG that keep their text readable at any width: across in percent, down in pixels.

A plot is as wide as the page leaves it; its height is fixed. Axis labels stand outside of its box, in margins that the
stylesheet leaves. No scripts, fonts or inline styles: colours come from classes. All text from data is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup, escape

Scale = Callable[[float], float]


def linear(low: float, high: float, start: float = 0.0, end: float = 100.0) -> Scale:
    """[low, high] onto [start, end]; the middle of it where low equals high."""
    if high <= low:
        return lambda value: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)


def logarithmic(low: float, high: float, start: float = 0.0, end: float = 100.0) -> Scale:
    """[low, high], both above 0, onto [start, end]."""
    inner = linear(math.log10(low), math.log10(high), start, end)
    return lambda value: inner(math.log10(value))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values inside [low, high], about ``count`` of them."""
    span = high - low
    if span <= 1e-9 * max(abs(low), abs(high)):
        return [low]
    step = 10 ** math.floor(math.log10(span / count))
    step *= min((1, 2, 5, 10), key=lambda factor: abs(span / (step * factor) - count))
    first = math.ceil(low / step - 1e-9)
    return [round((first + at) * step, 12) for at in range(int((high - first * step) / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... inside [low, high]; powers of ten alone where that would be many."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    values = [round(factor * 10.0**power, 12) for power in powers for factor in (1, 2, 5)]
    inside = [value for value in values if low <= value <= high]
    return inside if len(inside) <= 7 else [value for value in inside if f"{value:e}"[0] == "1"]


def padded(values: Sequence[float], share: float = 0.08) -> tuple[float, float]:
    """Smallest and largest value with ``share`` of their distance left on both sides."""
    low, high = min(values), max(values)
    pad = share * ((high - low) or abs(high) or 1.0)
    return low - pad, high + pad


def tip(*lines: Any) -> str:
    """What a mark says when pointed at: a `<title>`, one fact a line."""
    return f"<title>{escape(chr(10).join(str(line) for line in lines if line not in ('', None)))}</title>"


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A line; x in percent, y in pixels."""
    return f'<line class="{kind}" x1="{x1:.2f}%" y1="{y1:.1f}" x2="{x2:.2f}%" y2="{y2:.1f}"/>'


def text(x: float, y: float, content: Any, kind: str = "", *, dx: float = 0, anchor: str = "start") -> str:
    """Text at x percent plus dx pixels, y pixels (its baseline)."""
    shift = f' dx="{dx:g}"' if dx else ""
    return f'<text class="{kind}" x="{x:.2f}%" y="{y:.1f}"{shift} text-anchor="{anchor}">{escape(content)}</text>'


def dot(x: float, y: float, radius: float, kind: str, inside: str) -> str:
    """A circle with its tooltip."""
    return f'<circle class="{kind}" cx="{x:.2f}%" cy="{y:.1f}" r="{radius:.1f}">{inside}</circle>'


def square(x: float, y: float, side: float, kind: str, inside: str) -> str:
    """A square around (x, y) with its tooltip; class "diamond" turns it."""
    move = f'transform="translate({-side / 2:g} {-side / 2:g})"'
    rect = f'<rect class="{kind}" x="{x:.2f}%" y="{y:.1f}" width="{side:g}" height="{side:g}">{inside}</rect>'
    return f"<g {move}>{rect}</g>"


def frame(height: float, xs: Sequence[tuple[float, str]], ys: Sequence[tuple[float, str]], across: str) -> list[str]:
    """Grid lines and labels: xs of (percent, label), ys of (pixels, label); ``across`` names the horizontal axis."""
    parts = [line(0, at, 100, at, "grid") + text(0, at + 4, label, "tick", dx=-8, anchor="end") for at, label in ys]
    parts += [text(at, height + 18, label, "tick", anchor="middle") for at, label in xs]
    parts.append(text(50, height + 37, across, "axis", anchor="middle"))
    return parts


def plot(height: float, parts: Sequence[str], label: str, kind: str = "") -> Markup:
    """The `<svg>` element; ``label`` is what a screen reader says of it."""
    return Markup(
        f'<svg class="plot {kind}" height="{height:.0f}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
