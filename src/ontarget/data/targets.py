"""The target column: what kind of task it makes, which rows are unlabelled, and its values as numbers.

Rule for the kind, where the user does not say: texts and booleans are classes. Numbers are classes if all of
them are whole and there are at most 20 different ones, each of which occurs twice on average, or two at most
(choice); else the task is a regression.
An absent or empty cell makes an unlabelled row. The words nan and inf, and infinite numbers, are mistakes.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from ontarget.data.problems import Rows, listed
from ontarget.task import LabelKind
from ontarget.values import Array

MAX_NUMBER_CLASSES = 20
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
_CODE = re.compile(r"[+-]?0\d")  # "007" is a name


@dataclass(frozen=True)
class Targets:
    """kind and classes (sorted by `natural_key`); values: (N,) int64 class indices or float64; labelled: (N,)."""

    kind: LabelKind
    classes: tuple[str, ...]
    values: Array
    labelled: Array
    warnings: list[str] = field(default_factory=list)


def natural_key(name: str) -> tuple[Any, ...]:
    """Sorts numbers by value and "class10" behind "class9"."""
    if _NUMBER.fullmatch(name):
        return (0, float(name), name)
    return (
        1,
        [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name)],
        name,
    )


def encode_targets(column: pd.Series, name: str, kind: LabelKind | None, rows: Rows, problems: list[str]) -> Targets:
    """Values of the target column ``name``; mistakes are added to ``problems``, with their rows."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    cells = np.empty(len(column), dtype=object)
    cells[:] = column.to_list()
    labelled = column.notna().to_numpy() & np.array([not (isinstance(c, str) and not c.strip()) for c in cells])
    known = np.flatnonzero(labelled)
    nothing = Targets(kind or "classification", (), np.zeros(len(cells), np.int64), labelled)
    if not len(known):
        problems.append(f"every row's target '{name}' is empty; at least some rows need one")
        return nothing
    values = cells[known]
    found = pd.api.types.infer_dtype(values, skipna=False)
    before = len(problems)
    numbers: Array | None = None
    if found == "string":
        numbers = _numbers_of_texts(values, known, name, kind, rows, problems)
    elif found in ("integer", "floating", "mixed-integer-float", "decimal"):
        numbers = values.astype(np.float64)
        bad = known[~np.isfinite(numbers)]
        if len(bad):
            problems.append(f"target '{name}' is infinite in {len(bad):,} row(s): {rows.some(bad)}")
    elif found == "boolean":
        numbers = values.astype(np.float64) if kind == "regression" else None
    else:
        problems.append(_mixed(values, known, name, rows))
    if len(problems) > before:
        return nothing
    warnings: list[str] = []
    if kind is None:
        kind = "classification" if numbers is None or _are_classes(numbers) else "regression"
        if kind == "regression" and numbers is not None and (numbers == np.round(numbers)).all():
            warnings.append(
                f"target '{name}' has {len(np.unique(numbers)):,} different whole numbers and is read as a"
                " regression; set kind to classification if they are classes"
            )
    if kind == "regression":
        if numbers is None:
            problems.append(f"target '{name}' holds texts (such as {values[0]!r}), which no regression can predict")
            return nothing
        regression = np.full(len(cells), np.nan)
        regression[known] = numbers
        return Targets("regression", (), regression, labelled, warnings)
    whole = numbers is not None and bool((numbers == np.round(numbers)).all())
    labels = [str(int(value)) for value in numbers] if whole and numbers is not None else [str(v) for v in values]
    classes = tuple(sorted(set(labels), key=natural_key))
    index = {label: position for position, label in enumerate(classes)}
    codes = np.full(len(cells), -1, dtype=np.int64)
    codes[known] = [index[label] for label in labels]
    return Targets("classification", classes, codes, labelled, warnings + _look_alikes(classes))


def _are_classes(numbers: Array) -> bool:
    different = len(np.unique(numbers))
    whole = bool((numbers == np.round(numbers)).all())
    return whole and different <= MAX_NUMBER_CLASSES and (different <= 2 or 2 * different <= len(numbers))


def _numbers_of_texts(
    values: Array, known: Array, name: str, kind: LabelKind | None, rows: Rows, problems: list[str]
) -> Array | None:
    """The numbers that the texts write, or None where they are names."""
    texts = [value.strip() for value in values]
    is_number = np.array([_NUMBER.fullmatch(text) is not None for text in texts])
    no_number = known[~is_number]
    not_finite = np.array([_NOT_FINITE.fullmatch(text) is not None for text in texts])
    if kind != "classification" and not_finite.any() and (is_number | not_finite).all():
        bad = known[not_finite]
        problems.append(f"target '{name}' is written nan or inf in {len(bad):,} row(s): {rows.some(bad)}")
        return None
    if not is_number.any() and kind != "regression":
        return None
    if len(no_number):
        if kind == "classification":
            return None  # the user says that they are names, whatever they look like
        shown = listed(list(dict.fromkeys(str(value) for value in values[~is_number])))
        if kind == "regression":
            problems.append(
                f"target '{name}' holds texts that are no numbers ({shown}) in {len(no_number):,} row(s): "
                f"{rows.some(no_number)}"
            )
        else:
            fewer = no_number if len(no_number) <= len(known) / 2 else known[is_number]
            problems.append(
                f"target '{name}' mixes {int(is_number.sum()):,} numbers with {len(no_number):,} other texts"
                f" ({shown}); "
                f"the fewer are in: {rows.some(fewer)}; set kind to classification if all are class names"
            )
        return None
    if kind != "regression" and any(_CODE.match(text) for text in texts):
        return None
    return np.array([float(text) for text in texts])


def _mixed(values: Array, known: Array, name: str, rows: Rows) -> str:
    kinds = np.array([_type_name(value) for value in values])
    counts = Counter(kinds.tolist()).most_common()
    if len(counts) == 1:
        return f"target '{name}' holds values of the type {counts[0][0]}, which are neither classes nor numbers"
    rare = known[kinds != counts[0][0]]
    shown = ", ".join(f"{count:,} {kind}" for kind, count in counts)
    return f"target '{name}' mixes types ({shown}); not {counts[0][0]}: {rows.some(rare)}"


def _type_name(value: Any) -> str:
    for kind, types in (("text", str), ("boolean", (bool, np.bool_)), ("number", (int, float, np.number))):
        if isinstance(value, types):  # type: ignore[arg-type]
            return kind
    return type(value).__name__


def _look_alikes(classes: tuple[str, ...]) -> list[str]:
    seen: dict[str, str] = {}
    warnings = []
    for name in classes:
        plain = " ".join(name.lower().split())
        if plain in seen:
            warnings.append(f"the classes '{seen[plain]}' and '{name}' differ only in case or spaces")
        seen.setdefault(plain, name)
    doubtful = [name for name in classes if _NOT_FINITE.fullmatch(name) or name.lower() in ("none", "null", "n/a")]
    return warnings + [f"'{name}' is read as a class, not as an empty target" for name in doubtful]
