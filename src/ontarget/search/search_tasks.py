"""From several image tasks to a network for each of them, by one search (FBNetV5), with its latency on this device.

The tasks and their data come from a TOML file (`data.vision_tasks`, `data.vision_splits`). One super-network with a
head for every task is trained on all of them; each task gets its own topology, which is then trained from scratch for
this task alone, timed in a fresh process, and scored on validation and test images that neither saw. Nothing is chosen
by the scores of these: topologies are ranked by images of their own, and by the limit.

A step's batch has images of every task, and a task's loss looks at its own images: FBNetV5 wants one set of images with
labels for all tasks; users' data seldom are one. BatchNorm sees all tasks' images together while searching.

Folder: stages/*.json, latency_table.json (with a limit), networks/NAME/ (network.json, network.safetensors,
preprocess/), search.json, search.html. Finished steps are not done again; a search or training that was killed goes on
from its *.state, to the result that it would have had.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ontarget.data.vision_splits import Splits, split_tasks
from ontarget.data.vision_tasks import VisionTask, VisionTasks, read_vision_tasks
from ontarget.device import check_device
from ontarget.errors import LimitError, RunError, SettingError
from ontarget.latency_table import LatencyTable, Setting
from ontarget.plan.run_folder import Clock, RunFolder, to_json, write_atomic
from ontarget.runtime.preprocess import Preprocess
from ontarget.search import task_latency
from ontarget.search.detection_maps import EXTRA
from ontarget.search.fbnetv5 import fbnetv5
from ontarget.search.measure_found import measure_found
from ontarget.search.multi_resolution import MultiResolution
from ontarget.search.rows import batch_count
from ontarget.search.space import Code
from ontarget.search.task_rows import Mixed, TaskRows, TensorCache
from ontarget.search.task_scores import METRICS, score
from ontarget.search.train_task import task_loss, train_task
from ontarget.values import Array, Context, Examples

WIDTHS = (16, 24, 32)  # of the branches (choice)
LOGIT_RATE = 1.0  # as in claim 11, for searches of a thousand steps or so (choice)
SEARCH_SHARE, TRAINING_SHARE = 0.5, 0.85  # of the time left before the search, and before the trainings (choice)
LEAST_STEPS, MOST_STEPS = 100, 4000  # of a search (choice)
LEAST_EPOCHS, MOST_EPOCHS = 3, 60  # of a training (choice)
CANDIDATES = 4  # topologies of a task that are timed before any is trained (choice)
CACHE_MB = 1024.0  # 2 ** 20 bytes


@dataclass(frozen=True)
class TasksSearched:
    """networks: one mapping a task, in the order of the file: task, kind, metric, validation and test (value, low, high
    of a 95% bootstrap interval, images), measured_ms, predicted_ms, limit_ms, macs, code, classes, folder, learnt,
    left_out (images that the trainings saw, and that no split holds).

    curve: of the search, losses of each task. training: task -> loss of each epoch. agreement: of the latency table;
    empty without a limit. seconds: of this process.
    """

    folder: str
    image_size: int
    networks: tuple[Mapping[str, Any], ...]
    blocks: tuple[str, ...]
    probabilities: tuple[tuple[float, ...], ...]
    curve: tuple[Mapping[str, float], ...]
    training: Mapping[str, tuple[float, ...]]
    agreement: Mapping[str, Any]
    setting: Mapping[str, Any]
    latency_ms: float | None
    budget_s: float
    steps: int
    epochs: int
    seconds: float


def search_tasks(
    toml: Path | str,
    *,
    output: Path | str,
    latency_ms: float | None = None,
    budget_s: float = 600.0,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int = 32,
    threads: int | None = None,
    cache_mb: float = CACHE_MB,
    context: Context = Context(),
) -> TasksSearched:
    """Search a network for every task of a TOML file in one run; see the module's head.

    output: the folder; a stopped search goes on there. latency_ms: of one image, the most that a network may take in
    ONNX Runtime, for tasks without a limit of their own. budget_s: of everything; steps of the search and epochs of
    each network's training from scratch follow from it and the speed measured, unless ``steps`` and ``epochs`` say
    them. batch_size: images of a task in a step. threads: of the deployed networks; all cores by default. cache_mb:
    images, masks and maps kept in memory, 2 ** 20 bytes; what is beyond is read again each time.
    Raises SettingError, DataError for the file and the data, before any work; LimitError with the fastest latency where
    a limit cannot be reached, or where the budget does not suffice, before training, and where all topologies that were
    trained break a limit; RunError for a folder of another search.
    """
    begun = time.monotonic()
    if (steps or 1) < 1 or (epochs or 1) < 1 or batch_size < 2 or not budget_s > 0 or not cache_mb >= 0:
        raise SettingError(
            f"steps {steps}, epochs {epochs}, batch_size {batch_size}, budget_s {budget_s}, cache_mb {cache_mb}",
            allowed="1, 1, 2 or more, above 0, 0 or more",
            option="--steps, --epochs, --batch-size, --budget, --cache-mb",
        )  # fmt: skip
    check_device(context.device)
    asked = read_vision_tasks(toml)
    parts = split_tasks(asked.tasks, context.seed)
    setting = Setting("onnxruntime", threads or os.cpu_count() or 1)
    request = {
        "fingerprint": asked.fingerprint, "latency_ms": latency_ms, "budget_s": budget_s, "steps": steps,
        "epochs": epochs, "batch_size": batch_size, "setting": asdict(setting), "seed": context.seed,
    }  # fmt: skip
    folder = RunFolder(output)
    with folder.locked():
        if folder.has("asked") and folder.read("asked") != request:
            raise RunError(
                f"The folder {output} holds a search of other tasks or with other settings.", option="--output",
                next_step="choose another folder",
            )  # fmt: skip
        folder.write("asked", request)
        spent = max((row["start_s"] + row["seconds"] for row in folder.timeline()), default=0.0)
        clock = Clock(budget_s, spent + time.monotonic() - begun)
        work = _Work(asked, parts, folder, clock, setting, latency_ms, batch_size, cache_mb, context)
        result = work.result(steps, epochs, begun)
    write_atomic(folder.path / "search.json", to_json(asdict(result)))
    from ontarget.report.tasks_page import write_tasks_page

    write_tasks_page(folder.path / "search.html", result)
    return result


class _Work:
    """One search: what its steps share."""

    def __init__(
        self, asked: VisionTasks, parts: tuple[Splits, ...], folder: RunFolder, clock: Clock, setting: Setting,
        latency_ms: float | None, batch_size: int, cache_mb: float, context: Context,
    ) -> None:  # fmt: skip
        self.size, self.tasks, self.folder, self.path, self.clock = (
            asked.image_size, asked.tasks, folder, folder.path, clock,
        )  # fmt: skip
        self.parts, self.setting, self.batch, self.context = parts, setting, batch_size, context
        self.latency_ms = latency_ms
        own = {task.name: latency_ms if task.latency_ms is None else task.latency_ms for task in self.tasks}
        self.limits = {name: float(limit) for name, limit in own.items() if limit is not None}
        self.preprocess = shared_preprocess(asked, parts)
        self.cache = TensorCache(cache_mb * 2**20)
        torch.manual_seed(context.seed)
        self.network = MultiResolution(
            {task.name: head(task) for task in self.tasks}, channels=int(self.preprocess.settings["channels"]),
            size=self.size, widths=WIDTHS,
        )  # fmt: skip
        self.empty: Code = self.network.canonical((0,) * len(self.network.slots))

    def rows(self, at: int, positions: Array) -> TaskRows:
        return TaskRows(self.tasks[at], positions, self.preprocess, self.size, self.cache)

    def result(self, steps: int | None, epochs: int | None, begun: float) -> TasksSearched:
        once, clock = self.folder.once, self.clock
        table: LatencyTable | None = None
        if self.limits:
            codes = {name: [self.empty] for name in self.limits}
            fastest = once("fastest", lambda: self.measured(codes), clock=clock, kind="measuring")
            task_latency.check_reachable(self.limits, {task: taken[0] for task, taken in fastest.items()})
            table = task_latency.latency_table(
                self.network, self.setting, self.path / "latency_table.json", self.context
            )
        planned = once("plan", lambda: self.planned(steps, epochs), clock=clock)
        searched = once("searched", lambda: self.searched(table, planned["steps"]), clock=clock, kind="training")
        chosen = once("chosen", lambda: self.chosen(searched["ranked"]), clock=clock, kind="measuring")
        epochs = epochs or once("epochs", lambda: self.affordable(chosen), clock=clock)
        found = self.trained(chosen, epochs)
        networks = []
        for at, task in enumerate(self.tasks):
            place = self.published(found[task.name]["place"], task.name)
            tested = once(f"tested_{task.name}", lambda: self.scored(at, place), clock=clock)  # noqa: B023
            code = tuple(found[task.name]["code"])
            predicted = None if table is None else task_latency.predicted_ms(self.network, table, task.name)(code)
            networks.append({
                "task": task.name, "kind": task.kind, "metric": METRICS[task.kind], **tested,
                "measured_ms": found[task.name]["measured_ms"], "predicted_ms": predicted,
                "limit_ms": self.limits.get(task.name), "macs": self.network.macs(code, (task.name,)), "code": code,
                "classes": list(task.classes), "folder": str(place), "learnt": len(self.parts[at].learnt),
                "left_out": self.parts[at].left_out,
            })  # fmt: skip
        agreement = {} if table is None else {
            **asdict(table.agreement), "kendall": table.agreement.kendall, "error": table.agreement.median_error
        }  # fmt: skip
        return TasksSearched(
            str(self.path), self.size, tuple(networks), tuple(slot.name for slot in self.network.slots),
            tuple(map(tuple, searched["probabilities"])), tuple(searched["curve"]),
            {name: tuple(entry["curve"]) for name, entry in found.items()}, agreement, asdict(self.setting),
            self.latency_ms, self.clock.budget_s, planned["steps"], epochs, time.monotonic() - begun,
        )  # fmt: skip

    def measured(self, codes: Mapping[str, list[Code]]) -> dict[str, list[float]]:
        place = self.path / "timed"
        return task_latency.measured_codes(self.network, codes, self.preprocess, place, self.setting)

    def search(self, network: MultiResolution, steps: int, **more: Any) -> Any:
        learn, steer = (
            Mixed([self.rows(at, getattr(part, name)) for at, part in enumerate(self.parts)])
            for name in ("train", "architecture")
        )
        return fbnetv5(
            network, {task.name: own_loss(task.kind, at) for at, task in enumerate(self.tasks)}, learn, steer,
            steps=steps, batch_size=self.batch, rate=LOGIT_RATE, **more,
        )  # fmt: skip

    def planned(self, steps: int | None, epochs: int | None) -> dict[str, Any]:
        """Steps of the search that the budget allows, from the time of a few. Raises LimitError where none are."""
        if steps is not None:
            return {"steps": steps}
        short: dict[str, Any] = {"cost": self.network.macs, "samples": 0, "warm_up": 0.0}
        times = []
        for count in (2, 2, 8):  # the first is warm-up
            network, start = copy.deepcopy(self.network), time.monotonic()
            self.search(network, count, **short, context=Context(seed=self.context.seed))
            times.append(time.monotonic() - start)
        step_s = max(times[2] - times[1], 0.1 * times[2]) / 6
        validation_s = max(times[1] - 2 * step_s, 0.0) * 20  # all samples, with room for what tasks share
        everything = {task.name: [(1,) * len(self.network.slots)] for task in self.tasks}
        epoch_s = sum(self.epoch_seconds(everything))
        return {
            "steps": affordable_steps(self.clock.remaining_s(), step_s, validation_s, epoch_s, epochs),
            "step_s": step_s, "validation_s": validation_s, "epoch_s": epoch_s,
        }  # fmt: skip

    def epoch_seconds(self, codes: Mapping[str, Any]) -> list[float]:
        """Of one epoch of each task's network, from the time of a few batches."""
        found = []
        with torch.random.fork_rng():
            for at, task in enumerate(self.tasks):
                rows, network = self.rows(at, self.parts[at].learnt), self.built(task.name, codes[task.name][0])
                few = TaskRows(task, rows.chosen[: 4 * self.batch], self.preprocess, self.size, self.cache)
                for _ in range(2):  # the first is warm-up
                    start = time.monotonic()
                    train_task(network, few, task.kind, epochs=1, batch_size=self.batch)
                each = (time.monotonic() - start) / batch_count(len(few), self.batch)
                found.append(each * batch_count(len(rows), self.batch))
        return found

    def affordable(self, codes: Mapping[str, Any]) -> int:
        """Epochs of every training that the rest of the budget allows."""
        left = TRAINING_SHARE * self.clock.remaining_s()
        return int(np.clip(left / sum(self.epoch_seconds(codes)), LEAST_EPOCHS, MOST_EPOCHS))

    def searched(self, table: LatencyTable | None, steps: int) -> dict[str, Any]:
        cost: Any = self.network.macs
        limits: dict[str, float] = {}
        if table is not None:
            cost = {task.name: task_latency.predicted_ms(self.network, table, task.name) for task in self.tasks}
            for name, limit in self.limits.items():  # the table may think that even the fastest is slower
                limits[name] = max(task_latency.MARGIN * limit, cost[name](self.empty))
        state = self.path / "searched.state"
        found = self.search(
            self.network, steps, cost=cost, limit=limits or None, checkpoint=state, context=self.context
        )
        state.unlink(missing_ok=True)
        self.network.cpu()
        return {"ranked": found.ranked, "probabilities": found.probabilities, "curve": found.curve}

    def chosen(self, ranked: Mapping[str, Any]) -> dict[str, Any]:
        """Task -> topologies in the order in which they are tried, those alone that keep its limit when measured."""
        codes = {
            name: list(dict.fromkeys([*map(tuple, ranked[name][:CANDIDATES]), self.empty])) for name in self.limits
        }
        times = self.measured(codes) if codes else {}
        found: dict[str, Any] = {task.name: ranked[task.name][:1] for task in self.tasks}
        for name, limit in self.limits.items():
            pairs = list(zip(codes[name], times[name], strict=True))
            found[name] = [code for code, taken in pairs if taken <= task_latency.MARGIN * limit] or [
                code for code, taken in pairs if taken <= limit
            ]
            if not found[name]:
                raise _broken(name, limit, min(times[name]))
        return found

    def built(self, task: str, code: Code) -> torch.nn.Module:
        from ontarget.pool.found_networks import build_network

        return build_network(task_latency.network_config(self.network, task, tuple(code)))

    def trained(self, chosen: Mapping[str, Any], epochs: int) -> dict[str, dict[str, Any]]:
        """Task -> code, place, measured_ms, curve of its first topology that keeps the limit once it is trained."""
        found: dict[str, dict[str, Any]] = {}
        tried: dict[str, list[float]] = {task.name: [] for task in self.tasks}
        turn = 0
        while len(found) < len(self.tasks):
            open_ = [at for at, task in enumerate(self.tasks) if task.name not in found]
            made = {}
            for at in open_:
                name = self.tasks[at].name
                number = len(tried[name])
                code, place = tuple(chosen[name][number]), self.path / "trained" / f"{name}-{number}"
                made[name] = {"code": code, "place": place, **self.folder.once(
                    f"trained_{name}-{number}", lambda: self.train(at, code, place, epochs),  # noqa: B023
                    clock=self.clock, kind="training",
                )}  # fmt: skip
            places = [entry["place"] for entry in made.values()]
            times = self.folder.once(
                f"measured-{turn}",
                lambda: measure_found(places, self.setting),  # noqa: B023
                clock=self.clock,
                kind="measuring",
            )
            turn += 1
            for (name, entry), taken in zip(made.items(), times, strict=True):
                if taken <= self.limits.get(name, math.inf):
                    found[name] = {**entry, "measured_ms": taken}
                    continue
                tried[name].append(taken)
                if len(tried[name]) == len(chosen[name]):
                    raise _broken(name, self.limits[name], min(tried[name]))
        return {task.name: found[task.name] for task in self.tasks}

    def train(self, at: int, code: Code, place: Path, epochs: int) -> dict[str, Any]:
        """Train a topology from scratch on the task's training and architecture images, and store it."""
        from ontarget.pool.found_networks import digests, save_found

        task, learnt = self.tasks[at], self.parts[at].learnt
        torch.manual_seed(self.context.seed)
        network, state, start = self.built(task.name, code), place.with_suffix(".state"), time.monotonic()
        curve = train_task(
            network, self.rows(at, learnt), task.kind, epochs=epochs, batch_size=self.batch,
            what=f"training the network for {task.name}", checkpoint=state, context=self.context,
        )  # fmt: skip
        network = network.cpu()
        training = {"epochs": epochs, "batch_size": self.batch, "seed": self.context.seed, "augment": "none",
                    "optimizer": "adamw", "seconds": time.monotonic() - start}  # fmt: skip
        validation = score(network, self.rows(at, self.parts[at].validation), seed=self.context.seed)
        save_found(
            place, network, task_latency.network_config(self.network, task.name, code), self.preprocess,
            seen=digests([task.images[row] for row in learnt], "image"), code=list(code), quality=validation.value,
            macs=self.network.macs(code, (task.name,)), metric=METRICS[task.kind], classes=list(task.classes),
            kind=task.kind, task=task.name, training=training,
        )  # fmt: skip
        state.unlink(missing_ok=True)
        return {"curve": curve}

    def published(self, place: Path, name: str) -> Path:
        """networks/NAME: what a search returns, and nothing else."""
        target = self.path / "networks" / name
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            os.replace(place, target)
        return target

    def scored(self, at: int, place: Path) -> dict[str, Any]:
        """Scores on validation and test images, with the weights that were written."""
        from ontarget.pool.found_networks import load_network

        network = load_network(place)[0]
        return {
            name: asdict(score(network, self.rows(at, getattr(self.parts[at], name)), seed=self.context.seed))
            for name in ("validation", "test")
        }


def affordable_steps(
    left_s: float, step_s: float, validation_s: float, epoch_s: float, epochs: int | None = None
) -> int:
    """Steps of the search in ``left_s`` seconds. epoch_s: of one epoch of all trainings; epochs: where they are given.

    Raises LimitError where even the fewest steps and epochs take longer.
    """
    least = LEAST_STEPS * step_s + validation_s + (epochs or LEAST_EPOCHS) * epoch_s
    if least > left_s:
        raise LimitError(
            f"The budget does not suffice: {LEAST_STEPS} steps of the search and {epochs or LEAST_EPOCHS} epochs of "
            f"training take about {least:.0f} s here, {max(left_s, 0):.0f} s are left.",
            option="--budget", next_step="raise it, lower image_size, or give --steps and --epochs",
        )  # fmt: skip
    share = SEARCH_SHARE * left_s if epochs is None else left_s - epochs * epoch_s
    return int(np.clip((share - validation_s) / step_s, LEAST_STEPS, MOST_STEPS))


def _broken(name: str, limit: float, fastest: float) -> LimitError:
    return LimitError(
        f"No topology found for '{name}' stays within {limit:g} ms: the fastest takes {fastest:.3g} ms.",
        option="--latency-ms, latency_ms in the tasks' file",
        next_step="raise the limit a little, or search again when this device is quiet, in another folder",
    )  # fmt: skip


def head(task: VisionTask) -> tuple[Any, int]:
    """The kind and outputs of a task's head."""
    if task.kind == "detection":
        return "heat_map", len(task.classes) + EXTRA
    return task.kind, len(task.classes)


def own_loss(kind: str, at: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of the ``at``-th task of `Mixed` rows: of its own images among the outputs."""
    return lambda outputs, targets: task_loss(kind, outputs[at * len(targets) : (at + 1) * len(targets)], targets)


def shared_preprocess(asked: VisionTasks, parts: tuple[Splits, ...]) -> Preprocess:
    """One preprocessing for all tasks, from training images of each; no more than one full-sized image at a time."""
    from ontarget.runtime.preprocess import open_image
    from ontarget.search.example_rows import image_preprocess

    most, side, shown = max(1, 500 // len(asked.tasks)), asked.image_size, []
    for task, part in zip(asked.tasks, parts, strict=True):
        for at in part.train[:most]:
            image = open_image(task.images[at])
            grey = image.mode in ("L", "1", "I", "I;16", "LA")
            shown.append(image.convert("L" if grey else "RGB").resize((side, side)))
    return image_preprocess(Examples(shown, np.zeros(0), np.arange(len(shown))), side)
