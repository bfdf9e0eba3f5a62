"""From a task to the front of quality against latency on this device, and networks of it that are sources for `fit`.

Images: ProxylessNAS trains and searches a space of mobile CNNs (`proxyless`), ConcurrentNAS finds the front of the
trained super-network (`concurrent_nas`), the best within the limit are trained from scratch (`image_networks`). Texts:
InstaTune tunes a pretrained encoder together with its slices, ConcurrentNAS finds the front, the best slices are the
networks (`text_slices`). Latency comes from the device's table (`network_latency`) while searching, and is measured
again, in a fresh process, for what is returned. The steps: `take_over`, `supernetwork_front`, `finish_networks`.

Folder: stages/*.json (what each step decided; taken_over.json: what came from earlier searches), latency_table.json,
supernetwork.safetensors, evaluated.jsonl, found/1, found/2, ... (networks, best first), search.json, search.html.
Finished steps are not done again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ontarget.errors import DataError, RunError, SettingError, out_of_memory, require_extra
from ontarget.latency_table import LatencyTable, Setting
from ontarget.plan.run_folder import Clock, RunFolder, to_json, write_atomic
from ontarget.search.example_rows import drawn
from ontarget.search.finish_networks import finalists, finish_networks, kept_networks, measure_networks, publish
from ontarget.search.network_kind import NetworkKind
from ontarget.search.network_latency import (
    MARGIN,
    check_reachable,
    extremes,
    fastest_ms,
    left_for_network,
    network_table,
    preprocessing_ms,
)
from ontarget.search.population_store import PopulationStore, describe_space
from ontarget.search.shrink_space import codes_inside, whole_code
from ontarget.search.space import Code, ElasticNetwork
from ontarget.search.supernetwork_front import evaluations, find_front, planned, restore_weights, train_supernetwork
from ontarget.search.take_over import Earlier, read_earlier, taken_over_once
from ontarget.values import Context, TargetData

LEAST_ROWS = 200  # training rows below which networks are not searched: none could be told apart (choice)


@dataclass(frozen=True)
class Searched:
    """What a search gave. networks: found/N, best first, each with its quality on validation rows and milliseconds.

    front, evaluated: of the super-network, predicted; importance: of the choices for quality. agreement: of the table.
    taken_over: from earlier searches, and what choices were dropped (`take_over.TakenOver`). fastest_ms, slowest_ms: of
    the space that was searched. seconds: of this process; spent_s: of all that worked on the folder.
    """

    folder: str
    metric: str
    space: str
    networks: tuple[Mapping[str, Any], ...]
    evaluated: tuple[Mapping[str, Any], ...]
    history: tuple[Mapping[str, Any], ...]
    importance: tuple[Mapping[str, Any], ...]
    agreement: Mapping[str, Any]
    setting: Mapping[str, Any]
    limit_ms: float | None
    fastest_ms: float
    slowest_ms: float
    seconds: float
    taken_over: Mapping[str, Any] = field(default_factory=dict)
    spent_s: float = 0.0
    budget_s: float = 0.0

    @property
    def overrun(self) -> str:
        """What to do about a search that took a tenth longer than its budget; empty where it did not."""
        if self.spent_s <= 1.1 * self.budget_s:
            return ""
        return (
            f"The search took {self.spent_s:.0f} s of the {self.budget_s:.0f} s asked for: the latency table, a first "
            "population and the first network are finished in any case. Give it more time (--budget), or a table of "
            "this device (--table)."
        )


def search_networks(
    data: Any,
    *,
    output: Path | str,
    source: str | None = None,
    latency_ms: float | None = None,
    budget_s: float = 600.0,
    image_size: int | None = None,
    table: Path | str | LatencyTable | None = None,
    any_device: bool = False,
    runtime: Literal["onnxruntime", "pytorch"] = "onnxruntime",
    precision: Literal["float32", "bfloat16", "int8"] = "float32",
    threads: int | None = None,
    augment: str = "none",
    optimizer: str = "sgd",
    start: Sequence[Code] = (),
    warm_start: Sequence[Path | str] = (),
    store: Path | str | None = None,
    whole_space: bool = False,
    loaded: TargetData | None = None,
    with_preprocessing: bool = False,
    context: Context = Context(),
    **fields: Any,
) -> Searched:
    """Search networks for a classification task; see the file's head.

    data, fields: as for `fit`. output: the folder; a stopped search goes on there. source: the BERT or Llama to slice
        (zoo:minilm) for texts. latency_ms: limit of one call of ``batch_size`` rows; none returns the whole front.
    image_size: pixels; the images' own side up to 64 by default. table: a latency table of this device, made here by
        default; ``any_device`` takes one of another. augment, optimizer: of image networks trained from scratch: words
        as in `augment.image_augmentation`, or "adautomix"; as in `retrain`. start: codes that the search of the front
        starts from. warm_start: folders of earlier searches of the space, finished or running; store: a population
        store's folder, read and written (`population_store`). Their fronts start the search too, and choices that
        their visited networks hardly make are left out of the space, unless ``whole_space``. loaded: the task's rows,
        where they were read already. with_preprocessing: the limit is one of preprocessing and network together, as a
        bundle's is. ``context.device``: where networks are trained and scored; latency is the CPU's in any case.
    Raises DataError for tasks that cannot be searched, LimitError with the fastest latency where the limit cannot be
    reached, before anything is trained; RunError for a folder of another search, or a store that cannot be used.
    """
    from ontarget.data import load
    from ontarget.device import check_device
    from ontarget.search.image_networks import image_networks
    from ontarget.search.text_slices import text_slices
    from ontarget.task import load_task

    begun = time.monotonic()
    check_device(context.device)
    folder = RunFolder(output)
    earlier = Earlier(
        tuple(map(tuple, start)), tuple(map(Path, warm_start)), PopulationStore(store) if store else None, whole_space
    )
    if not folder.has("taken_over"):
        earlier.check(folder.path)
    elif earlier.store is not None:
        earlier.store.check()
    request = load_task(data, fields)
    loaded = loaded or load(request.task)
    check_searchable(loaded, budget_s)
    if loaded.modality == "text" and (augment, optimizer) != ("none", "sgd"):
        raise SettingError(
            f"augment is '{augment}' and optimizer '{optimizer}' for texts.", allowed="none, sgd",
            option="--augment, --optimizer", next_step="leave them out: slices are not trained from scratch",
        )  # fmt: skip
    setting = Setting(runtime, threads or os.cpu_count() or 1, request.task.batch_size, precision)
    asked = {
        "fingerprint": loaded.fingerprint, "source": source, "latency_ms": latency_ms, "image_size": image_size,
        "setting": asdict(setting), "seed": request.task.seed, "budget_s": budget_s, "augment": augment,
        "optimizer": optimizer, "with_preprocessing": with_preprocessing,
    }  # fmt: skip
    context = replace(context, seed=request.task.seed)
    with folder.locked():
        spent = max((row["start_s"] + row["seconds"] for row in folder.timeline()), default=0.0)
        clock = Clock(budget_s, spent)
        if folder.has("asked") and folder.read("asked") != _plain(asked):
            raise RunError(
                f"The folder {output} holds a search of another task or with other settings.", option="--output",
                next_step="choose another folder",
            )  # fmt: skip
        folder.write("asked", asked)
        before = torch.get_num_threads()
        torch.set_num_threads(threads or os.cpu_count() or 1)
        try:
            kind = (
                image_networks(loaded, image_size, augment, optimizer, context) if loaded.modality == "image"
                else text_slices(loaded, source, request.task.max_length, context)
            )  # fmt: skip
            if latency_ms is not None and with_preprocessing:
                # Measured once: a resumed search must choose by the same limit.
                latency_ms = left_for_network(latency_ms, folder.once(
                    "preprocessing",
                    lambda: preprocessing_ms(kind.preprocess, kind.data.train.inputs, setting.batch_size), clock=clock,
                ))  # fmt: skip
            return _searched(kind, folder, clock, setting, table, any_device, latency_ms, earlier, context, begun)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            raise RunError(
                f"Out of memory ({str(error).splitlines()[0] if str(error) else type(error).__name__}).",
                option="--image-size" if loaded.modality == "image" else "--source, --max-length",
                next_step=f"{'lower it' if loaded.modality == 'image' else 'take a smaller source or shorter inputs'}, "
                "and begin in another folder",
            ) from error
        finally:
            torch.set_num_threads(before)


def _searched(
    kind: NetworkKind,
    folder: RunFolder,
    clock: Clock,
    setting: Setting,
    given: Path | str | LatencyTable | None,
    any_device: bool,
    latency_ms: float | None,
    earlier: Earlier,
    context: Context,
    begun: float,
) -> Searched:
    """The steps in their order, each done once."""
    from ontarget.report.search_page import write_search_page
    from ontarget.search.importance import importance

    path, whole, task = folder.path, kind.space, kind.data.fingerprint
    described = describe_space(whole, kind.name)
    visited = read_earlier(folder, earlier, whole, described, task)
    table = network_table(whole, setting, given, any_device, path / "latency_table.json", context)
    check_reachable(whole, table, latency_ms)

    def within(part: ElasticNetwork) -> bool:
        return latency_ms is None or fastest_ms(part, table) <= MARGIN * latency_ms

    taken = taken_over_once(folder, clock, earlier, visited, whole, described, task, within)
    writer = None if earlier.store is None else earlier.store.writer(
        described, task, taken.name, device=table.device, setting=asdict(setting), source=kind.source
    )  # fmt: skip
    if taken.sources and context.progress is not None:
        context.progress(0, 1, taken.lines()[-1])
    space = taken.space(whole)
    fastest, slowest = (whole_code(space, code) for code in extremes(space, table))
    # Planned once: a resumed training has to end where it was going to.
    plan = folder.once("plan", lambda: planned(kind, clock, slowest, context.seed), clock=clock)
    trained = folder.once(
        "training", lambda: train_supernetwork(kind, table, latency_ms, plan, path, clock, context), clock=clock,
        kind="training",
    )  # fmt: skip
    restore_weights(kind, path)
    learnt = [tuple(code) for code in trained["codes"]]
    rows = drawn(kind.validation, plan["rows"], context.seed)
    count = evaluations(kind, rows, plan["front_s"])
    evaluated = folder.once(
        "front",
        lambda: find_front(
            kind, space, table, rows=rows, budget=count, journal=path / "evaluated.jsonl", writer=writer, clock=clock,
            # This device's own first: a population may not hold all of an earlier search's front.
            start=[*learnt, fastest, slowest, *taken.start], seconds=plan["front_s"], context=context,
        ),
        clock=clock, kind="measuring",
    )  # fmt: skip
    codes, values = [tuple(code) for code in evaluated["codes"]], np.array(evaluated["values"])
    if writer is not None:
        writer.write(codes, values)
    limit = float("inf") if latency_ms is None else latency_ms
    chosen = finalists(codes, values, limit, extra=learnt)
    finished = folder.once(
        "finalists", lambda: finish_networks(kind, chosen, path / "candidates", clock, context), clock=clock,
        kind="training",
    )  # fmt: skip
    measured = folder.once(
        "measured", lambda: measure_networks(finished, whole, table, setting, limit, context), clock=clock,
        kind="measuring",
    )  # fmt: skip
    networks = publish(path / "found", kept_networks(measured, limit))
    result = Searched(
        str(path), kind.data.metric, kind.name, tuple(networks),
        tuple({"code": code, "quality": 1 - value[0], "predicted_ms": value[1]}
              for code, value in zip(codes, values.tolist(), strict=True)),
        tuple(evaluated["history"]), tuple(importance(space, codes_inside(space, codes), 1 - values[:, 0])),
        {**asdict(table.agreement), "kendall": table.agreement.kendall, "error": table.agreement.median_error},
        asdict(setting), latency_ms, table.predict(whole.operators(fastest)),
        table.predict(whole.operators(slowest)), time.monotonic() - begun, taken.to_json(), clock.elapsed_s(),
        clock.budget_s,
    )  # fmt: skip
    write_atomic(path / "search.json", to_json(asdict(result)))
    write_search_page(path / "search.html", result, trained.get("history", ()))
    return result


def check_searchable(data: TargetData, budget_s: float) -> None:
    """Raise DataError, SettingError or MissingExtra where networks cannot be searched for this task."""
    require_extra("pymoo", "search", "searching networks")
    if data.kind != "classification" or data.modality == "features" or data.columns > 1:
        raise DataError(
            f"Networks are searched for {data.kind} of {data.modality} with {data.columns} field(s) not yet.",
            allowed="classification of images, or of texts in one field",
        )
    if len(data.folds) or len(data.train) < LEAST_ROWS:
        raise DataError(
            f"{len(data.train)} labelled rows are too few to search networks with: none are held out for validation."
            if len(data.folds) else f"{len(data.train)} training rows are too few to search networks with.",
            allowed=f"{LEAST_ROWS} or more for training, and validation rows",
            next_step="give more labelled rows, or use ontarget fit, which starts from pretrained models",
        )  # fmt: skip
    if not budget_s >= 10:
        raise SettingError(f"The budget is {budget_s:g} s.", allowed="10 s or more", option="--budget")


def _plain(value: Any) -> Any:
    import json

    return json.loads(to_json(value))
