"""Plots as inline SVG: no scripts, no fonts, colours from the page's CSS, every mark with a tooltip.

Each function takes plain numbers and gives one `<svg>` element. All text that comes from data is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

WIDTH = 720


def _scale(low: float, high: float, start: float, end: float, log: bool = False) -> Any:
    if log:
        low, high = math.log10(low), math.log10(high)
    span = (high - low) or 1.0
    return lambda value: start + ((math.log10(value) if log else value) - low) / span * (end - start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values inside [low, high], about ``count`` of them."""
    span = high - low
    if span <= 0:
        return [low]
    step = 10 ** math.floor(math.log10(span / count))
    step *= min((1, 2, 5, 10), key=lambda factor: abs(span / (step * factor) - count))
    first = math.ceil(low / step - 1e-9)
    return [round(first * step + at * step, 12) for at in range(int((high - first * step) / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    values = [
        factor * 10.0**power
        for power in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
        for factor in (1, 2, 5)
    ]
    inside = [value for value in values if low <= value <= high]
    return inside if len(inside) <= 9 else [value for value in inside if f"{value:e}"[0] == "1"]


def _text(x: float, y: float, content: Any, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(content)}</text>'


def _svg(height: float, parts: Sequence[str], label: str) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def pareto(points: Sequence[Mapping[str, Any]], *, metric: str, limit_ms: float | None) -> Markup:
    """Quality against latency. points: name, latency_ms > 0, value, chosen (bool); the front is drawn as a line."""
    height, left, right, top, bottom = 340, 64, 20, 16, 44
    points = [point for point in points if point["latency_ms"] and point["value"] is not None]
    if not points:
        return Markup("")
    xs = [point["latency_ms"] for point in points] + ([limit_ms] if limit_ms else [])
    ys = [point["value"] for point in points]
    pad = 0.08 * ((max(ys) - min(ys)) or 0.1)
    low_x, high_x, low_y, high_y = min(xs) / 1.4, max(xs) * 1.4, min(ys) - pad, max(ys) + pad
    x = _scale(low_x, high_x, left, WIDTH - right, log=True)
    y = _scale(low_y, high_y, height - bottom, top)
    parts = []
    for value in ticks(low_y, high_y):
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(_text(left - 8, y(value) + 4, f"{value:g}", "tick", "end"))
    for value in _log_ticks(low_x, high_x):
        parts.append(_text(x(value), height - bottom + 18, f"{value:g}", "tick", "middle"))
    parts.append(_text((left + WIDTH - right) / 2, height - 6, "latency p50, ms (logarithmic)", "axis", "middle"))
    parts.append(_text(left, top - 4, metric, "axis"))
    if limit_ms:
        at = x(limit_ms)
        parts.append(f'<line class="limit" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{height - bottom}"/>')
        parts.append(_text(at - 6, top + 12, f"limit {limit_ms:g} ms", "limit-text", "end"))
    front, best = [], -math.inf
    for point in sorted(points, key=lambda point: (point["latency_ms"], -point["value"])):
        if point["value"] > best:
            best = point["value"]
            front.append(f"{x(point['latency_ms']):.1f},{y(point['value']):.1f}")
    parts.append(f'<polyline class="front" points="{" ".join(front)}"/>')
    for point in sorted(points, key=lambda point: bool(point.get("chosen"))):
        kind = "dot chosen" if point.get("chosen") else "dot"
        tip = escape(f"{point['name']}: {metric} {point['value']:.4f}, {point['latency_ms']:.2f} ms")
        parts.append(
            f'<circle class="{kind}" cx="{x(point["latency_ms"]):.1f}" cy="{y(point["value"]):.1f}" '
            f'r="{7 if point.get("chosen") else 5}"><title>{tip}</title></circle>'
        )
    return _svg(height, parts, f"{metric} against latency of {len(points)} candidates")


def intervals(rows: Sequence[Mapping[str, Any]], *, label: str) -> Markup:
    """One row a name: value with its interval. rows: name, value, low, high, strong (bool), note."""
    rows = [row for row in rows if row["value"] is not None]
    if not rows:
        return Markup("")
    line, left, right, top = 30, 250, 80, 8
    height = top + line * len(rows) + 34
    lows = [row["low"] if row["low"] is not None else row["value"] for row in rows]
    highs = [row["high"] if row["high"] is not None else row["value"] for row in rows]
    pad = 0.05 * ((max(highs) - min(lows)) or 0.1)
    low, high = min(lows) - pad, max(highs) + pad
    x = _scale(low, high, left, WIDTH - right)
    parts = []
    for value in ticks(low, high):
        parts.append(f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{top}" y2="{height - 30}"/>')
        parts.append(_text(x(value), height - 14, f"{value:g}", "tick", "middle"))
    for at, row in enumerate(rows):
        y = top + line * at + line / 2
        kind = "strong" if row.get("strong") else ""
        name = row["name"] if len(row["name"]) <= 34 else row["name"][:33] + "…"
        parts.append(_text(left - 12, y + 4, name, f"name {kind}", "end"))
        parts.append(
            f'<line class="bar {kind}" x1="{x(lows[at]):.1f}" x2="{x(highs[at]):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        tip = escape(f"{row['name']}: {row['value']:.4f} [{lows[at]:.4f}, {highs[at]:.4f}]")
        parts.append(
            f'<circle class="dot {kind and "chosen"}" cx="{x(row["value"]):.1f}" cy="{y:.1f}" r="5"><title>{tip}</title>'
            "</circle>"
        )
        parts.append(_text(WIDTH - right + 8, y + 4, row.get("note") or f"{row['value']:.3f}", f"name {kind}"))
    return _svg(height, parts, label)


def curves(series: Sequence[Mapping[str, Any]], *, label: str) -> Markup:
    """Learning curves. series: name, points [(epoch, value)], strong (bool)."""
    series = [row for row in series if row["points"]]
    if not series:
        return Markup("")
    height, left, right, top, bottom = 280, 64, 20, 16, 40
    xs = [epoch for row in series for epoch, _ in row["points"]]
    ys = [value for row in series for _, value in row["points"]]
    pad = 0.06 * ((max(ys) - min(ys)) or 0.1)
    low_y, high_y = min(ys) - pad, max(ys) + pad
    x = _scale(min(xs), max(max(xs), min(xs) + 1), left, WIDTH - right)
    y = _scale(low_y, high_y, height - bottom, top)
    parts = []
    for value in ticks(low_y, high_y):
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(_text(left - 8, y(value) + 4, f"{value:g}", "tick", "end"))
    for epoch in sorted(set(xs)):
        parts.append(_text(x(epoch), height - bottom + 18, f"{epoch:g}", "tick", "middle"))
    parts.append(_text((left + WIDTH - right) / 2, height - 4, "epoch", "axis", "middle"))
    for row in sorted(series, key=lambda row: bool(row.get("strong"))):
        kind = "strong" if row.get("strong") else ""
        places = " ".join(f"{x(epoch):.1f},{y(value):.1f}" for epoch, value in row["points"])
        parts.append(
            f'<polyline class="curve {kind}" points="{places}"><title>{escape(row["name"])}</title></polyline>'
        )
        for epoch, value in row["points"]:
            tip = escape(f"{row['name']}, epoch {epoch:g}: {value:.4f}")
            parts.append(
                f'<circle class="dot {kind and "chosen"}" cx="{x(epoch):.1f}" cy="{y(value):.1f}" r="4">'
                f"<title>{tip}</title></circle>"
            )
    return _svg(height, parts, label)


def confusion(table: Sequence[Sequence[int]], classes: Sequence[str]) -> Markup:
    """Rows: true classes; columns: predicted ones; colour by share of the row."""
    count = len(classes)
    if not count or not table:
        return Markup("")
    left, top = 150, 26
    cell = max(5.0, min(56.0, (WIDTH - left - 10) / count))
    height = top + cell * count + 10
    parts = [_text(left, 14, "predicted →", "axis")]
    for row, name in enumerate(classes):
        total = sum(table[row]) or 1
        if cell >= 11:
            shown = name if len(name) <= 20 else name[:19] + "…"
            parts.append(_text(left - 8, top + cell * (row + 0.5) + 4, shown, "name", "end"))
        for column, other in enumerate(classes):
            value = table[row][column]
            share = value / total
            tip = escape(f"{name} predicted as {other}: {value} of {total}")
            kind = "cell right" if row == column else "cell wrong"
            parts.append(
                f'<rect class="{kind}" x="{left + cell * column:.1f}" y="{top + cell * row:.1f}" width="{cell - 1:.1f}" '
                f'height="{cell - 1:.1f}" style="--share:{0.06 + 0.94 * share if value else 0:.3f}"><title>{tip}</title></rect>'
            )
            if cell >= 26 and value:
                tone = "on" if share > 0.55 else ""
                parts.append(
                    _text(left + cell * (column + 0.5), top + cell * (row + 0.5) + 4, value, f"count {tone}", "middle")
                )
    return _svg(height, parts, f"confusion matrix of {count} classes")


def timeline(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """What ran when. rows: stage, what (features | training | measuring | other), start_s, seconds."""
    rows = [row for row in rows if row["seconds"] >= 0.05]
    if not rows:
        return Markup("")
    line, left, right, top = 20, 150, 60, 6
    height = top + line * len(rows) + 30
    end = max(row["start_s"] + row["seconds"] for row in rows)
    x = _scale(0, end, left, WIDTH - right)
    parts = []
    for value in ticks(0, end):
        parts.append(f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{top}" y2="{height - 26}"/>')
        parts.append(_text(x(value), height - 10, f"{value:g} s", "tick", "middle"))
    for at, row in enumerate(rows):
        y = top + line * at
        width = max(2.0, x(row["start_s"] + row["seconds"]) - x(row["start_s"]))
        tip = escape(f"{row['stage']} ({row['what']}): {row['seconds']:.1f} s")
        parts.append(_text(left - 8, y + 13, row["stage"], "name", "end"))
        parts.append(
            f'<rect class="span {escape(row["what"])}" x="{x(row["start_s"]):.1f}" y="{y + 3:.1f}" width="{width:.1f}" '
            f'height="{line - 6}" rx="2"><title>{tip}</title></rect>'
        )
        parts.append(_text(x(row["start_s"]) + width + 5, y + 13, f"{row['seconds']:.1f}", "tick"))
    return _svg(height, parts, "timeline of the run")


def reliability(bins: Sequence[Mapping[str, Any]]) -> Markup:
    """Accuracy against confidence; the diagonal is perfect calibration. bins: confidence, accuracy, rows."""
    side, left, top = 260, 60, 12
    x, y = _scale(0, 1, left, left + side), _scale(0, 1, top + side, top)
    most = max((row["rows"] for row in bins), default=1)
    parts = [f'<line class="limit" x1="{x(0):.1f}" y1="{y(0):.1f}" x2="{x(1):.1f}" y2="{y(1):.1f}"/>']
    for value in (0, 0.25, 0.5, 0.75, 1):
        parts.append(_text(left - 8, y(value) + 4, f"{value:g}", "tick", "end"))
        parts.append(_text(x(value), top + side + 18, f"{value:g}", "tick", "middle"))
    parts.append(_text(left + side / 2, top + side + 36, "confidence", "axis", "middle"))
    for row in bins:
        tip = escape(f"confidence {row['confidence']:.2f}, accuracy {row['accuracy']:.2f}, {row['rows']} rows")
        parts.append(
            f'<circle class="dot chosen" cx="{x(row["confidence"]):.1f}" cy="{y(row["accuracy"]):.1f}" '
            f'r="{3 + 7 * math.sqrt(row["rows"] / most):.1f}"><title>{tip}</title></circle>'
        )
    return _svg(top + side + 44, parts, "accuracy against confidence")


def scatter(target: Sequence[float], predicted: Sequence[float]) -> Markup:
    """Predicted against true values; the diagonal is a perfect model."""
    if not target:
        return Markup("")
    side, left, top = 300, 70, 12
    low, high = min([*target, *predicted]), max([*target, *predicted])
    x, y = _scale(low, high, left, left + side), _scale(low, high, top + side, top)
    parts = [f'<line class="limit" x1="{x(low):.1f}" y1="{y(low):.1f}" x2="{x(high):.1f}" y2="{y(high):.1f}"/>']
    for value in ticks(low, high):
        parts.append(_text(left - 8, y(value) + 4, f"{value:g}", "tick", "end"))
        parts.append(_text(x(value), top + side + 18, f"{value:g}", "tick", "middle"))
    parts.append(_text(left + side / 2, top + side + 36, "true value (predicted upwards)", "axis", "middle"))
    for true, guess in zip(target, predicted, strict=True):
        tip = escape(f"true {true:.4g}, predicted {guess:.4g}")
        parts.append(f'<circle class="dot" cx="{x(true):.1f}" cy="{y(guess):.1f}" r="3"><title>{tip}</title></circle>')
    return _svg(top + side + 44, parts, "predicted against true values")
