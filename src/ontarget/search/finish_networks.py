"""Which networks of the front are finished, what they take when measured afresh, and which of them are kept."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ontarget.errors import LimitError
from ontarget.latency_table import LatencyTable, Setting
from ontarget.plan.run_folder import Clock
from ontarget.pool.found_networks import read_info
from ontarget.search.genetic import non_dominated
from ontarget.search.network_kind import NetworkKind
from ontarget.search.network_latency import MARGIN
from ontarget.search.space import Code, ElasticNetwork
from ontarget.values import Array, Context

FINALISTS = 4  # networks that are returned (choice)


def finalists(codes: Sequence[Code], values: Array, limit_ms: float, *, extra: Sequence[Code] = ()) -> list[Code]:
    """Networks to finish, `FINALISTS` at most: the best within the limit, the extras, and others spread over the front.

    values: (N, 2), 1 - quality and milliseconds.
    """
    order = [at for at in non_dominated(values) if values[at, 1] <= MARGIN * limit_ms]
    order.sort(key=lambda at: values[at, 0])
    known = {code: at for at, code in enumerate(codes)}
    within = [code for code in extra if code in known and values[known[code], 1] <= MARGIN * limit_ms]
    chosen = dict.fromkeys([*(codes[at] for at in order[:1]), *within])
    left = FINALISTS - len(chosen)
    if left > 0 and len(order) > 1:
        for at in np.linspace(1, len(order) - 1, min(left, len(order) - 1)).round().astype(int):
            chosen.setdefault(codes[order[at]])
    if not chosen:  # the table's fastest were not evaluated, or all lie within the margin
        chosen = dict.fromkeys([codes[int(np.argmin(values[:, 1]))]])
    return list(chosen)[:FINALISTS]


def finish_networks(
    kind: NetworkKind, codes: Sequence[Code], folder: Path, clock: Clock, context: Context
) -> list[dict[str, Any]]:
    """Code and folder of the networks that there was time for, the first in any case: folder/1, folder/2, ..."""
    found = []
    for at, code in enumerate(codes):
        target = folder / f"{at + 1}"
        left = 0.9 * clock.remaining_s()
        if at and left < kind.seconds_to_finish(code):
            break
        if not (target / "network.json").exists():
            kind.finish(code, target, context, left / (len(codes) - at))
        found.append({"code": code, "folder": str(target)})
    return found


def measure_networks(
    finished: Sequence[Mapping[str, Any]],
    space: ElasticNetwork,
    table: LatencyTable,
    setting: Setting,
    limit_ms: float,
    context: Context,
) -> list[dict[str, Any]]:
    """Every finished network with its quality, and its latency in a fresh process. kept: whether it keeps the limit."""
    from ontarget.search.measure_found import measure_found

    if context.progress is not None:
        context.progress(0, 1, "measuring in a fresh process")
    times = measure_found([Path(entry["folder"]) for entry in finished], setting)
    rows = []
    for entry, measured in zip(finished, times, strict=True):
        code = tuple(entry["code"])
        rows.append(
            {
                **entry, "quality": read_info(Path(entry["folder"]))["quality"], "measured_ms": measured,
                "predicted_ms": table.predict(space.operators(code)), "config": space.config(code),
                "kept": measured <= MARGIN * limit_ms,
            }
        )  # fmt: skip
    return rows


def kept_networks(measured: Sequence[dict[str, Any]], limit_ms: float) -> list[dict[str, Any]]:
    """Those within the limit that no other beats in both, best first. Raises LimitError where there are none."""
    kept = [row for row in measured if row["kept"]]
    if not kept:
        raise LimitError(
            f"No network that was trained stays within {MARGIN:.0%} of {limit_ms:g} ms: the fastest takes "
            f"{min(row['measured_ms'] for row in measured):.3g} ms.",
            option="--latency-ms", next_step="raise the limit a little, or profile this device when it is quiet",
        )  # fmt: skip
    points = np.array([[1 - row["quality"], row["measured_ms"]] for row in kept])
    kept = [kept[at] for at in non_dominated(points)]
    return sorted(kept, key=lambda row: -row["quality"])


def publish(folder: Path, kept: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copies folder/1 ... of the kept networks, best first, with their locators."""
    if folder.exists():
        shutil.rmtree(folder)
    networks = []
    for at, row in enumerate(kept):
        target = folder / str(at + 1)
        shutil.copytree(row["folder"], target)
        networks.append({**row, "folder": str(target), "locator": f"file:{target}"})
    return networks
