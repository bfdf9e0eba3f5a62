"""Merge models with weights that a task's own rows choose: `ontarget merge --tune-on`."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ontarget.errors import RunError, SettingError
from ontarget.merge.tune_weights import TunedMerge, tune_weights
from ontarget.plan.language_trials import answer_as_tried, validation_part
from ontarget.pool.language_models import load_language_model, local_folder
from ontarget.values import Array, Context, GenerationData


def merge_on_task(
    models: Sequence[str],
    base: str | None,
    data: GenerationData,
    output: Path,
    *,
    method: str = "task_arithmetic",
    trials: int = 12,
    context: Context = Context(),
) -> TunedMerge:
    """Score the models on the task's validation rows, tune the weights of their merge there, write it to ``output``.

    models, base: folders, ``zoo:`` or ``hub:`` locators of whole models. ``output`` is new, and appears when it is
    whole; test rows are not looked at. A call that was killed goes on when it is made again: until it ends a hidden
    folder beside ``output`` holds what was scored. Raises RunError, and writes nothing, where no merge is better than
    the best of the models.
    """
    if output.exists():
        raise SettingError(f"'{output}' is there already.", option="--output", next_step="choose a new folder")
    part = validation_part(data)

    folders = {str(local_folder(model)): model for model in models}
    on = str(local_folder(base)) if base else None
    work = output.parent / f".{output.name}.{_digest([*folders, on or ''], method, data, context)}"
    work.mkdir(parents=True, exist_ok=True)

    def score(folder: Path, kept: Path) -> Array:
        source = load_language_model(str(folder), device=context.device)
        return answer_as_tried(source, part, data, {}, kept=kept, context=context).rows

    parents: dict[str, Any] = {}
    for at, folder in enumerate(folders):
        if context.progress is not None:
            context.progress(at, len(folders), f"scoring {folders[folder]}")
        parents[folder] = score(Path(folder), work / f"parent-{at}.jsonl")
    found = tune_weights(
        parents, on, lambda folder: score(folder, folder / "answers.jsonl"), work, method=method, trials=trials,
        context=context,
    )  # fmt: skip
    if found.plan is not None:
        (work / "merged" / "answers.jsonl").unlink(missing_ok=True)
        (work / "merged").rename(output)
    shutil.rmtree(work, ignore_errors=True)
    if found.plan is None:
        raise RunError(f"Nothing is written: {found.says}.", option="--tune-on",
                       next_step="use that model, another method, or more --trials")  # fmt: skip
    return found


def _digest(folders: Sequence[str], method: str, data: GenerationData, context: Context) -> str:
    """Of everything that scores hang on: weights by size and time."""
    told: list[Any] = [method, data.fingerprint, context.seed]
    for folder in filter(None, folders):
        files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns)
                 for path in sorted(Path(folder).glob("*.safetensors"))]  # fmt: skip
        told.append([folder, files])
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]
