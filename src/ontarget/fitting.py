"""`fit`: from a task to a proven bundle, and `resume` for a run that was stopped. The stages are in stages.py."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ontarget.errors import RunError, SettingError
from ontarget.plan.run_folder import RunFolder
from ontarget.task import PATHS, Request, load_task, write_toml
from ontarget.values import GenerationData, TargetData


@dataclass(frozen=True)
class Run:
    """A finished run: where its results are, and what they say."""

    path: Path
    report: Mapping[str, Any]

    @property
    def bundle(self) -> Path:
        """Folder of the deployable model."""
        return self.path / "bundle"

    @property
    def report_html(self) -> Path:
        return self.path / "report.html"

    @cached_property
    def _loaded(self) -> Any:
        from ontarget.serve.language_bundle import is_language_bundle, load_language_bundle

        if is_language_bundle(self.bundle):
            return load_language_bundle(self.bundle)
        from ontarget.runtime import load_bundle

        return load_bundle(self.bundle)

    def predict(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """Predictions of the bundle: label and probabilities, or value, or answer, for each input."""
        if self.report.get("kind") == "generation":
            from ontarget.data.generation_data import as_prompt

            return [{"answer": answer} for answer in self._loaded.answer([as_prompt(one) for one in inputs])]
        predictions: list[dict[str, Any]] = self._loaded.predict(inputs)
        return predictions

    def print_summary(self) -> None:
        """The result in a few lines and where the report and the bundle are."""
        if self.report.get("kind") == "generation":
            from ontarget.report.generation_page import print_generation

            print_generation(self.report, self.path)
            return
        from ontarget.report.console import print_report

        print_report(self.report, self.path)


def fit(
    data: Any,
    *,
    pool: Sequence[str] | str | None = None,
    limits: Any = None,
    device: str | None = None,
    run: Path | str | None = None,
    executor: str = "local",
    ray_address: str | None = None,
    storage: str | None = None,
    threads: int | None = None,
    search: float = 0.0,
    progress: Any = None,
    **fields: Any,
) -> Run:
    """Find, train, compress and prove the best model for a task within its limits.

    data: a `Task`, a ``task.toml``, or anything `Task.data` takes, with the fields of `Task` and `Limits` as
        keywords: ``fit("reviews.csv", input="text", target="label", latency_ms=5, budget_s=600)``.
    pool: locators of sources; the installed zoo of the task's modality by default.
    device: where training runs ("cpu", "cuda"); a ``task.toml``'s own, or the CPU, by default. The bundle is
        measured on this machine's CPU.
    run: folder of the run; ``runs/<name>-<n>`` by default. A folder that holds the same request is resumed.
    executor: "local" or "ray" (with ``ray_address`` for a running cluster). storage: Optuna storage URL.
    search: share of the budget, up to 0.9, for a search of networks on this device; they are further candidates.
    progress: called with (done, total, what).
    Raises DataError, SettingError, MissingExtra before any work; LimitError where nothing fits; RunError.
    """
    given = dict(fields)
    if device:
        given["device"] = device
    if pool:
        given["pool"] = pool
    if threads:
        given["threads"] = threads
    if search:
        given["search"] = search
    if limits is not None:
        from ontarget.task import Limits

        given.update((limits if isinstance(limits, Limits) else Limits(**limits)).model_dump(exclude_none=True))
    request = load_task(data, given)
    folder = RunFolder(run if run is not None else _new_folder(request))
    known = folder.path / "task.toml"
    loaded: TargetData | GenerationData | None = None
    if not known.exists():
        from ontarget.data import load
        from ontarget.data.snapshot import storable, storable_generation
        from ontarget.device import check_device

        if executor == "local":  # a cluster's nodes have accelerators of their own
            check_device(request.device)

        if request.task.generates:
            from ontarget.data.generation_data import load_generation

            if request.search or executor != "local" or storage is not None:
                raise SettingError("A generation task has no search of networks, and runs in this process.",
                                   option="--search, --executor, --storage", next_step="leave them out")  # fmt: skip
            loaded = load_generation(request.task)
        else:
            loaded = load(request.task)  # every check of the data comes before the folder is made
        if request.search and isinstance(loaded, TargetData):
            from ontarget.search.search_networks import check_searchable

            check_searchable(loaded, request.search * request.limits.budget_s)
        folder.path.mkdir(parents=True, exist_ok=True)
        if isinstance(loaded, GenerationData):
            stored = storable_generation(request, loaded, folder.path / "data")
        else:
            stored = storable(request, loaded, folder.path / "data")
        if stored is not request and isinstance(loaded, TargetData) and loaded.modality == "image":
            # Arrays have become files: the run goes by what it reads back when it is resumed.
            loaded = replace(loaded, fingerprint=load(stored.task).fingerprint)
        request = stored
        temporary = known.with_suffix(".part")
        write_toml(request, temporary)
        temporary.replace(known)
    elif isinstance(request.task.data, str) and _comparable(load_task(known)) != _comparable(request):
        raise RunError(
            f"The folder {folder.path} holds a run of another task or other limits.",
            option="--run",
            next_step="choose another folder, or continue that run with --resume",
        )
    return _continue(folder, loaded, executor, ray_address, storage, progress)


def resume(
    path: Path | str,
    *,
    executor: str = "local",
    ray_address: str | None = None,
    storage: str | None = None,
    progress: Any = None,
) -> Run:
    """Go on with a run: finished stages and trials are read back, the rest is done. Raises RunError, DataError."""
    folder = RunFolder(path)
    if not (folder.path / "task.toml").exists():
        raise RunError(f"{folder.path} is no run: it has no task.toml.", next_step="start one with ontarget fit DATA")
    return _continue(folder, None, executor, ray_address, storage, progress)


def _continue(
    folder: RunFolder,
    data: TargetData | GenerationData | None,
    executor: str,
    ray_address: str | None,
    storage: str | None,
    progress: Any,
) -> Run:
    """Do what is left of a run. data: the task's rows, where they were read already."""
    from ontarget.plan.executors import make_executor
    from ontarget.stages import Stages

    request = load_task(folder.path / "task.toml")
    with folder.locked():
        if request.task.generates:
            from ontarget.generation_stages import GenerationStages

            if isinstance(data, TargetData) or executor != "local" or storage is not None:
                raise SettingError("A generation task runs in this process.", option="--executor, --storage",
                                   next_step="leave them out")  # fmt: skip
            writing = GenerationStages(folder, request, data, progress)
            writing.run_stages()
            return Run(folder.path, writing.report())
        assert not isinstance(data, GenerationData)
        runner = make_executor(executor, address=ray_address, cores=request.threads or os.cpu_count() or 1)
        work = Stages(folder, request, data, runner, storage, progress)
        work.run_stages()
        return Run(folder.path, work.report())


def rebuild_report(path: Path | str) -> Run:
    """Write a finished run's report again from what it stored."""
    from ontarget.report.build import read_report
    from ontarget.report.build import rebuild_report as rebuild

    rebuild(Path(path))
    return Run(Path(path), read_report(Path(path)))


def _comparable(request: Request) -> dict[str, Any]:
    values = request.model_dump(exclude_none=True)
    for name in PATHS:
        if isinstance(values["task"].get(name), str) and not values["task"][name].startswith("hub:"):
            values["task"][name] = str(Path(values["task"][name]).resolve())
    return values


def _new_folder(request: Request) -> Path:
    data = request.task.data
    name = request.task.name or (Path(data).stem if isinstance(data, str) else "task")
    name = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name.replace("hub:", ""))
    number = 1
    while (folder := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return folder


__all__ = ["Run", "fit", "rebuild_report", "resume"]
