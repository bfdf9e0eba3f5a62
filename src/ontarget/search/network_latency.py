"""What networks of a space may take on this device: its latency table, its extremes, and the limit.

Whatever a limit rules out is found out before anything is trained.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ontarget.errors import LimitError, SettingError
from ontarget.latency_table import LatencyTable, Setting, profile
from ontarget.runtime.preprocess import Preprocess
from ontarget.search.space import Code, ElasticNetwork
from ontarget.values import Array, Context

MARGIN = 0.97  # of the limit that a returned network may take: a fresh measurement must not break it (choice)


def network_table(
    space: ElasticNetwork,
    setting: Setting,
    given: Path | str | LatencyTable | None,
    any_device: bool,
    path: Path,
    context: Context,
) -> LatencyTable:
    """The table that is given, that lies at ``path``, or is made of this device; it is written to ``path``.

    Raises SettingError for one of another setting, and of another device unless ``any_device``.
    """
    table = given if isinstance(given, LatencyTable) else LatencyTable.load(Path(given)) if given else None
    if table is None and path.exists():
        table = LatencyTable.load(path)
    if table is None:
        table = profile(space, setting, context=context)
    elif not any_device:
        table.check_device()
    if table.setting != setting and given is not None:
        raise SettingError(
            f"The latency table is of {table.setting}, and {setting} is asked for.", option="--table",
            next_step="make a table with the same runtime, precision, threads and batch size",
        )  # fmt: skip
    table.save(path)
    return table


def extremes(space: ElasticNetwork, table: LatencyTable) -> tuple[Code, Code]:
    """(fastest, slowest) code by the table: one slot after the other is set to its best choice until none changes.

    Exact where a slot's time does not depend on the others, as in the spaces here.
    """

    def best(sign: float) -> Code:
        code: Code = tuple(0 if sign > 0 else slot.choices - 1 for slot in space.slots)
        for _ in range(3):
            before = code
            for at, slot in enumerate(space.slots):
                options = [space.canonical((*code[:at], choice, *code[at + 1 :])) for choice in range(slot.choices)]
                code = min(options, key=lambda option: sign * table.predict(space.operators(option)))
            if code == before:
                break
        return code

    return best(1.0), best(-1.0)


def fastest_ms(space: ElasticNetwork, table: LatencyTable) -> float:
    """What the space's fastest network takes by the table."""
    return table.predict(space.operators(extremes(space, table)[0]))


def check_reachable(space: ElasticNetwork, table: LatencyTable, latency_ms: float | None) -> None:
    """Raises LimitError for a table that lacks operators of the space, and where the fastest network takes longer."""
    fastest = fastest_ms(space, table)
    if latency_ms is not None and latency_ms < fastest:
        raise LimitError(
            f"A latency of {latency_ms:g} ms cannot be reached: the fastest network of this space takes "
            f"{fastest:.3g} ms.",
            option="--latency-ms", next_step="raise the limit, or lower --image-size or --max-length",
        )  # fmt: skip


def preprocessing_ms(preprocess: Preprocess, inputs: Sequence[Any] | Array, batch_size: int) -> float:
    """Median milliseconds in which one call's rows become tensors."""
    times = []
    for at in range(15):
        rows = [inputs[(at * batch_size + row) % len(inputs)] for row in range(batch_size)]
        begun = time.perf_counter()
        preprocess(rows)
        times.append(1000 * (time.perf_counter() - begun))
    return float(np.median(times))


def left_for_network(latency_ms: float, preprocessing_ms: float) -> float:
    """What the preprocessing leaves of a limit. Raises LimitError where that is nothing."""
    if preprocessing_ms >= latency_ms:
        raise LimitError(
            f"A latency of {latency_ms:g} ms cannot be reached: preprocessing alone takes {preprocessing_ms:.3g} ms.",
            option="--latency-ms", next_step="raise the limit",
        )  # fmt: skip
    return latency_ms - preprocessing_ms
