"""From several image tasks to a network for each of them, by one search (FBNetV5), with its latency on this device.

The tasks and their data come from a TOML file (`ontarget.data.vision_tasks`). One super-network with a head for every
task is trained on all of them; each task gets its own topology, which is then trained from scratch for this task alone,
timed in a fresh process, and scored on validation images that neither saw.

A step's batch has images of every task, and a task's loss looks at its own images: FBNetV5 wants one set of images with
labels for all tasks; users' data seldom are one. BatchNorm sees all tasks' images together while searching.

Folder: stages/*.json, latency_table.json (with a limit), networks/NAME/ (network.json, network.safetensors,
preprocess/), search.json, search.html. Finished steps are not done again.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ontarget.data.vision_tasks import IGNORED, VisionTask, VisionTasks, read_vision_tasks
from ontarget.errors import LimitError, RunError, SettingError
from ontarget.latency_table import LatencyTable, Setting, profile
from ontarget.plan.run_folder import Clock, RunFolder, to_json, write_atomic
from ontarget.runtime.preprocess import Preprocess
from ontarget.search.detection_maps import (
    EXTRA,
    box_maps,
    boxes_of,
    detection_loss,
    mean_average_precision,
    mean_overlap,
)
from ontarget.search.fbnetv5 import fbnetv5
from ontarget.search.multi_resolution import MultiResolution
from ontarget.search.space import Code
from ontarget.values import Array, Context, Examples

VALIDATION, ARCHITECTURE = 0.2, 0.2  # of a task's images, and of the rest (choice)
METRICS = {"classification": "accuracy", "segmentation": "mean IoU", "detection": "mean AP at IoU 0.5"}
WIDTHS = (16, 24, 32)  # of the branches (choice)
LOGIT_RATE = 1.0  # as in claim 11, for searches of a thousand steps or so (choice)
LEARNING_RATE = 5e-3  # of the training from scratch, as in claim 11 (choice)


@dataclass(frozen=True)
class TasksSearched:
    """networks: task, kind, metric, value, measured_ms, macs, code, folder, within_limit, in the order of the file.

    curve: of the search, losses of each task. training: task -> loss of each epoch. seconds: of this process.
    """

    folder: str
    image_size: int
    networks: tuple[Mapping[str, Any], ...]
    blocks: tuple[str, ...]
    probabilities: tuple[tuple[float, ...], ...]
    curve: tuple[Mapping[str, float], ...]
    training: Mapping[str, tuple[float, ...]]
    setting: Mapping[str, Any]
    latency_ms: float | None
    seconds: float


def search_tasks(
    toml: Path | str,
    *,
    output: Path | str,
    latency_ms: float | None = None,
    steps: int = 1000,
    epochs: int = 30,
    batch_size: int = 32,
    threads: int | None = None,
    context: Context = Context(),
) -> TasksSearched:
    """Search a network for every task of a TOML file in one run; see the module's head.

    output: the folder; a stopped search goes on there. latency_ms: of one image, the most that any of the networks may
    take in ONNX Runtime. steps: of the search. epochs: of each network's training from scratch. batch_size: images of
    a task in a step. threads: of the deployed networks; all cores by default.
    Raises SettingError, DataError for the file and the data, before any work; LimitError with the fastest latency where
    the limit cannot be reached, before training; RunError for a folder of another search.
    """
    begun = time.monotonic()
    if steps < 1 or epochs < 1 or batch_size < 2:
        raise SettingError(
            f"steps {steps}, epochs {epochs}, batch_size {batch_size}", allowed="1, 1 and 2 or more",
            option="--steps, --epochs, --batch-size",
        )  # fmt: skip
    asked = read_vision_tasks(toml, seed=context.seed)
    setting = Setting("onnxruntime", threads or os.cpu_count() or 1)
    request = {
        "fingerprint": asked.fingerprint, "latency_ms": latency_ms, "steps": steps, "epochs": epochs,
        "batch_size": batch_size, "setting": asdict(setting), "seed": context.seed,
    }  # fmt: skip
    folder = RunFolder(output)
    with folder.locked():
        if folder.has("asked") and folder.read("asked") != request:
            raise RunError(
                f"The folder {output} holds a search of other tasks or with other settings.", option="--output",
                next_step="choose another folder",
            )  # fmt: skip
        folder.write("asked", request)
        return _searched(asked, folder, setting, latency_ms, steps, epochs, batch_size, context, begun)


def _searched(
    asked: VisionTasks, folder: RunFolder, setting: Setting, latency_ms: float | None, steps: int, epochs: int,
    batch_size: int, context: Context, begun: float,
) -> TasksSearched:  # fmt: skip
    from ontarget.pool.found_networks import read_info
    from ontarget.report.tasks_page import write_tasks_page
    from ontarget.search.measure_found import measure_found

    path, clock, tasks = folder.path, Clock(math.inf), asked.tasks
    torch.manual_seed(context.seed)
    preprocess = shared_preprocess(asked)
    network = MultiResolution(
        {task.name: head(task) for task in tasks}, channels=int(preprocess.settings["channels"]),
        size=asked.image_size, widths=WIDTHS,
    )  # fmt: skip
    cost: Callable[[Code], float] = network.macs
    if latency_ms is not None:
        cost = _milliseconds(network, setting, latency_ms, path / "latency_table.json", context)

    def search() -> dict[str, Any]:
        rows = [task_rows(task, preprocess, asked.image_size) for task in tasks]
        found = fbnetv5(
            network, {task.name: own_loss(task.kind, at) for at, task in enumerate(tasks)},
            Mixed([part[0] for part in rows]), Mixed([part[1] for part in rows]), cost=cost, limit=latency_ms,
            steps=steps, batch_size=batch_size, rate=LOGIT_RATE, context=context,
        )  # fmt: skip
        return {"codes": found.topologies, "probabilities": found.probabilities, "curve": found.curve}

    searched = folder.once("searched", search, clock=clock, kind="training")
    for at, task in enumerate(tasks):

        def train(task: VisionTask = task, at: int = at) -> dict[str, Any]:
            code = tuple(searched["codes"][task.name])
            return _trained(
                task, network.config(code, (task.name,)), preprocess, path / "networks" / task.name, asked.image_size,
                epochs, batch_size, network.macs(code, (task.name,)), context,
            )  # fmt: skip

        folder.once(f"trained_{task.name}", train, clock=clock, kind="training")
    places = [path / "networks" / task.name for task in tasks]
    measured = folder.once("measured", lambda: measure_found(places, setting), clock=clock, kind="measuring")
    networks = []
    for task, place, taken in zip(tasks, places, measured, strict=True):
        info = read_info(place)
        networks.append({
            "task": task.name, "kind": task.kind, "metric": info["metric"], "value": info["quality"],
            "measured_ms": taken, "macs": info["macs"], "code": info["code"], "classes": info["classes"],
            "folder": str(place), "images": len(task.images),
            "within_limit": latency_ms is None or taken <= latency_ms,
        })  # fmt: skip
    result = TasksSearched(
        str(path), asked.image_size, tuple(networks), tuple(slot.name for slot in network.slots),
        tuple(map(tuple, searched["probabilities"])), tuple(searched["curve"]),
        {task.name: tuple(folder.read(f"trained_{task.name}")["curve"]) for task in tasks}, asdict(setting),
        latency_ms, time.monotonic() - begun,
    )  # fmt: skip
    write_atomic(path / "search.json", to_json(asdict(result)))
    write_tasks_page(path / "search.html", result)
    return result


def head(task: VisionTask) -> tuple[Any, int]:
    """The kind and outputs of a task's head."""
    if task.kind == "detection":
        return "heat_map", len(task.classes) + EXTRA
    return task.kind, len(task.classes)


class Mixed:
    """Rows of several tasks side by side: inputs of all of them below each other, then each task's own targets.

    A task with fewer rows than the longest begins again.
    """

    def __init__(self, tasks: list[tuple[Tensor, Tensor]]) -> None:
        self.tasks = tasks

    def __len__(self) -> int:
        return max(len(inputs) for inputs, _ in self.tasks)

    def __getitem__(self, positions: Any) -> tuple[Tensor, ...]:
        chosen = [positions % len(inputs) for inputs, _ in self.tasks]
        inputs = torch.cat([inputs[at] for (inputs, _), at in zip(self.tasks, chosen, strict=True)])
        return (inputs, *(targets[at] for (_, targets), at in zip(self.tasks, chosen, strict=True)))


def own_loss(kind: str, at: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of the ``at``-th task of `Mixed` rows: of its own images among the outputs."""
    return lambda outputs, targets: task_loss(kind, outputs[at * len(targets) : (at + 1) * len(targets)], targets)


def task_loss(kind: str, outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean loss of a batch."""
    if kind == "detection":
        return detection_loss(outputs, targets)
    if kind == "classification":
        return torch.nn.functional.cross_entropy(outputs, targets)
    total = torch.nn.functional.cross_entropy(outputs, targets, ignore_index=IGNORED, reduction="sum")
    return total / (targets != IGNORED).sum().clamp(min=1)  # a batch may have no labelled pixel


def splits(task: VisionTask) -> tuple[Array, Array, Array]:
    """Positions of training, architecture and validation images."""
    held = max(1, round(VALIDATION * len(task.order)))
    rest = task.order[held:]
    second = max(1, round(ARCHITECTURE * len(rest)))
    return rest[second:], rest[:second], task.order[:held]


def shared_preprocess(asked: VisionTasks) -> Preprocess:
    """One preprocessing for all tasks, from training images of each."""
    from ontarget.search.example_rows import image_preprocess

    most = max(1, 500 // len(asked.tasks))
    shown = [task.images[at] for task in asked.tasks for at in splits(task)[0][:most]]
    return image_preprocess(Examples(shown, np.zeros(0), np.arange(len(shown))), asked.image_size)


def task_rows(task: VisionTask, preprocess: Preprocess, size: int) -> list[tuple[Tensor, Tensor]]:
    """(images (N, channels, size, size), targets) of the training, architecture and validation split."""
    found = []
    for positions in splits(task):
        images = torch.from_numpy(preprocess([task.images[at] for at in positions])["pixels"])
        chosen = [task.targets[at] for at in positions]
        if task.kind == "detection":
            targets = torch.stack([box_maps(boxes, len(task.classes), size) for boxes in chosen])
        else:
            targets = torch.from_numpy(np.asarray(chosen).astype(np.int64))
        found.append((images, targets))
    return found


def quality(task: VisionTask, outputs: Tensor, size: int) -> float:
    """The task's metric of a network's outputs for its validation images, in the order of `splits`."""
    truth = [task.targets[at] for at in splits(task)[2]]
    if task.kind == "detection":
        return mean_average_precision(boxes_of(outputs, size), truth, len(task.classes))
    predicted = outputs.argmax(1).numpy()
    if task.kind == "classification":
        return float((predicted == np.asarray(truth)).mean())
    return mean_overlap(predicted, np.asarray(truth), len(task.classes))


def _trained(
    task: VisionTask, config: Mapping[str, Any], preprocess: Preprocess, place: Path, size: int, epochs: int,
    batch_size: int, macs: int, context: Context,
) -> dict[str, Any]:  # fmt: skip
    """Train a topology from scratch on the task's training and architecture images, score it, store it."""
    from ontarget.pool.found_networks import build_network, digests, save_found
    from ontarget.search.retrain import scores
    from ontarget.search.rows import batches

    parts = task_rows(task, preprocess, size)
    rows = torch.utils.data.TensorDataset(*(torch.cat(pair) for pair in zip(*parts[:2], strict=True)))
    torch.manual_seed(context.seed)
    full = {"network": "topology", "image_size": size, **config}
    network = build_network(full).to(context.device)
    engine = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-3)
    total = epochs * math.ceil(len(rows) / batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(engine, LEARNING_RATE, total_steps=total)
    curve = []
    for epoch in range(epochs):
        network.train()
        losses = []
        for inputs, targets in batches(rows, batch_size, seed=context.seed, epoch=epoch):
            loss = task_loss(task.kind, network(inputs.to(context.device)), targets.to(context.device))
            engine.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            engine.step()
            schedule.step()
            losses.append(float(loss.detach()))
        curve.append(float(np.mean(losses)))
        if context.progress is not None:
            context.progress(epoch + 1, epochs, f"training the network for {task.name}")
    network = network.cpu()
    held = torch.utils.data.TensorDataset(*parts[2])
    value = quality(task, torch.from_numpy(scores(network, held)), size)
    train, architecture, _ = splits(task)
    seen = digests([task.images[at] for at in (*train, *architecture)], "image")
    save_found(
        place, network, full, preprocess, seen=seen, code=list(config["code"]), quality=value, macs=macs,
        metric=METRICS[task.kind], classes=list(task.classes), kind=task.kind, task=task.name,
    )  # fmt: skip
    return {"curve": curve, "quality": value}


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


def _milliseconds(
    network: MultiResolution, setting: Setting, limit: float, path: Path, context: Context
) -> Callable[[Code], float]:
    """What a topology takes with the dearest of its heads, by a table of this device made here; checks the limit."""
    tasks = tuple(network.config((0,) * len(network.slots))["heads"])
    if path.exists():
        table = LatencyTable.load(path)
        table.check_device()
    else:
        settings = network.config((0,) * len(network.slots))
        space = _Timed(
            {task: tuple(value) for task, value in settings["heads"].items()}, channels=settings["channels"],
            size=settings["size"], widths=settings["widths"],
        )  # fmt: skip
        with torch.random.fork_rng():
            table = profile(space, setting, fitted=12, checked=6, context=replace(context, deadline=None))
        table.save(path)
    known: dict[Code, float] = {}

    def cost(code: Code) -> float:
        if code not in known:
            known[code] = max(table.predict(network.operators(code, (task,))) for task in tasks)
        return known[code]

    fastest = cost(network.canonical((0,) * len(network.slots)))
    if fastest > limit:
        raise LimitError(
            f"A latency of {limit:g} ms cannot be reached: the fastest network of this space takes {fastest:.3g} ms.",
            option="--latency-ms", next_step="raise the limit, or lower image_size",
        )  # fmt: skip
    return cost
