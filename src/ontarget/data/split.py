"""Which rows train, validate and test: read from the data, or made.

Made splits keep the share of every class within one row, never part a unit (rows of one group, and rows with the
same input), and depend on the data and the seed alone.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ontarget.data.problems import Rows, listed
from ontarget.data.read import SPLIT_NAMES
from ontarget.values import Array

FEW_ROWS = 300  # labelled rows; with fewer, or fewer than FEW_PER_CLASS a class, nothing is held out (choice)
FEW_PER_CLASS = 40
FOLDS = 5


def is_few(rows: int, classes: int) -> bool:
    """Whether ``rows`` labelled rows are too few to hold out a validation split. classes: 0 for regression."""
    return rows < max(FEW_PER_CLASS * classes, FEW_ROWS)


def read_splits(column: pd.Series, name: str, labelled: Array, rows: Rows, offset: int, problems: list[str]) -> Array:
    """(N,) "train" | "validation" | "test" from a split column; val, valid and dev mean validation.

    An empty cell is a mistake, but for an unlabelled row (labelled: (N,) bool), which then belongs to train.
    """
    cells = ["" if cell is None or cell != cell or cell is pd.NA else str(cell).strip() for cell in column]
    splits = np.array([SPLIT_NAMES.get(cell.lower(), "") for cell in cells], dtype=object)
    unknown = np.array([not split for split in splits]) & (labelled | np.array([bool(cell) for cell in cells]))
    if unknown.any():
        bad = np.flatnonzero(unknown)
        found = list(dict.fromkeys(cells[row] for row in bad))
        problems.append(
            f"the split column '{name}' holds {listed(found)} in {len(bad):,} row(s): {rows.some(bad + offset)};"
            " allowed are train, validation (val, valid, dev) and test"
        )
    splits[splits == ""] = "train"
    if not (splits == "train").any():
        problems.append(f"the split column '{name}' has no train rows")
    return splits


def units_of(codes: Array, groups: Sequence[Any] | None) -> Array:
    """(N,) int64: rows that must stay together have the same number.

    codes: (N,) int64, equal for rows with the same input. groups: N values or None; rows without a group (None, NaN,
    empty) stand alone. Two groups that share an input stay together too.
    """
    if groups is None:
        return np.unique(codes, return_inverse=True)[1].astype(np.int64)
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    named = pd.Series(list(groups), dtype=object)
    absent = named.isna() | (named.astype(str).str.strip() == "")
    group_codes = pd.factorize(named.where(~absent).astype(str))[0].astype(np.int64)
    first_free = group_codes.max(initial=-1) + 1
    group_codes[absent] = first_free + np.arange(int(absent.sum()))
    inputs = np.unique(codes, return_inverse=True)[1] + (group_codes.max(initial=-1) + 1)
    size = int(inputs.max(initial=-1)) + 1
    edges = coo_matrix((np.ones(len(codes), dtype=np.int8), (group_codes, inputs)), shape=(size, size))
    units: Array = connected_components(edges, directed=False)[1][group_codes].astype(np.int64)
    return units


def strata_of(values: Array, kind: str) -> Array:
    """(N,) int64: class indices, or for regression the tenth of the order that a value lies in (choice)."""
    if kind == "classification":
        return values.astype(np.int64)
    bins = max(1, min(10, len(values) // 10))
    strata = np.empty(len(values), dtype=np.int64)
    strata[np.argsort(values, kind="stable")] = np.arange(len(values)) * bins // max(1, len(values))
    return strata


def hold_out(strata: Array, units: Array, fraction: float, *, seed: int, keep: int = 2) -> Array:
    """(N,) bool: about ``fraction`` of the rows, the same share of every stratum, whole units only.

    Where units are single rows, a stratum of n rows gives fraction * n, rounded up or down; with ``keep`` > 0 it gives
    at least one, and always keeps ``keep`` rows. All False if no unit can be held out.
    """
    rng = np.random.default_rng(seed)
    sizes = np.bincount(strata)
    wanted = _wanted(sizes, fraction, keep).tolist()
    room = np.maximum(sizes - keep, 0).tolist()
    held_rows = np.zeros(len(strata), dtype=bool)
    held = [0] * len(sizes)
    members = _members(units)
    alone = np.array([len(rows) == 1 for rows in members], dtype=bool)
    first = strata[[rows[0] for rows in members]].tolist()
    parts = {int(unit): Counter(strata[members[unit]].tolist()) for unit in np.flatnonzero(~alone)}
    for unit in rng.permutation(len(members)).tolist():
        part = parts.get(unit, {first[unit]: 1})
        # Hold it if that brings the counts nearer to those wanted (squared distance).
        gain = 0
        for stratum, count in part.items():
            gain += count * (2 * (wanted[stratum] - held[stratum]) - count)
            if held[stratum] + count > room[stratum]:
                gain = 0
                break
        if gain > 0:
            held_rows[members[unit]] = True
            for stratum, count in part.items():
                held[stratum] += count
    if not held_rows.any() and len(members) > 1:
        fitting = [unit for unit, part in parts.items() if all(count <= room[s] for s, count in part.items())]
        if fitting:  # every unit is larger than the share: the smallest does least harm
            held_rows[members[min(fitting, key=lambda unit: (len(members[unit]), unit))]] = True
    return held_rows


def _wanted(sizes: Array, fraction: float, keep: int) -> Array:
    """Rows of each stratum: shares rounded so that their sum is right too (largest remainder)."""
    exact = sizes * fraction
    wanted = np.floor(exact).astype(np.int64)
    missing = round(float(exact.sum())) - int(wanted.sum())
    wanted[np.argsort(wanted - exact, kind="stable")[: max(0, missing)]] += 1
    if keep:
        wanted = np.minimum(np.maximum(wanted, 1), np.maximum(sizes - keep, 0))
    return np.minimum(wanted, sizes)


def make_folds(strata: Array, units: Array, *, seed: int, most: int = FOLDS) -> Array:
    """(N,) int64 folds 0..K-1, stratified, whole units only; K = ``most`` or the units of the smallest stratum, >= 2.

    Where units are single rows, the folds' counts of every stratum differ by one at most.
    """
    rng = np.random.default_rng(seed)
    members = _members(units)
    parts = [Counter(strata[rows].tolist()) for rows in members]
    per_stratum = Counter(stratum for part in parts for stratum in part)
    count = max(2, min(most, min(per_stratum.values())))
    folds = np.zeros(len(strata), dtype=np.int64)
    filled: list[Counter[int]] = [Counter() for _ in range(count)]
    totals = [0] * count
    order = rng.permutation(len(members)).tolist()
    # Large ones first, while there is room to even out; then class by class, which evens out the totals.
    for unit in sorted(order, key=lambda unit: (-len(members[unit]), strata[members[unit][0]])):
        part = parts[unit]
        fold = min(range(count), key=lambda at: (sum(filled[at][s] * n for s, n in part.items()), totals[at], at))
        folds[members[unit]] = fold
        filled[fold].update(part)
        totals[fold] += len(members[unit])
    return folds


def _members(units: Array) -> list[Array]:
    """Rows of each unit."""
    order = np.argsort(units, kind="stable")
    edges = [0, *(np.flatnonzero(np.diff(units[order])) + 1).tolist(), len(order)]
    return [order[start:stop] for start, stop in itertools.pairwise(edges) if stop > start]
