"""Numbers as the report writes them. What is missing (None, or absent from the report) becomes an empty text."""

from __future__ import annotations

import math
from typing import Any

from ontarget.report.verdict import metric_name as _metric_name


def _given(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, digits: int = 3) -> str:
    """``digits`` after the point, with a real minus sign."""
    return f"{value:,.{digits}f}".replace("-", "−") if _given(value) else ""


def signed(value: Any, digits: int = 3) -> str:
    """As `number`, with a plus sign where it is above 0."""
    return f"{value:+,.{digits}f}".replace("-", "−") if _given(value) else ""


def count(value: Any) -> str:
    """A whole number with thousands separated."""
    return f"{value:,.0f}" if _given(value) else ""


def plain(value: Any) -> str:
    """A number as short as it can be: 5, 2.5, 1000."""
    return f"{value:.10g}" if _given(value) else ""


def duration(value: Any) -> str:
    """Seconds as "0.4 s", "12 s", "3 min 20 s", "2 h 5 min"."""
    if not _given(value):
        return ""
    if value < 10:
        return f"{value:.1f} s"
    seconds = round(value)
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def p_value(value: Any) -> str:
    """A p-value with two digits; "< 0.001" below that."""
    if not _given(value):
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.2g}"


def metric_name(value: Any) -> str:
    """How a metric is called in words."""
    return _metric_name(value if isinstance(value, str) else None)
