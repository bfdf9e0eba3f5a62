"""Corrected labels that a person wrote into a list of rows to check again, put in the place of the data's own.

The list is a CSV as `ontarget labels -o` writes it: the columns row (from 0, of the task's data), label (what the data
says; it must still say so) and corrected (empty where the label stands).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from ontarget.data.problems import SHOWN, listed
from ontarget.data.tables import read_file
from ontarget.errors import DataError

NEEDED = ("row", "label", "corrected")


def with_corrections(frame: pd.DataFrame, target: str, path: str | Path) -> tuple[pd.DataFrame, int]:
    """(a copy of ``frame`` with the corrected targets, how many differ). Raises DataError naming the list's rows."""
    listing = Path(path)
    if not listing.is_file():
        raise DataError(f"There is no file '{listing}'.", option="--corrections", next_step="check the path")
    table = read_file(listing)
    missing = [name for name in NEEDED if name not in table.columns]
    if missing:
        raise DataError(
            f"'{listing}' has no column {listed(missing)}.",
            allowed=", ".join(NEEDED),
            option="--corrections",
            next_step="use a list that ontarget labels wrote",
        )
    cells = frame[target].astype(object).to_numpy(copy=True)
    problems, changed = [], 0
    seen: set[int] = set()
    for line, (row, label, corrected) in enumerate(table[list(NEEDED)].itertuples(index=False)):
        wanted = "" if corrected is None else str(corrected).strip()
        if not wanted:
            continue
        place = _row(row, len(frame))
        if place is None:
            problems.append(f"line {line}: '{row}' is no row of the data (0 to {len(frame) - 1})")
        elif place in seen:
            problems.append(f"line {line}: row {place} is corrected twice")
        elif _text(cells[place]) != str(label).strip():
            problems.append(f"line {line}: row {place} is '{_text(cells[place])}' in the data, not '{label}'")
        else:
            seen.add(place)
            changed += wanted != _text(cells[place])
            cells[place] = _like(wanted, frame[target])
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise DataError(
            f"'{listing}' does not fit the data: {'; '.join(problems[:SHOWN])}{more} (lines count from 0).",
            option="--corrections",
            next_step="make the list anew with ontarget labels, from the data as it is",
        )
    return frame.assign(**{target: pd.Series(cells, index=frame.index, dtype=object)}), changed


def _row(cell: Any, rows: int) -> int | None:
    try:
        place = int(str(cell).strip())
    except ValueError:
        return None
    return place if 0 <= place < rows else None


def _text(cell: Any) -> str:
    """A target as the list shows it; nothing for an unlabelled row."""
    return "" if cell is None or (isinstance(cell, float) and cell != cell) else str(cell).strip()


def _like(text: str, column: pd.Series) -> Any:
    """A correction in the type of the column: numbers stay numbers."""
    if pd.api.types.is_bool_dtype(column):
        return text.lower() in ("true", "1", "yes")
    if pd.api.types.is_numeric_dtype(column):
        number = pd.to_numeric(text, errors="coerce")
        if pd.isna(number):
            return text  # the check of the target column will name it
        return int(number) if pd.api.types.is_integer_dtype(column) and float(number).is_integer() else float(number)
    return text
