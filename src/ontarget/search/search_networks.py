"""From a task to the front of quality against latency on this device, and networks of it that are sources for `fit`.

Images: ProxylessNAS trains and searches a space of mobile CNNs (`proxyless`), ConcurrentNAS finds the front of the
trained super-network (`concurrent_nas`), the best within the limit are trained from scratch. Texts: InstaTune tunes a
pretrained encoder together with its slices, ConcurrentNAS finds the front, the best slices are the networks. Latency
comes from the device's table (`latency_table`) while searching, and is measured again, in a fresh process, for what is
returned.

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

from ontarget.errors import DataError, LimitError, RunError, SettingError, out_of_memory, require_extra
from ontarget.latency_table import LatencyTable, Setting, profile
from ontarget.plan.run_folder import Clock, RunFolder, to_json, write_atomic
from ontarget.search.example_rows import drawn
from ontarget.search.network_kind import NetworkKind
from ontarget.search.population_store import PopulationStore, StoreWriter, describe_space
from ontarget.search.shrink_space import ShrunkSpace
from ontarget.search.space import Code, ElasticNetwork
from ontarget.search.take_over import Earlier, TakenOver, take_over
from ontarget.values import Context, TargetData

TRAINING_SHARE = 0.45  # of the budget, for the super-network (choice)
EVALUATION_SHARE = 0.2  # for the front (choice)
LEAST_ROWS = 200  # training rows below which networks are not searched: none could be told apart (choice)
EVALUATION_ROWS = 1000  # validation rows that a network of the front is scored on, at most (choice)
LEAST_EVALUATION_ROWS = 100  # and at least, where evaluations are slow (choice)
LEAST_EVALUATIONS = 60  # of the search of the front (choice)
FINALISTS = 4  # networks that are returned (choice)
MARGIN = 0.97  # of the limit that a returned network may take: a fresh measurement must not break it (choice)


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
    from ontarget.device import check_training_device
    from ontarget.search.image_networks import image_networks
    from ontarget.search.text_slices import text_slices
    from ontarget.task import load_task

    begun = time.monotonic()
    check_training_device(context.device)
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
                latency_ms = _left_for_network(
                    latency_ms, folder.once("preprocessing", lambda: _preprocessing_ms(kind, setting.batch_size),
                                            clock=clock)
                )  # fmt: skip
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
    from ontarget.report.search_page import write_search_page
    from ontarget.search.concurrent_nas import concurrent_nas
    from ontarget.search.genetic import non_dominated
    from ontarget.search.importance import importance

    space, path = kind.space, folder.path
    read = _earlier(kind, folder, earlier)
    table = _table(space, setting, given, any_device, path / "latency_table.json", context)
    fastest, slowest = extremes(space, table)
    if latency_ms is not None and latency_ms < table.predict(space.operators(fastest)):
        raise LimitError(
            f"A latency of {latency_ms:g} ms cannot be reached: the fastest network of this space takes "
            f"{table.predict(space.operators(fastest)):.3g} ms.",
            option="--latency-ms", next_step="raise the limit, or lower --image-size or --max-length",
        )  # fmt: skip
    taken, writer = _taken_over(kind, folder, clock, setting, table, latency_ms, earlier, read)
    searched = taken.space(space)
    fastest, slowest = (_whole(searched, code) for code in extremes(searched, table))
    if taken.sources and context.progress is not None:
        context.progress(0, 1, taken.lines()[-1])
    weights = path / "supernetwork.safetensors"

    def train() -> dict[str, Any]:
        if context.progress is not None:
            context.progress(0, 1, "training the super-network")
        limited = replace(context, deadline=clock.deadline(plan["training_s"]))
        result = kind.train(table, latency_ms, plan["epochs"], path / "training.state", limited)
        _save_weights(kind.space, weights)
        (path / "training.state").unlink(missing_ok=True)
        return result

    # Planned once: a resumed training has to end where it was going to.
    plan = folder.once("plan", lambda: _planned(kind, clock, slowest, context.seed), clock=clock)
    trained = folder.once("training", train, clock=clock, kind="training")
    _restore_weights(kind.space, weights)
    left = plan["front_s"]
    sample = drawn(kind.validation, plan["rows"], context.seed)
    budget = int(np.clip(left / max(kind.seconds_of_one(sample), 1e-3), LEAST_EVALUATIONS, 400))

    def evaluate(codes: Sequence[Code]) -> Any:
        rows = []
        for code in (_whole(searched, code) for code in codes):
            rows.append([1 - kind.quality(code, sample), table.predict(space.operators(code))])
            if writer is not None:
                writer.add(code, rows[-1])
        return np.array(rows)

    def front() -> dict[str, Any]:
        if writer is not None:
            writer.begin()
        # This device's own first: a population may not hold all of an earlier search's front.
        first = _inside(searched, [*map(tuple, trained["codes"]), fastest, slowest, *taken.start])
        found = concurrent_nas(
            searched, evaluate, budget=budget, population=min(50, budget // 3), start=first,
            journal=path / "evaluated.jsonl",
            context=replace(context, deadline=clock.deadline(left)),
        )  # fmt: skip
        codes = [_whole(searched, code) for code in found.codes]
        return {"codes": codes, "values": found.values, "history": found.history}

    evaluated = folder.once("front", front, clock=clock, kind="measuring")
    codes, values = [tuple(code) for code in evaluated["codes"]], np.array(evaluated["values"])
    if writer is not None:
        writer.write(codes, values)
    limit = float("inf") if latency_ms is None else latency_ms
    chosen = finalists(codes, values, limit, extra=[tuple(code) for code in trained["codes"]])

    def finish() -> list[dict[str, Any]]:
        found = []
        for at, code in enumerate(chosen):
            target = path / "candidates" / f"{at + 1}"
            left = 0.9 * clock.remaining_s()
            if at and left < kind.seconds_to_finish(code):  # the first is finished in any case
                break
            if not (target / "network.json").exists():
                kind.finish(code, target, context, left / (len(chosen) - at))
            found.append({"code": code, "folder": str(target)})
        return found

    made = folder.once("finalists", finish, clock=clock, kind="training")

    def measure() -> list[dict[str, Any]]:
        from ontarget.pool.found_networks import read_info
        from ontarget.search.measure_found import measure_found

        folders = [Path(entry["folder"]) for entry in made]
        if context.progress is not None:
            context.progress(0, 1, "measuring in a fresh process")
        times = measure_found(folders, setting)
        rows = []
        for entry, measured in zip(made, times, strict=True):
            code = tuple(entry["code"])
            info = read_info(Path(entry["folder"]))
            rows.append(
                {
                    **entry, "quality": info["quality"], "measured_ms": measured,
                    "predicted_ms": table.predict(space.operators(code)), "config": space.config(code),
                    "kept": measured <= MARGIN * limit,
                }
            )  # fmt: skip
        return rows

    measured = folder.once("measured", measure, clock=clock, kind="measuring")
    kept = [row for row in measured if row["kept"]]
    if not kept:
        raise LimitError(
            f"No network that was trained stays within {MARGIN:.0%} of {latency_ms:g} ms: the fastest takes "
            f"{min(row['measured_ms'] for row in measured):.3g} ms.",
            option="--latency-ms", next_step="raise the limit a little, or profile this device when it is quiet",
        )  # fmt: skip
    points = np.array([[1 - row["quality"], row["measured_ms"]] for row in kept])
    kept = [kept[at] for at in non_dominated(points)]
    kept.sort(key=lambda row: -row["quality"])
    networks = _publish(path, kept)
    result = Searched(
        str(path), kind.data.metric, kind.name, tuple(networks),
        tuple({"code": code, "quality": 1 - value[0], "predicted_ms": value[1]}
              for code, value in zip(codes, values.tolist(), strict=True)),
        tuple(evaluated["history"]), tuple(importance(searched, _inside(searched, codes), 1 - values[:, 0])),
        {**asdict(table.agreement), "kendall": table.agreement.kendall, "error": table.agreement.median_error},
        asdict(setting), latency_ms, table.predict(space.operators(fastest)),
        table.predict(space.operators(slowest)), time.monotonic() - begun, taken.to_json(), clock.elapsed_s(),
        clock.budget_s,
    )  # fmt: skip
    write_atomic(path / "search.json", to_json(asdict(result)))
    write_search_page(path / "search.html", result, trained.get("history", ()))
    return result


def _planned(kind: NetworkKind, clock: Clock, slowest: Code, seed: int) -> dict[str, Any]:
    """Seconds for the super-network and for the front, and its epochs, such that one network can be finished after."""
    free = max(0.3 * clock.budget_s, clock.remaining_s() - kind.seconds_to_finish(slowest))
    shares = TRAINING_SHARE + EVALUATION_SHARE
    training_s, front_s = (min(share * clock.budget_s, free * share / shares)
                           for share in (TRAINING_SHARE, EVALUATION_SHARE))  # fmt: skip
    one_s = max(kind.seconds_of_one(drawn(kind.validation, EVALUATION_ROWS, seed)), 1e-3)
    affordable = EVALUATION_ROWS * front_s / (LEAST_EVALUATIONS * one_s)
    rows = int(np.clip(affordable, LEAST_EVALUATION_ROWS, EVALUATION_ROWS))
    return {"training_s": training_s, "front_s": front_s, "epochs": kind.epochs(training_s), "rows": rows}


def _preprocessing_ms(kind: NetworkKind, batch_size: int) -> float:
    """Median milliseconds in which one call's rows become tensors."""
    inputs, times = kind.data.train.inputs, []
    for at in range(15):
        rows = [inputs[(at * batch_size + row) % len(inputs)] for row in range(batch_size)]
        begun = time.perf_counter()
        kind.preprocess(rows)
        times.append(1000 * (time.perf_counter() - begun))
    return float(np.median(times))


def _left_for_network(latency_ms: float, preprocessing_ms: float) -> float:
    if preprocessing_ms >= latency_ms:
        raise LimitError(
            f"A latency of {latency_ms:g} ms cannot be reached: preprocessing alone takes {preprocessing_ms:.3g} ms.",
            option="--latency-ms", next_step="raise the limit",
        )  # fmt: skip
    return latency_ms - preprocessing_ms


def _earlier(kind: NetworkKind, folder: RunFolder, earlier: Earlier) -> list[Any]:
    """What earlier searches visited, read and checked before any work; nothing where this search goes on."""
    if folder.has("taken_over"):
        TakenOver.from_json(folder.read("taken_over")).check_asked(earlier, folder.path)
        return []
    return list(earlier.read(kind.space, describe_space(kind.space, kind.name), kind.data.fingerprint))


def _taken_over(
    kind: NetworkKind,
    folder: RunFolder,
    clock: Clock,
    setting: Setting,
    table: LatencyTable,
    latency_ms: float | None,
    earlier: Earlier,
    read: list[Any],
) -> tuple[TakenOver, StoreWriter | None]:
    """What is taken over, decided once and kept in the folder, and the writer of this search's file in the store."""
    import uuid

    described, task = describe_space(kind.space, kind.name), kind.data.fingerprint

    def within(space: ElasticNetwork) -> bool:
        if latency_ms is None:
            return True
        return table.predict(space.operators(extremes(space, table)[0])) <= MARGIN * latency_ms

    def decide() -> dict[str, Any]:
        begun = (folder.path / "evaluated.jsonl").exists()  # before this stage was kept: its space stays
        others = earlier.store.others(described, task) if earlier.store else 0
        plan = replace(earlier, whole_space=True) if begun else earlier
        return take_over(kind.space, plan, read, within=within, others=others, name=uuid.uuid4().hex[:16]).to_json()

    taken = TakenOver.from_json(folder.once("taken_over", decide, clock=clock))
    writer = None
    if earlier.store is not None:
        writer = earlier.store.writer(
            described, task, taken.name, device=table.device, setting=asdict(setting),
            source=kind.source,
        )  # fmt: skip
    return taken, writer


def _whole(space: ElasticNetwork, code: Code) -> Code:
    """A code of the space that is searched in the whole space."""
    return space.outer(code) if isinstance(space, ShrunkSpace) else code


def _inside(space: ElasticNetwork, codes: Sequence[Code]) -> list[Code]:
    """Codes of the whole space in the space that is searched, without those that are not in it."""
    if not isinstance(space, ShrunkSpace):
        return list(codes)
    return [code for code in map(space.inner, codes) if code is not None]


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


def finalists(codes: Sequence[Code], values: Any, limit_ms: float, *, extra: Sequence[Code] = ()) -> list[Code]:
    """Networks to finish, `FINALISTS` at most: the best within the limit, the extras, and others spread over the front.

    values: (N, 2), 1 - quality and milliseconds.
    """
    from ontarget.search.genetic import non_dominated

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


def _save_weights(module: torch.nn.Module, path: Path) -> None:
    from safetensors.torch import save

    write_atomic(path, save({name: value.contiguous() for name, value in module.state_dict().items()}))


def _restore_weights(module: torch.nn.Module, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        module.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise RunError(f"{path} is missing or damaged.", next_step="delete stages/training.json beside it") from error
    module.eval()


def _publish(path: Path, kept: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """found/1 ...: the kept networks, best first."""
    import shutil

    target = path / "found"
    if target.exists():
        shutil.rmtree(target)
    networks = []
    for at, row in enumerate(kept):
        shutil.copytree(row["folder"], target / str(at + 1))
        networks.append({**row, "folder": str(target / str(at + 1)), "locator": f"file:{target / str(at + 1)}"})
    return networks


def _table(
    space: ElasticNetwork,
    setting: Setting,
    given: Path | str | LatencyTable | None,
    any_device: bool,
    path: Path,
    context: Context,
) -> LatencyTable:
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
