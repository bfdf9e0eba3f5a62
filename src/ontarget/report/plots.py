"""The report's plots of the search: the Pareto front, intervals, learning curves, the timeline.

Each takes plain numbers and gives markup; empty where there is nothing to show. Every mark has a tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from markupsafe import Markup, escape

from ontarget.report.svg import (
    dot,
    frame,
    line,
    linear,
    log_ticks,
    logarithmic,
    padded,
    plot,
    square,
    text,
    ticks,
    tip,
)

Rows = Sequence[Mapping[str, Any]]


def pareto_front(points: Rows) -> list[Mapping[str, Any]]:
    """Points that no other beats or equals in both latency and value, by rising latency."""
    front: list[Mapping[str, Any]] = []
    for point in sorted(points, key=lambda point: (point["latency_ms"], -point["value"])):
        if not front or point["value"] > front[-1]["value"]:
            front.append(point)
    return front


def pareto(points: Rows, *, metric: str, limit_ms: float | None) -> Markup:
    """Quality against latency. points: name, latency_ms > 0, value, kind ("trial" | "form" | "chosen")."""
    height = 320
    if not points:
        return Markup("")
    xs = [point["latency_ms"] for point in points] + ([limit_ms] if limit_ms else [])
    low_x, high_x = min(xs) / 1.6, max(xs) * 1.6
    low_y, high_y = padded([point["value"] for point in points], 0.12)
    x, y = logarithmic(low_x, high_x), linear(low_y, high_y, height, 0)
    parts = []
    if limit_ms:
        parts.append(
            f'<rect class="beyond" x="{x(limit_ms):.2f}%" y="0" width="{100 - x(limit_ms):.2f}%" height="{height}"/>'
        )
    parts += frame(
        height,
        [(x(value), f"{value:g}") for value in log_ticks(low_x, high_x)],
        [(y(value), f"{value:g}") for value in ticks(low_y, high_y)],
        "latency of one call, median ms (logarithmic)",
    )
    if limit_ms:
        parts.append(line(x(limit_ms), 0, x(limit_ms), height, "limit"))
        late = x(limit_ms) > 70
        parts.append(
            text(x(limit_ms), 14, f"limit {limit_ms:g} ms", "limit-text", dx=-6 if late else 6,
                 anchor="end" if late else "start")
        )  # fmt: skip
    front = pareto_front(points)
    for left, right in pairwise(front):  # steps: nothing between two points has been shown
        parts.append(line(x(left["latency_ms"]), y(left["value"]), x(right["latency_ms"]), y(left["value"]), "front"))
        parts.append(line(x(right["latency_ms"]), y(left["value"]), x(right["latency_ms"]), y(right["value"]), "front"))
    order = {"trial": 0, "form": 1, "chosen": 2}
    for point in sorted(points, key=lambda point: order[point["kind"]]):
        at, up = x(point["latency_ms"]), y(point["value"])
        inside = tip(point["name"], f"{metric} {point['value']:.4f}", f"{point['latency_ms']:.3g} ms a call")
        if point["kind"] == "trial":
            parts.append(dot(at, up, 5, "mark trial", inside))
        elif point["kind"] == "form":
            parts.append(square(at, up, 9, "mark form", inside))
        else:
            parts.append(square(at, up, 13, "mark chosen diamond", inside))
            late = at > 80
            parts.append(
                text(at, up + 22, "deployed", "label", dx=8 if late else -8, anchor="end" if late else "start")
            )
    label = f"{metric} against latency of {len(points)} models; {len(front)} are on the Pareto front"
    return plot(height, parts, label, "axes")


def intervals(rows: Rows, *, label: str) -> Markup:
    """One strip a name: value with its interval. rows: name, value, low, high; strong (bool), note (text)."""
    rows = [row for row in rows if row.get("value") is not None]
    if not rows:
        return Markup("")
    ends = [_ends(row) for row in rows]
    low, high = padded([end for pair in ends for end in pair], 0.06)
    x, marks = linear(low, high), ticks(low, high, 4)
    grid = "".join(line(x(value), 0, x(value), 26, "grid") for value in marks)
    items = []
    for row, (left, right) in zip(rows, ends, strict=True):
        strong = " strong" if row.get("strong") else ""
        inside = tip(row["name"], f"{row['value']:.4f} [{left:.4f}, {right:.4f}]", row.get("note"))
        bar = f'<g class="hit">{line(x(left), 13, x(right), 13, "range" + strong)}'
        bar += dot(x(row["value"]), 13, 5.5, "mark" + (" chosen" if strong else " trial"), "") + inside + "</g>"
        note = f' <span class="chip">{escape(row["note"])}</span>' if row.get("note") else ""
        items.append(
            f'<li class="{strong.strip()}"><span class="name">{escape(row["name"])}{note}</span>'
            f'<svg class="strip" height="26" role="img" aria-label="{escape(row["name"])}: {row["value"]:.4f}, '
            f'from {left:.4f} to {right:.4f}">{grid}{bar}</svg>'
            f'<span class="number">{row["value"]:.3f}</span></li>'
        )
    axis = "".join(text(x(value), 12, f"{value:g}", "tick", anchor="middle") for value in marks)
    items.append(f'<li class="scale" aria-hidden="true"><svg class="strip" height="18">{axis}</svg></li>')
    return Markup(f'<ul class="strips" aria-label="{escape(label)}">{"".join(items)}</ul>')


def _ends(row: Mapping[str, Any]) -> tuple[float, float]:
    low, high = row.get("low"), row.get("high")
    return (row["value"] if low is None else low), (row["value"] if high is None else high)


def curves(series: Rows, *, label: str) -> Markup:
    """Learning curves. series: name, points [(epoch, value)], strong (bool)."""
    series = [row for row in series if row["points"]]
    if not series:
        return Markup("")
    height = 240
    epochs = [epoch for row in series for epoch, _ in row["points"]]
    low_y, high_y = padded([value for row in series for _, value in row["points"]])
    low_x, high_x = min(epochs), max(epochs)
    x, y = linear(low_x, high_x, 2, 98), linear(low_y, high_y, height, 0)
    across = [value for value in ticks(low_x, high_x, 8) if float(value).is_integer()] or sorted(set(epochs))[:8]
    parts = frame(
        height,
        [(x(value), f"{value:g}") for value in across],
        [(y(value), f"{value:g}") for value in ticks(low_y, high_y)],
        "epoch",
    )
    for row in sorted(series, key=lambda row: bool(row.get("strong"))):
        kind = "curve strong" if row.get("strong") else "curve"
        points = [(x(epoch), y(value)) for epoch, value in row["points"]]
        inside = "".join(line(*left, *right, "stroke") for left, right in pairwise(points))
        for (across_at, up), (epoch, value) in zip(points, row["points"], strict=True):
            inside += dot(across_at, up, 3.5, "mark", tip(row["name"], f"epoch {epoch:g}: {value:.4f}"))
        parts.append(f'<g class="{kind}">{inside}</g>')
    return plot(height, parts, f"{label}: {len(series)} trials", "axes")


def timeline(rows: Rows) -> Markup:
    """What ran when. rows: stage, what (features | training | measuring | other), start_s, seconds."""
    rows = [row for row in rows if row["seconds"] >= 0.05]
    if not rows:
        return Markup("")
    end = max(row["start_s"] + row["seconds"] for row in rows)
    x, marks = linear(0, end), ticks(0, end, 5)
    grid = "".join(line(x(value), 0, x(value), 20, "grid") for value in marks)
    items = []
    for row in rows:
        left = x(row["start_s"])
        width = max(0.4, x(row["start_s"] + row["seconds"]) - left)
        what = row["what"] if row["what"] in ("features", "training", "measuring") else "other"
        inside = tip(row["stage"], what, f"{row['seconds']:.1f} s, from {row['start_s']:.1f} s on")
        bar = (
            f'<rect class="span {what}" x="{min(left, 99.6):.2f}%" y="4" width="{width:.2f}%" height="12" rx="2">'
            f"{inside}</rect>"
        )
        items.append(
            f'<li><span class="name">{escape(row["stage"])}</span><svg class="strip" height="20" role="img" '
            f'aria-label="{escape(row["stage"])}: {row["seconds"]:.1f} seconds of {what}">{grid}{bar}</svg>'
            f'<span class="number">{row["seconds"]:.1f} s</span></li>'
        )
    axis = "".join(text(x(value), 12, f"{value:g} s", "tick", anchor="middle") for value in marks)
    items.append(f'<li class="scale" aria-hidden="true"><svg class="strip" height="18">{axis}</svg></li>')
    return Markup(f'<ul class="strips tight" aria-label="timeline of the run">{"".join(items)}</ul>')


def costs(seconds: Mapping[str, float], budget_s: float | None) -> Markup:
    """One bar: seconds of features, training, measuring and all else, against the budget."""
    total = sum(seconds.values())
    if total <= 0:
        return Markup("")
    x = linear(0, max(total, budget_s or 0.0))
    parts, start = [f'<rect class="left" x="0" y="0" width="100%" height="22" rx="4">{tip("budget")}</rect>'], 0.0
    for what, spent in seconds.items():
        width = x(start + spent) - x(start)
        inside = tip(what, f"{spent:.1f} s", f"{spent / total:.0%} of the time")
        parts.append(
            f'<rect class="span {what}" x="{x(start):.2f}%" y="0" width="{width:.2f}%" height="22">{inside}</rect>'
        )
        start += spent
    if budget_s and total > budget_s:
        parts.append(line(x(budget_s), -4, x(budget_s), 26, "limit"))
    said = ", ".join(f"{what} {spent:.0f} s" for what, spent in seconds.items())
    return plot(22, parts, f"time spent: {said}", "whole")


def ratio_words(ratios: Sequence[float]) -> str:
    """How far predictions were from the truth: "within a factor of 1.4 for half of 6 trials"."""
    found = sorted(max(ratio, 1 / ratio) for ratio in ratios if ratio > 0 and math.isfinite(ratio))
    if not found:
        return ""
    middle = found[(len(found) - 1) // 2]
    return f"within a factor of {middle:.2g} for half of {len(found)} trials, {found[-1]:.2g} at worst"
