"""The report's plots of the test rows: confusion matrix, calibration, predicted against true values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from ontarget.report.svg import dot, frame, line, linear, padded, plot, ticks, tip

TABLE_CLASSES = 20  # more classes than this are drawn as a picture without numbers (choice)


def confusion(table: Sequence[Sequence[int]], classes: Sequence[str]) -> Markup:
    """Rows: true classes; columns: predicted ones; colour by share of the row."""
    if not classes or not table:
        return Markup("")
    return _confusion_table(table, classes) if len(classes) <= TABLE_CLASSES else _confusion_picture(table, classes)


def _cell(table: Sequence[Sequence[int]], classes: Sequence[str], row: int, column: int) -> tuple[str, list[str]]:
    """CSS class of a cell (right or wrong, tenths of its row) and what it says when pointed at."""
    value, total = table[row][column], sum(table[row])
    share = value / total if total else 0.0
    tenths = 0 if not value else max(1, math.ceil(10 * share - 1e-9))
    said = "right" if row == column else f"taken for {classes[column]}"
    return f"{'r' if row == column else 'w'}{tenths}", [classes[row], said, f"{value} of {total} rows ({share:.0%})"]


def _confusion_table(table: Sequence[Sequence[int]], classes: Sequence[str]) -> Markup:
    turned = " turned" if len(classes) > 5 or max(len(name) for name in classes) > 10 else ""
    head = "".join(f'<th scope="col" title="{escape(name)}"><span>{escape(name)}</span></th>' for name in classes)
    rows = []
    for row, name in enumerate(classes):
        cells = []
        for column in range(len(classes)):
            kind, said = _cell(table, classes, row, column)
            value = table[row][column]
            cells.append(f'<td class="{kind}" data-tip="{escape(chr(10).join(said))}">{value or ""}</td>')
        rows.append(f'<tr><th scope="row" title="{escape(name)}"><span>{escape(name)}</span></th>{"".join(cells)}</tr>')
    return Markup(
        f'<table class="matrix{turned}"><caption>Rows: true class. Columns: predicted class.</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _confusion_picture(table: Sequence[Sequence[int]], classes: Sequence[str]) -> Markup:
    count = len(classes)
    parts = [f'<rect class="back" width="{count}" height="{count}"/>']
    for row in range(count):
        for column in range(count):
            if table[row][column]:
                kind, said = _cell(table, classes, row, column)
                parts.append(f'<rect class="{kind}" x="{column}" y="{row}" width="1" height="1">{tip(*said)}</rect>')
    return Markup(
        f'<svg class="picture" viewBox="0 0 {count} {count}" role="img" aria-label="confusion matrix of {count} '
        f'classes: rows are true classes, columns predicted ones, from the top left">{"".join(parts)}</svg>'
    )


def most_confused(table: Sequence[Sequence[int]], classes: Sequence[str], count: int = 10) -> list[dict[str, Any]]:
    """The largest cells off the diagonal: target, predicted, rows, share of the true class's rows."""
    pairs: list[dict[str, Any]] = [
        {
            "target": classes[row],
            "predicted": classes[column],
            "rows": value,
            "share": value / sum(table[row]),
        }
        for row in range(len(table))
        for column, value in enumerate(table[row])
        if row != column and value
    ]
    return sorted(pairs, key=lambda pair: (-pair["rows"], -pair["share"]))[:count]


def reliability(bins: Sequence[Mapping[str, Any]]) -> Markup:
    """Accuracy against confidence; the diagonal is perfect calibration. bins: confidence, accuracy, rows."""
    if not bins:
        return Markup("")
    height = 260
    most = max(row["rows"] for row in bins)
    quarter = [(value, f"{value:g}") for value in (0, 0.25, 0.5, 0.75, 1)]
    parts = frame(
        height,
        [(100 * value, label) for value, label in quarter],
        [(height * (1 - value), label) for value, label in quarter],
        "confidence",
    )
    parts.append(line(0, height, 100, 0, "ideal"))
    for row in bins:
        at, up, ideal = 100 * row["confidence"], height * (1 - row["accuracy"]), height * (1 - row["confidence"])
        parts.append(line(at, up, at, ideal, "gap"))
        inside = tip(f"confidence {row['confidence']:.2f}", f"accuracy {row['accuracy']:.2f}", f"{row['rows']} rows")
        parts.append(dot(at, up, 4 + 7 * math.sqrt(row["rows"] / most), "mark chosen", inside))
    return plot(height, parts, "accuracy against confidence", "axes square")


def scatter(target: Sequence[float], predicted: Sequence[float]) -> Markup:
    """Predicted against true values; the diagonal is a perfect model."""
    if not target:
        return Markup("")
    height = 320
    low, high = padded([*target, *predicted], 0.04)
    x, y = linear(low, high), linear(low, high, height, 0)
    marks = ticks(low, high)
    parts = frame(
        height,
        [(x(value), f"{value:g}") for value in marks],
        [(y(value), f"{value:g}") for value in marks],
        "true value (predicted upwards)",
    )
    parts.append(line(x(low), y(low), x(high), y(high), "ideal"))
    for true, guess in zip(target, predicted, strict=True):
        inside = tip(f"true {true:.4g}", f"predicted {guess:.4g}", f"off by {guess - true:+.4g}")
        parts.append(dot(x(true), y(guess), 3.5, "mark faint", inside))
    return plot(height, parts, f"predicted against true values of {len(target)} test rows", "axes square")
