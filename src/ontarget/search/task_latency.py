"""What topologies of several tasks take on this device: by a table while searching, measured before and after training.

A latency does not depend on the weights. Whatever a limit rules out is therefore found out with fresh weights, in a
fresh process, before anything is trained. Checked in tests/search/test_search_tasks.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ontarget.errors import LimitError
from ontarget.latency_table import LatencyTable, Setting, profile
from ontarget.runtime.preprocess import Preprocess
from ontarget.search.measure_found import measure_found
from ontarget.search.multi_resolution import MultiResolution
from ontarget.search.space import Code
from ontarget.values import Context

MARGIN = 0.97  # of the limit that a network may take before it is trained: it is measured again after (choice)


class _AllHeads(torch.nn.Module):
    """A topology whose outputs are a tuple, which ONNX takes."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.network(images).values())


class _Timed(MultiResolution):
    """The space with networks that can be exported."""

    def slice(self, code: Code, tasks: Any = None) -> Any:
        return _AllHeads(super().slice(code, tasks))


def latency_table(network: MultiResolution, setting: Setting, path: Path, context: Context) -> LatencyTable:
    """The space's table for this device, from the file or made and written there."""
    if path.exists():
        table = LatencyTable.load(path)
        table.check_device()
        return table
    settings = network.config((0,) * len(network.slots))
    space = _Timed(
        {task: tuple(value) for task, value in settings["heads"].items()}, channels=settings["channels"],
        size=settings["size"], widths=settings["widths"],
    )  # fmt: skip
    with torch.random.fork_rng():
        table = profile(space, setting, fitted=12, checked=6, context=replace(context, deadline=None))
    table.save(path)
    return table


def predicted_ms(network: MultiResolution, table: LatencyTable, task: str) -> Callable[[Code], float]:
    """What a topology takes with the task's head, by the table."""
    known: dict[Code, float] = {}

    def cost(code: Code) -> float:
        if code not in known:
            known[code] = table.predict(network.operators(code, (task,)))
        return known[code]

    return cost


def network_config(network: MultiResolution, task: str, code: Code) -> dict[str, Any]:
    """What `pool.found_networks.build_network` needs for the task's topology."""
    config = network.config(code, (task,))
    return {"network": "topology", "image_size": config["size"], **config}


def measured_codes(
    network: MultiResolution, codes: Mapping[str, Sequence[Code]], preprocess: Preprocess, place: Path, setting: Setting
) -> dict[str, list[float]]:
    """Task -> milliseconds of one image of each of its codes, with fresh weights, in a fresh process.

    place: a folder that is used meanwhile.
    """
    from ontarget.pool.found_networks import build_network, save_found

    places = []
    try:
        with torch.random.fork_rng():
            for task, wanted in codes.items():
                for at, code in enumerate(wanted):
                    config = network_config(network, task, code)
                    places.append(
                        save_found(place / task / str(at), build_network(config), config, preprocess, seen=[])
                    )
        taken = iter(measure_found(places, setting))
        return {task: [next(taken) for _ in wanted] for task, wanted in codes.items()}
    finally:
        shutil.rmtree(place, ignore_errors=True)


def check_reachable(limits: Mapping[str, float], fastest: Mapping[str, float]) -> None:
    """Raises LimitError with the fastest figure of each task whose limit the fastest network breaks."""
    over = [
        f"{limits[task]:g} ms for '{task}' cannot be reached: the fastest network of this space takes {taken:.3g} ms"
        for task, taken in fastest.items()
        if taken > limits[task]
    ]
    if over:
        raise LimitError(
            "A latency of " + "; one of ".join(over) + ".", option="--latency-ms, latency_ms in the tasks' file",
            next_step="raise the limit, or lower image_size",
        )  # fmt: skip
