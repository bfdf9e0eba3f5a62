"""Which columns are read, what modality they have, and their cells as inputs.

Rule for the modality, where neither the user nor the source says: images where every cell is an image or a text
that ends like an image's path; features where every cell is a number or a list of numbers; else text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ontarget.data.problems import SHOWN, Rows
from ontarget.data.read import Table, is_image, is_image_path
from ontarget.errors import nearest
from ontarget.task import Modality
from ontarget.values import Array

_URL = re.compile(r"^[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def find_column(name: str, table: Table, option: str, problems: list[str]) -> str | None:
    """``name`` if the table has it, else None and a problem with the nearest name."""
    if name in table.frame.columns:
        return name
    names = list(map(str, table.frame.columns))
    close = nearest(name, names)
    shown = ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")
    problems.append(f"{option}: {table.name} has no column '{name}'{'; ' + close if close else ''} (it has {shown})")
    return None


def choose_inputs(
    table: Table, given: Sequence[str], others: set[str], modality: Modality | None, problems: list[str]
) -> tuple[str, ...]:
    """The input columns: those given, those the source itself names, or the only reading that is possible.

    others: columns that mean something else (target, split, group).
    """
    if given and not (table.input and not set(given) <= set(table.frame.columns)):
        twice = [name for name in dict.fromkeys(given) if list(given).count(name) > 1]
        problems += [f"--input: the column '{name}' is named twice" for name in twice]
        problems += [f"--input: '{name}' is also the target, split or group" for name in given if name in others]
        return tuple(name for name in given if find_column(name, table, "--input", problems))
    if table.input:  # arrays, lists and image folders have no names that a user could have meant
        return table.input
    free = [str(name) for name in table.frame.columns if name not in others]
    if len(free) == 1:
        return (free[0],)
    if modality == "features" and free:
        return tuple(free)
    problems.append(f"--input: which columns of {table.name} are the input? It has {', '.join(free[:30]) or 'none'}")
    return ()


def infer_modality(table: Table, columns: Sequence[str]) -> Modality | None:
    """By the rule above; None where the columns fit no modality."""
    if table.modality is not None and tuple(columns) == table.input:
        return table.modality
    found = {_cell_kind(table.frame[name]) for name in columns}
    if found == {"image"} and len(columns) == 1:
        return "image"
    if found == {"number"}:
        return "features"
    return "text" if found <= {"text", "number", "empty"} and "text" in found else None


def _cell_kind(column: pd.Series) -> str:
    cells = column.dropna()
    if len(cells) == 0:
        return "empty"
    if pd.api.types.is_numeric_dtype(cells.dtype):
        return "number"
    kind = pd.api.types.infer_dtype(cells, skipna=True)
    if kind == "string":
        if all(map(is_image_path, cells)):
            return "image"
        filled = [cell for cell in cells.to_list() if cell.strip()]
        for part in (filled[:1000], filled):  # the first rows tell most texts from numbers
            if not part or pd.to_numeric(pd.Series(part, dtype=object), errors="coerce").isna().any():
                return "text"
        return "number"
    if kind in ("integer", "floating", "mixed-integer-float", "boolean", "decimal"):
        return "number"
    if all(map(is_image, cells)):
        return "image"
    if any(isinstance(cell, str) for cell in cells):
        return "text"  # the other cells are mistakes, told with their rows
    if all(isinstance(cell, (list, tuple, np.ndarray)) for cell in cells):
        return "number"
    return "other"


def inputs_of(
    table: Table, columns: Sequence[str], modality: Modality, rows: Rows, offset: int, problems: list[str]
) -> list[Any] | Array:
    """The cells of ``columns`` as inputs of a modality. What cannot be read is added to ``problems``.

    offset: position of the table's first row in ``rows``. Returns texts, pairs of texts, images (Path, bytes,
    Pillow image or uint8 array), or float32 (N, D).
    """
    if modality == "features":
        return _features(table, columns, rows, offset, problems)
    if modality == "image":
        if len(columns) != 1:
            problems.append(f"--input: images are read from one column, not {len(columns)}")
            return []
        return _images(table, columns[0], rows, offset, problems)
    if len(columns) not in (1, 2):
        problems.append(f"--input: text is read from one or two columns, not {len(columns)}")
        return []
    texts = [_texts(table.frame[name], name, rows, offset, problems) for name in columns]
    return texts[0] if len(texts) == 1 else list(zip(*texts, strict=True))


def _texts(column: pd.Series, name: str, rows: Rows, offset: int, problems: list[str]) -> list[str]:
    missing = np.flatnonzero(column.isna().to_numpy())
    if len(missing):
        problems.append(
            f"column '{name}' has no text (null) in {len(missing):,} row(s): {rows.some(missing + offset)};"
            " an empty text is accepted, an absent one is not"
        )
    kind = pd.api.types.infer_dtype(column, skipna=True)
    if kind in ("integer", "floating", "boolean", "mixed-integer-float", "decimal"):
        return [str(cell) for cell in column]
    cells = column.to_list()
    if kind != "string":
        absent = set(missing.tolist())
        odd = [row for row, cell in enumerate(cells) if not isinstance(cell, str) and row not in absent]
        if odd:
            what = type(cells[odd[0]]).__name__
            problems.append(
                f"column '{name}' holds no text but {what} in {len(odd):,} row(s): "
                f"{rows.some(row + offset for row in odd)}"
            )
    texts = [cell if isinstance(cell, str) else "" for cell in cells]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        bad = [row for row, text in enumerate(texts) if any("\ud800" <= letter <= "\udfff" for letter in text)]
        problems.append(
            f"column '{name}' holds half a character (a lone surrogate): {rows.some(row + offset for row in bad)}"
        )
    return texts


def _images(table: Table, name: str, rows: Rows, offset: int, problems: list[str]) -> list[Any]:
    images: list[Any] = []
    missing: list[int] = []
    urls: list[int] = []
    odd: list[int] = []
    for row, cell in enumerate(table.frame[name]):
        image: Any = cell
        if isinstance(cell, str):
            if _URL.match(cell):
                urls.append(row)
            if not cell.strip():
                missing.append(row)
            image = table.folder / cell
        elif isinstance(cell, Path):
            image = table.folder / cell
        elif isinstance(cell, dict) and is_image(cell):
            image = bytes(cell["bytes"]) if cell["bytes"] else table.folder / str(cell["path"])
        elif not is_image(cell):
            (missing if cell is None or cell is pd.NA or cell != cell else odd).append(row)
        images.append(image)
    for positions, what in (
        (missing, "no image"),
        (urls, "a URL, which is not fetched"),
        (odd, "no image or path"),
    ):
        if positions:
            where = rows.some(row + offset for row in positions)
            problems.append(f"column '{name}' holds {what} in {len(positions):,} row(s): {where}")
    return images


def _features(table: Table, columns: Sequence[str], rows: Rows, offset: int, problems: list[str]) -> Array:
    empty: Array = np.zeros((len(table.frame), 0), dtype=np.float32)
    parts: list[Array] = []
    for name in columns:
        column = table.frame[name]
        first = next(iter(column.dropna()), None)
        if isinstance(first, (list, tuple, np.ndarray)):
            part = _vectors(column, name, rows, offset, problems)
            if part is None:
                return empty
        else:
            numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
            part = numbers[:, None]
        with np.errstate(over="ignore"):
            part = part.astype(np.float32)
        bad = np.flatnonzero(~np.isfinite(part).all(axis=1))
        if len(bad):
            cell = column.iloc[int(bad[0])]
            shown = f" (the first is {cell!r})" if np.ndim(cell) == 0 else ""
            problems.append(
                f"column '{name}' is used as features, but {len(bad):,} row(s) hold no finite number{shown}: "
                f"{rows.some(bad + offset)}"
            )
        parts.append(part)
    if len(parts) > 1 and len(problems) > SHOWN * 2:
        del problems[SHOWN * 2 :]  # hundreds of broken columns say no more than twenty
    return np.ascontiguousarray(np.concatenate(parts, axis=1)) if parts else empty


def _vectors(column: pd.Series, name: str, rows: Rows, offset: int, problems: list[str]) -> Array | None:
    cells = column.to_list()
    sizes = [np.shape(cell) for cell in cells]
    common = max(set(sizes), key=sizes.count)
    odd = [row for row, size in enumerate(sizes) if size != common or len(size) != 1]
    if not odd:
        try:
            return np.stack([np.asarray(cell, dtype=np.float64) for cell in cells])
        except (TypeError, ValueError):
            odd = [row for row, cell in enumerate(cells) if np.asarray(cell).dtype.kind not in "biuf"]
    problems.append(
        f"column '{name}' must hold vectors of {common} numbers, but does not in: "
        f"{rows.some(row + offset for row in odd)}"
    )
    return None
