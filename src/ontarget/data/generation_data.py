"""From a generation task to its data: prompts with reference answers, checked, split, fingerprinted.

A reference cell is a text, or a list of texts of which each is right. Rows without a reference take part where a
checker judges; else they are mistakes. Nothing is inferred about the metric but this: exact_match where half of the
references have at most SHORT words, else rouge_l; checker where one is given.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ontarget.data.check import contents_of, warn_of_leaks
from ontarget.data.columns import choose_inputs, find_column, inputs_of
from ontarget.data.problems import Rows, raise_all
from ontarget.data.read import Table, read
from ontarget.data.split import hold_out, read_splits, units_of
from ontarget.errors import DataError, SettingError
from ontarget.task import GENERATION_METRICS, Task
from ontarget.values import Array, GenerationData, Prompts

SHORT = 6  # words of a reference that can be asked for word by word (choice)
LEAST_ROWS = 8  # of each of train, validation and test (choice): fewer can tell nothing apart


def load_generation(task: Task) -> GenerationData:
    """Read the task's prompts and references, check and split them.

    Raises DataError with all mistakes that were found, naming files, columns and rows (from 0); SettingError.
    """
    _check_settings(task)
    problems: list[str] = []
    extra = [(name, source) for name, source in (("validation", task.validation), ("test", task.test))
             if source is not None]  # fmt: skip
    tables = [read(task.data), *(read(source) for _, source in extra)]
    if extra and task.split:
        raise SettingError("The splits are given twice: by a column and by files.", option="split",
                           next_step="leave one of them out")  # fmt: skip
    rows = Rows(tuple(table.name for table in tables), tuple(len(table.frame) for table in tables))
    prompts: list[str] = []
    references: list[tuple[str, ...]] = []
    splits = np.full(sum(len(table.frame) for table in tables), "train", dtype=object)
    for at, table in enumerate(tables):
        start = len(prompts)
        column, target = _columns(table, task, problems)
        raise_all(problems, option="task", next_step="correct the names of the columns")
        texts = inputs_of(table, column, "text", rows, start, problems)
        prompts += [as_prompt(text) for text in texts]
        references += _references(table, target, task, rows, start, problems)
        stop = start + len(table.frame)
        if at:
            splits[start:stop] = extra[at - 1][0]
        elif (name := task.split or (None if extra else table.split)) and find_column(name, table, "--split", problems):
            everything = np.ones(len(table.frame), dtype=bool)
            splits[:stop] = read_splits(table.frame[name], name, everything, rows, 0, problems)
    empty = [row for row, prompt in enumerate(prompts) if not prompt.strip()]
    if empty:
        problems.append(f"{len(empty):,} row(s) have an empty prompt: {rows.some(empty)}")
    raise_all(problems, rows.where)
    contents = contents_of(prompts, "text")
    groups = None
    if task.group is not None:
        if not find_column(task.group, tables[0], "--group", problems):
            raise_all(problems, rows.where)
        groups = [cell for table in tables for cell in table.frame.get(task.group, [None] * len(table.frame))]
    _complete(splits, units_of(contents.codes, groups), task)
    warnings = [text for table in tables for text in table.warnings]
    places = {name: np.flatnonzero(splits == name) for name in ("train", "validation", "test")}
    seen = np.concatenate([places["train"], places["validation"]])
    warnings += warn_of_leaks(contents, seen, places["test"], ("train or validation", "test"), rows)
    warnings += warn_of_leaks(contents, places["train"], places["validation"], ("train", "validation"), rows)
    whole = Prompts(tuple(prompts), tuple(references), rows.local())
    metric = _metric(task, references, warnings)
    parts = {name: whole.take(at) for name, at in places.items()}
    return GenerationData(
        metric, parts["train"], parts["validation"], parts["test"], _fingerprint(parts, task), task.checker or "",
        task.instruction, task.max_new_tokens, tuple(warnings),
    )  # fmt: skip


def as_prompt(text: str | tuple[str, str]) -> str:
    """One text of a row's: two columns stand in lines of their own."""
    return text if isinstance(text, str) else "\n".join(text)


def generation_summary(data: GenerationData) -> dict[str, Any]:
    """What the data is, as a run folder keeps it."""
    sizes = {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)}
    return {"kind": "generation", "metric": data.metric, "rows": sizes, "warnings": list(data.warnings),
            "fingerprint": data.fingerprint}  # fmt: skip


def _check_settings(task: Task) -> None:
    if task.kind not in (None, "generation"):
        raise SettingError(f"The kind {task.kind} does not fit a checker or a metric of generated text.",
                           option="--kind", next_step="set the kind to generation, or leave it out")  # fmt: skip
    if task.modality not in (None, "text"):
        raise SettingError(f"Generation of {task.modality} is not possible.", allowed="text", option="--modality")
    if task.metric is not None and task.metric not in GENERATION_METRICS:
        raise SettingError(f"The metric {task.metric} does not fit a generation.", option="--metric",
                           allowed=", ".join(GENERATION_METRICS))  # fmt: skip
    if task.metric == "checker" and task.checker is None:
        raise SettingError("The metric is checker, and there is none.", option="--checker",
                           next_step="give a Python file with check(prompt, answer, references)")  # fmt: skip
    if task.corrections is not None:
        raise SettingError("Corrections are for labels, not for texts.", option="--corrections")
    if task.checker is not None and not Path(task.checker).is_file():
        raise DataError(f"There is no file '{task.checker}'.", option="--checker", next_step="check the path")


def _columns(table: Table, task: Task, problems: list[str]) -> tuple[tuple[str, ...], str]:
    target = task.target or table.target
    if target:
        find_column(target, table, "--target", problems)
    elif task.checker is None or task.metric not in (None, "checker"):
        names = ", ".join(map(str, table.frame.columns[:30]))
        problems.append(f"--target: which column of {table.name} holds the reference answers? It has {names}")
    others = {name for name in (target, task.split, task.group) if name}
    return choose_inputs(table, task.input, others, "text", problems), target


def _references(
    table: Table, target: str, task: Task, rows: Rows, offset: int, problems: list[str]
) -> list[tuple[str, ...]]:
    if not target:
        return [()] * len(table.frame)
    found: list[tuple[str, ...]] = []
    odd, missing = [], []
    for row, cell in enumerate(table.frame[target]):
        if isinstance(cell, list | tuple | np.ndarray):
            answers = [str(one) for one in cell if isinstance(one, str) or _is_number(one)]
            if len(answers) < len(cell):
                odd.append(row + offset)
        elif isinstance(cell, str):
            answers = [cell] if cell.strip() else []
        elif cell is None or cell is pd.NA or cell != cell:
            answers = []
        elif _is_number(cell) or isinstance(cell, bool | np.bool_):
            answers = [str(cell)]
        else:
            answers = []
            odd.append(row + offset)
        if not answers:
            missing.append(row + offset)
        found.append(tuple(answers))
    if odd:
        problems.append(f"--target: '{target}' holds neither texts nor lists of texts in {rows.some(odd)}")
    elif missing and (task.checker is None or task.metric not in (None, "checker")):
        problems.append(f"--target: '{target}' has no answer in {len(missing):,} row(s): {rows.some(missing)}")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _complete(splits: Array, units: Array, task: Task) -> None:
    """Make the splits that were not given, whole units only."""
    made = (("test", task.test_fraction, task.seed), ("validation", task.validation_fraction, task.seed + 1))
    share = 1.0
    for name, fraction, seed in made:
        if not (splits == name).any():
            pool = np.flatnonzero(splits == "train")
            strata = np.zeros(len(pool), dtype=np.int64)
            held = hold_out(strata, units[pool], min(0.9, fraction / share), seed=seed, keep=0)
            splits[pool[held]] = name
            share -= fraction if name == "test" else 0.0
    for name in ("train", "validation", "test"):
        count = int((splits == name).sum())
        if count < LEAST_ROWS:
            raise DataError(f"There are {count} {name} rows.", allowed=f"at least {LEAST_ROWS} of each split",
                            option="data", next_step="bring more rows, or other fractions of the splits")  # fmt: skip


def _metric(task: Task, references: Sequence[tuple[str, ...]], warnings: list[str]) -> str:
    if task.metric is not None:
        return task.metric
    if task.checker is not None:
        return "checker"
    words = [len(answers[0].split()) for answers in references if answers]
    metric = "exact_match" if np.median(words) <= SHORT else "rouge_l"
    warnings.append(f"the metric is {metric}, by the length of the references; set metric to choose another")
    return metric


def _fingerprint(parts: dict[str, Prompts], task: Task) -> str:
    digest = hashlib.sha256(json.dumps(["generation", task.instruction, task.max_new_tokens]).encode())
    for name, part in parts.items():
        digest.update(json.dumps([name, part.prompts, part.references]).encode())
    if task.checker is not None:
        digest.update(Path(task.checker).read_bytes())
    return digest.hexdigest()
