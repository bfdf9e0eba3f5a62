"""From a task to its data: read, checked, split, fingerprinted. All checks come before any work."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from ontarget.data.assign import complete
from ontarget.data.check import Contents, contents_of, warn_of_conflicts, warn_of_leaks
from ontarget.data.columns import choose_inputs, find_column, infer_modality, inputs_of
from ontarget.data.corrections import with_corrections
from ontarget.data.fingerprint import fingerprint, of_image_digests
from ontarget.data.images import Looks, look_at
from ontarget.data.problems import Rows, listed, raise_all
from ontarget.data.read import Table, read
from ontarget.data.snapshot import MADE_SPLIT
from ontarget.data.split import read_splits, units_of
from ontarget.data.targets import Targets, encode_targets
from ontarget.errors import DataError, SettingError
from ontarget.task import CLASSIFICATION_METRICS, REGRESSION_METRICS, Modality, Task
from ontarget.values import Array, Examples, TargetData

UNEVEN = 10  # from this ratio of the largest to the smallest class on, macro_f1 instead of accuracy (choice)


@dataclass(frozen=True)
class _Columns:
    input: tuple[str, ...]
    target: str
    split: str | None
    group: str | None


def load(task: Task) -> TargetData:
    """Read the task's data, check it, split it.

    Raises DataError with all mistakes that were found, naming files, columns and rows (counted from 0); SettingError
    for options that contradict each other; MissingExtra for hub data without `datasets`.
    """
    if task.generates or task.kind == "generation":
        raise SettingError("This is a generation task, and labels are needed here.", option="kind, metric, checker",
                           next_step="specialise a language model with `ontarget fit`")  # fmt: skip
    problems: list[str] = []
    tables = [read(task.data)]
    extra = [(name, source) for name, source in (("validation", task.validation), ("test", task.test))
             if source is not None]  # fmt: skip
    if extra and task.split:
        raise SettingError(
            f"The splits are given twice: by the column '{task.split}' and by files.",
            option=", ".join(["split", *(name for name, _ in extra)]),
            next_step="leave one of them out",
        )
    tables += [read(source) for _, source in extra]
    rows = Rows(tuple(table.name for table in tables), tuple(len(table.frame) for table in tables))
    columns = [_columns(table, task, at, problems) for at, table in enumerate(tables)]
    raise_all(problems, option="task", next_step="correct the names of the columns")
    warnings = [text for table in tables for text in table.warnings]
    if task.corrections is not None:
        frame, changed = with_corrections(tables[0].frame, columns[0].target, task.corrections)
        tables[0] = replace(tables[0], frame=frame)
        warnings.append(f"{changed:,} label(s) were corrected by {task.corrections}")

    inputs, modality = _inputs(tables, columns, task.modality, rows, problems)
    looks = look_at(inputs, rows, problems) if modality == "image" and not problems else None
    target = _target_column(tables, columns)
    targets = encode_targets(target, columns[0].target, task.kind, rows, problems)
    splits = _given_splits(tables, columns, [name for name, _ in extra], targets.labelled, rows, problems)
    raise_all(problems, rows.where)
    warnings += targets.warnings
    metric = _metric(task, targets, warnings)

    contents = contents_of(inputs, modality, looks)
    groups = _groups(tables, columns)
    made = columns[0].split == MADE_SPLIT or not (targets.labelled & (splits == "validation")).any()
    folds = complete(splits, targets, units_of(contents.codes, groups), task, rows)
    warnings += _warnings(inputs, modality, contents, targets, splits, groups, rows)
    return replace(
        _data(inputs, modality, looks, targets, metric, splits, folds, rows, warnings), validation_made=bool(made)
    )


def summary(data: TargetData) -> dict[str, Any]:
    """What the data is, as a run folder and a report keep it: no rows, their fingerprint."""
    return {
        "modality": data.modality,
        "kind": data.kind,
        "metric": data.metric,
        "classes": list(data.classes),
        "rows": {
            "train": len(data.train),
            "validation": 0 if len(data.folds) else len(data.validation),
            "test": len(data.test),
            "unlabelled": len(data.unlabelled),
        },
        "cross_fitted": bool(len(data.folds)),
        "warnings": list(data.warnings),
        "fingerprint": data.fingerprint,
    }


def read_inputs(
    source: Any, *, input_columns: tuple[str, ...] = (), modality: Modality | None = None
) -> tuple[Any, Array]:
    """Inputs to predict: (inputs as in `Examples.inputs`, rows (N,) int64). No target is needed.

    source: as `Task.data`, or a list or array of inputs. input_columns: as in training; unused where the source has
    no column names. Images are not opened here. Raises DataError.
    """
    problems: list[str] = []
    table = read(source)
    columns = choose_inputs(table, input_columns, {table.target, table.split or ""}, modality, problems)
    raise_all(problems, option="input", next_step="name the columns as in training")
    rows = Rows((table.name,), (len(table.frame),))
    inputs, _ = _inputs([table], [_Columns(columns, "", None, None)], modality, rows, problems)
    raise_all(problems, rows.where)
    return inputs, rows.local()


def _columns(table: Table, task: Task, position: int, problems: list[str]) -> _Columns:
    """Names of the columns in one table, or problems. position: 0 for the data, else an extra file of a split."""
    target = task.target or table.target
    if task.target and task.target not in table.frame.columns and table.target and position:
        target = table.target
    if not target:
        names = ", ".join(map(str, table.frame.columns[:30]))
        problems.append(f"--target: which column of {table.name} is the target? It has {names}")
    else:
        find_column(target, table, "--target", problems)
    apart = task.validation is not None or task.test is not None
    split = None if position else task.split or (None if apart else table.split)
    if split:
        find_column(split, table, "--split", problems)
    group = task.group
    if group and (not position or group in table.frame.columns):
        find_column(group, table, "--group", problems)
    else:
        group = None
    if not position and table.input:
        for name in task.input:
            find_column(name, table, "--input", problems)
    others = {name for name in (target, split, table.split, group) if name}
    return _Columns(choose_inputs(table, task.input, others, task.modality, problems), target, split, group)


def _inputs(
    tables: list[Table], columns: list[_Columns], modality: Modality | None, rows: Rows, problems: list[str]
) -> tuple[Any, Modality]:
    """All tables' inputs below each other. Raises DataError where the modality cannot be told."""
    modality = modality or infer_modality(tables[0], columns[0].input)
    if modality is None:
        raise DataError(
            f"The column(s) {listed(columns[0].input)} of {tables[0].name} are neither texts nor images nor numbers.",
            allowed="one or two columns of text, one of images or their paths, or columns of numbers",
            option="--modality",
            next_step="set the modality, or choose other input columns",
        )
    parts, offset = [], 0
    for table, chosen in zip(tables, columns, strict=True):
        parts.append(inputs_of(table, chosen.input, modality, rows, offset, problems))
        offset += len(table.frame)
    if modality != "features":
        return [cell for part in parts for cell in part], modality
    dims = {part.shape[1] for part in parts}  # type: ignore[union-attr]
    if len(dims) > 1:
        problems.append(f"the tables have different numbers of features: {sorted(dims)}")
        return parts[0], modality
    return np.concatenate(parts), modality


def _target_column(tables: list[Table], columns: list[_Columns]) -> pd.Series:
    """All tables' targets below each other. CSV cells are text: beside typed targets they are read as numbers."""
    parts = [table.frame[chosen.target].astype(object) for table, chosen in zip(tables, columns, strict=True)]
    kinds = [pd.api.types.infer_dtype(part, skipna=True) for part in parts]
    if "string" in kinds and len(set(kinds)) > 1:
        for at, part in enumerate(parts):
            if kinds[at] == "string":
                numbers = pd.to_numeric(part, errors="coerce").astype(object)
                parts[at] = numbers.where(numbers.notna(), part)
            elif kinds[at] == "boolean":
                parts[at] = part.map(str, na_action="ignore")
    return pd.concat(parts, ignore_index=True)


def _given_splits(
    tables: list[Table], columns: list[_Columns], extra: list[str], labelled: Array, rows: Rows, problems: list[str]
) -> Array:
    """(N,) object: "train", "validation" or "test" as the user gave them; all "train" where nothing was given."""
    first = len(tables[0].frame)
    splits = np.full(len(labelled), "train", dtype=object)
    if columns[0].split:
        name = columns[0].split
        splits[:first] = read_splits(tables[0].frame[name], name, labelled[:first], rows, 0, problems)
    start = first
    for name, table in zip(extra, tables[1:], strict=True):
        splits[start : start + len(table.frame)] = name
        start += len(table.frame)
    return splits


def _groups(tables: list[Table], columns: list[_Columns]) -> list[Any] | None:
    if columns[0].group is None:
        return None
    return [
        cell
        for table, chosen in zip(tables, columns, strict=True)
        for cell in (table.frame[chosen.group] if chosen.group else [None] * len(table.frame))
    ]


def _metric(task: Task, targets: Targets, warnings: list[str]) -> str:
    allowed = CLASSIFICATION_METRICS if targets.kind == "classification" else REGRESSION_METRICS
    if task.metric is not None:
        if task.metric not in allowed:
            raise SettingError(
                f"The metric {task.metric} does not fit a {targets.kind}.",
                allowed=", ".join(allowed),
                option="--metric",
                next_step="choose another metric, or set the kind",
            )
        return task.metric
    if targets.kind == "regression":
        return "r2"
    sizes = np.bincount(targets.values[targets.labelled], minlength=len(targets.classes))
    if sizes.max() < UNEVEN * sizes.min():
        return "accuracy"
    most, least = targets.classes[int(sizes.argmax())], targets.classes[int(sizes.argmin())]
    warnings.append(
        f"the classes are uneven ('{most}' has {sizes.max():,} rows, '{least}' {sizes.min():,}), so the metric is"
        " macro_f1; set metric to choose another"
    )
    return "macro_f1"


def _warnings(
    inputs: Any, modality: Modality, contents: Contents, targets: Targets, splits: Array, groups: list[Any] | None,
    rows: Rows,
) -> list[str]:  # fmt: skip
    warnings = []
    if modality == "text":
        empty = [row for row, text in enumerate(contents.texts) if not text.strip()]
        if empty:
            warnings.append(f"{len(empty):,} row(s) have an empty text: {rows.some(empty)}")
    for name in ("validation", "test"):
        dropped = np.flatnonzero(~targets.labelled & (splits == name))
        if len(dropped):
            warnings.append(f"{len(dropped):,} {name} row(s) have no target and are left out: {rows.some(dropped)}")
    train, validation, test = (
        np.flatnonzero(targets.labelled & (splits == name)) for name in ("train", "validation", "test")
    )
    seen = "train or validation" if len(validation) else "train"
    warnings += warn_of_leaks(contents, np.concatenate([train, validation]), test, (seen, "test"), rows)
    warnings += warn_of_leaks(contents, train, validation, ("train", "validation"), rows)
    if targets.kind == "classification":
        codes = np.where(targets.labelled, targets.values, -1)
        warnings += warn_of_conflicts(contents, codes, targets.classes, rows)
        without = sorted(set(range(len(targets.classes))) - set(codes[test].tolist()))
        if without:
            names = listed([targets.classes[code] for code in without])
            warnings.append(f"the test split has no row of {names}")
    if groups is not None:
        known = [{str(groups[row]) for row in part if groups[row] is not None} for part in (train, validation, test)]
        both = sorted((known[0] | known[1]) & known[2] | known[0] & known[1])
        if both:
            warnings.append(f"{len(both):,} group(s) are in more than one of the given splits: {listed(both)}")
    return warnings


def _data(
    inputs: Any, modality: Modality, looks: Looks | None, targets: Targets, metric: str, splits: Array, folds: Array,
    rows: Rows, warnings: list[str],
) -> TargetData:  # fmt: skip
    everything = Examples(inputs, targets.values, rows.local())
    digest = hashlib.sha256(json.dumps([modality, targets.kind, targets.classes]).encode())
    parts: dict[str, Examples] = {}
    for name in ("train", "validation", "test", "unlabelled"):
        chosen = (
            ~targets.labelled & (splits == "train") if name == "unlabelled" else targets.labelled & (splits == name)
        )
        at = np.flatnonzero(chosen)
        part = everything.take(at)
        if name == "unlabelled":
            part = Examples(part.inputs, np.zeros(0, dtype=part.targets.dtype), part.rows)
        content = of_image_digests(looks.digests[row] for row in at) if looks else fingerprint(part.inputs)
        digest.update(f"{name}|{len(part)}|{content}|{fingerprint(part.targets)}|".encode())
        parts[name] = part
    digest.update(fingerprint(folds).encode())
    if len(folds):
        parts["validation"] = parts["train"]
    return TargetData(
        modality, targets.kind, metric, targets.classes, parts["train"], parts["validation"], parts["test"],
        parts["unlabelled"], digest.hexdigest(), folds, tuple(warnings),
    )  # fmt: skip
