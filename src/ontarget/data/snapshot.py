"""Data that lives only in memory, written into the run folder, so that the run can be resumed and repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ontarget.task import Request
from ontarget.values import Examples, GenerationData, TargetData

MADE_SPLIT = "ontarget_split"  # column of splits that were made here: validation rows may be trained on in the end


def storable(request: Request, data: TargetData, folder: Path) -> Request:
    """``request`` itself where all its data are paths; else one that reads a copy written into ``folder``.

    The copy holds the rows as they were read and split: texts as Parquet, images as files beside a Parquet
    table, features as .npz. The splits travel as a column, `MADE_SPLIT` unless the user set validation rows apart.
    """
    task = request.task
    split = MADE_SPLIT if data.validation_made else "split"
    if all(part is None or isinstance(part, str) for part in (task.data, task.validation, task.test)):
        return request
    folder.mkdir(parents=True, exist_ok=True)
    splits = {"train": data.train, "validation": data.validation, "test": data.test, "": data.unlabelled}
    if len(data.folds):
        splits["validation"] = data.validation.take([])
    rows = [(name, at) for name, examples in splits.items() for at in range(len(examples))]
    targets = [_target(data, splits[name], at) for name, at in rows]
    names = [name or "train" for name, _ in rows]
    if data.modality == "features":
        path = folder / "data.npz"
        features = np.concatenate([np.asarray(part.inputs, dtype=np.float32) for part in splits.values() if len(part)])
        arrays: dict[str, Any] = {
            "X": features, "y": np.array(["" if t is None else str(t) for t in targets]), split: np.array(names),
        }  # fmt: skip
        np.savez(path, **arrays)
        return _with(request, data=str(path), input=(), target="y", split=split, modality="features", kind=data.kind)
    import pandas as pd

    inputs = [splits[name].inputs[at] for name, at in rows]
    columns: dict[str, Any] = {}
    if data.modality == "image":
        columns["image"] = [_write_image(image, folder / "images" / f"{at:07d}.png") for at, image in enumerate(inputs)]
    elif inputs and isinstance(inputs[0], tuple):
        columns["first"], columns["second"] = ([pair[at] for pair in inputs] for at in (0, 1))
    else:
        columns["text"] = inputs
    path = folder / "data.parquet"
    pd.DataFrame({**columns, "target": targets, split: names}).to_parquet(path)
    return _with(
        request, data=str(path), input=tuple(columns), target="target", split=split, modality=data.modality,
        kind=data.kind,
    )  # fmt: skip


def storable_generation(request: Request, data: GenerationData, folder: Path) -> Request:
    """As `storable`, for prompts and their references: a Parquet table with a column of lists."""
    task = request.task
    if all(part is None or isinstance(part, str) for part in (task.data, task.validation, task.test)):
        return request
    import pandas as pd

    folder.mkdir(parents=True, exist_ok=True)
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    rows = [(prompt, list(right), name) for name, part in parts.items()
            for prompt, right in zip(part.prompts, part.references, strict=True)]  # fmt: skip
    path = folder / "data.parquet"
    pd.DataFrame(rows, columns=["prompt", "answers", "split"]).to_parquet(path)
    return _with(request, data=str(path), input=("prompt",), target="answers", split="split", kind="generation",
                 metric=data.metric)  # fmt: skip


def _target(data: TargetData, examples: Examples, at: int) -> Any:
    if not len(examples.targets):
        return None
    value = examples.targets[at]
    return data.classes[int(value)] if data.kind == "classification" else float(value)


def _write_image(image: Any, path: Path) -> str:
    from ontarget.runtime.preprocess import open_image

    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, (str, Path)):
        return str(Path(image).resolve())
    open_image(image).save(path)
    return str(path.resolve())


def _with(request: Request, **fields: Any) -> Request:
    task = request.task.model_copy(
        update={**fields, "validation": None, "test": None, "group": None, "corrections": None}
    )
    return request.model_copy(update={"task": task})
