"""Every labelled row's place: the splits that the user gave stay whole, those that are missing are made.

With few labels (`split.is_few`, after the test split is taken) nothing is held out for validation: the train rows
get folds, and validation scores are out-of-fold scores.
"""

from __future__ import annotations

import numpy as np

from ontarget.data.problems import Rows, listed, raise_all
from ontarget.data.split import hold_out, is_few, make_folds, strata_of
from ontarget.data.targets import Targets
from ontarget.errors import DataError, SettingError
from ontarget.task import Task
from ontarget.values import Array

LEAST_REGRESSION = 10  # labelled rows that a regression needs (choice)


def complete(splits: Array, targets: Targets, units: Array, task: Task, rows: Rows) -> Array:
    """Make, in place, the splits that were not given. Returns the folds of the train rows, or (0,)."""
    labelled = targets.labelled
    given = {name: bool((labelled & (splits == name)).any()) for name in ("validation", "test")}
    pool = np.flatnonzero(labelled & (splits == "train"))
    check_rows(targets, splits, pool, given, rows)
    if task.test_fraction + task.validation_fraction >= 1 and not given["test"] and not given["validation"]:
        raise SettingError(
            f"test_fraction {task.test_fraction} and validation_fraction {task.validation_fraction} leave no rows"
            " to train on.",
            allowed="fractions whose sum is below 1",
            option="test_fraction, validation_fraction",
        )
    strata = strata_of(targets.values[pool], targets.kind)
    keep = 2 if targets.kind == "classification" else 0
    validation_fraction = task.validation_fraction
    if not given["test"]:
        held = hold_out(strata, units[pool], task.test_fraction, seed=task.seed, keep=keep)
        if not held.any() or held.all():
            raise DataError(
                f"No test split can be made of {len(pool):,} labelled rows"
                f" in {len(np.unique(units[pool])):,} group(s).",
                allowed="a class with at least 3 rows, and at least 2 groups that can be parted"
                " (rows with the same input count as one group)",
                option="--group" if task.group else "data",
                next_step="label more rows, group by another column, or give a test file",
            )
        splits[pool[held]] = "test"
        pool, strata = pool[~held], strata[~held]
        validation_fraction /= 1 - task.test_fraction
    if given["validation"]:
        return np.zeros(0, dtype=np.int64)
    if not is_few(len(pool), len(targets.classes)):
        held = hold_out(strata, units[pool], min(validation_fraction, 0.9), seed=task.seed + 1, keep=keep)
        if held.any() and not held.all():
            splits[pool[held]] = "validation"
            return np.zeros(0, dtype=np.int64)
    if len(np.unique(units[pool])) < 2:
        raise DataError(
            "All train rows are one group (or the same input), so nothing can be held out for validation.",
            option="--group" if task.group else "data",
            next_step="group by another column, or give a validation file",
        )
    return make_folds(strata, units[pool], seed=task.seed)


def check_rows(targets: Targets, splits: Array, pool: Array, given: dict[str, bool], rows: Rows) -> None:
    """Raise DataError where there are too few classes, or too few rows of a class."""
    problems: list[str] = []
    if targets.kind == "regression":
        values = targets.values[pool]
        if len(pool) < LEAST_REGRESSION:
            problems.append(f"only {len(pool)} train rows have a target; a regression needs {LEAST_REGRESSION}")
        elif values.min() == values.max():
            problems.append(f"every train row has the same target, {values[0]:g}")
        raise_all(problems, rows.where, option="--target", next_step="label more rows, or check the target column")
        return
    codes = np.where(targets.labelled, targets.values, -1)
    if len(targets.classes) < 2:
        problems.append(f"the target has one class only, '{targets.classes[0]}': there is nothing to tell apart")
    sizes = np.bincount(codes[pool], minlength=len(targets.classes))
    single = np.flatnonzero(sizes == 1)
    if len(single):
        first_rows = {int(code): int(row) for row, code in zip(pool, codes[pool])}
        shown = "; ".join(f"'{targets.classes[code]}' ({rows.some([first_rows[int(code)]])})" for code in single[:10])
        more = f" and {len(single) - 10:,} more" if len(single) > 10 else ""
        problems.append(f"{len(single):,} class(es) have one train row, and 2 are the least: {shown}{more}")
    absent = np.flatnonzero(sizes == 0)
    if len(absent):
        names = [targets.classes[code] for code in absent]
        where = np.flatnonzero(np.isin(codes, absent))
        problems.append(f"the class(es) {listed(names)} occur in other splits but not in train: {rows.some(where)}")
    if not given["test"] and not problems and sizes.max() < 3:
        problems.append("no class has 3 rows, so that one could be held out for testing")
    raise_all(
        problems,
        rows.where,
        option="--target",
        next_step="label more rows, merge or drop rare classes, or check that the target column is the right one",
    )
