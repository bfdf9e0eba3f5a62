"""A share of a fit's budget for a search: networks made for task and device are further candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ontarget.errors import LimitError
from ontarget.task import Request
from ontarget.values import Context, TargetData


def search_share(folder: Path, request: Request, data: TargetData, context: Context) -> dict[str, Any]:
    """Search in ``folder``, where a stopped search goes on; what was found, by quality on validation rows.

    networks: each with its folder, seen from ``folder``. reason: why there are none, "" otherwise. A latency limit that
    no network of the space keeps leaves the task to the other candidates. Raises DataError where the task cannot be
    searched, RunError.
    """
    from ontarget.search.search_networks import search_networks

    try:
        found = search_networks(
            request.task,
            output=folder,
            loaded=data,
            latency_ms=request.limits.latency_ms,
            with_preprocessing=True,
            budget_s=request.search * request.limits.budget_s,
            threads=request.threads or None,
            context=context,
        )
    except LimitError as error:
        return {"networks": [], "reason": str(error), "space": "", "evaluated": 0}
    rows = [
        {
            "folder": str(Path(row["folder"]).relative_to(found.folder)), "quality": row["quality"],
            "measured_ms": row["measured_ms"], "predicted_ms": row["predicted_ms"],
        }
        for row in found.networks
    ]  # fmt: skip
    return {"networks": rows, "reason": "", "space": found.space, "evaluated": len(found.evaluated)}
