"""Mistakes in the user's data, collected so that one error tells all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ontarget.errors import DataError

SHOWN = 10  # rows, files or classes that one message lists


@dataclass(frozen=True)
class Rows:
    """Names rows of one or more tables that were put below each other.

    names: one a table, e.g. "reviews.csv". sizes: rows of each. Positions count from 0 within each table.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    @property
    def where(self) -> str:
        """All tables' names, for messages."""
        return ", ".join(self.names)

    def origin(self, position: int) -> tuple[str, int]:
        """Table and row within it."""
        for name, size in zip(self.names, self.sizes, strict=True):
            if position < size:
                return name, position
            position -= size
        raise IndexError(position)

    def local(self) -> Any:
        """(N,) int64: every row's position within its own table."""
        return np.concatenate([np.arange(size, dtype=np.int64) for size in self.sizes])

    def some(self, positions: Iterable[int]) -> str:
        """``"row 3, 7 and 4 more"``; with more than one table, ``"row 3, 7 of train.csv; row 0 of test.csv"``."""
        positions = [int(position) for position in positions]
        by_table: dict[str, list[int]] = {}
        for position in positions[:SHOWN]:
            name, row = self.origin(position)
            by_table.setdefault(name, []).append(row)
        parts = [
            f"row {', '.join(map(str, rows))}" + (f" of {name}" if len(self.names) > 1 else "")
            for name, rows in by_table.items()
        ]
        more = len(positions) - SHOWN
        return "; ".join(parts) + (f" and {more:,} more" if more > 0 else "")


def listed(names: Sequence[Any]) -> str:
    """The first names in quotes, and how many more there are."""
    text = ", ".join(f"'{name}'" for name in names[:SHOWN])
    return text + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")


def raise_all(
    problems: Sequence[str], where: str = "", *, option: str = "", next_step: str = "", allowed: str = ""
) -> None:
    """Raise one DataError with all problems; nothing where there are none. where: the file or files."""
    if not problems:
        return
    if len(problems) == 1:
        given = f"{where}: {problems[0]}" if where else problems[0]
    else:
        given = f"{where or 'The data'} has {len(problems)} problems:\n"
        given += "\n".join(f"  - {text}" for text in problems)
    raise DataError(given, allowed=allowed, option=option, next_step=next_step or "mend the data (rows count from 0)")
