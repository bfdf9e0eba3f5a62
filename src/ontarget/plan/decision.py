"""Which trials go on to the compress stage, and in which order: quality first, then the cost on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CHEAP_SOURCES = ("control:tfidf", "control:pixels", "control:majority")


def order(trials: Sequence[Mapping[str, Any]], latency_ms: Mapping[str, float]) -> list[Mapping[str, Any]]:
    """Complete trials from best to worst: by validation metric, ties to the lower latency, then to the lower number.

    Trials of random controls and the majority baseline are measured for comparison and never chosen.
    """
    eligible = [
        trial
        for trial in trials
        if trial["state"] == "complete"
        and trial["method"] != "majority"
        and not trial["source"].startswith("control:random")
    ]
    return sorted(
        eligible,
        key=lambda trial: (-trial["metric"], latency_ms.get(trial["source"], 0.0), trial["number"]),
    )
