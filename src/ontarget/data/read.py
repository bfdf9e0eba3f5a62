"""Whatever a user brings, read as one table whose columns may hold texts, numbers, arrays, images or their paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ontarget.data.problems import raise_all
from ontarget.data.tables import check_names, frame_of_records, read_file
from ontarget.errors import DataError, nearest, require_extra

if TYPE_CHECKING:
    from ontarget.task import Modality

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "validation": "validation", "val": "validation", "valid": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
ACCEPTED = (
    "a path of a CSV, TSV, JSONL, Parquet, Arrow or .npz file or of an image folder, hub:org/name[:split], a"
    " DataFrame, a datasets.Dataset, a dict of columns, a list of dicts, or a pair (inputs, targets)"
)


@dataclass(frozen=True)
class Table:
    """A table and what its source says about its columns.

    name: for messages. folder: what relative image paths start from. input, target, split: columns that the
    source itself gives these meanings (image folders, pairs, hub data sets with splits); empty elsewhere.
    """

    frame: pd.DataFrame
    name: str
    folder: Path = Path()
    input: tuple[str, ...] = ()
    target: str = ""
    split: str | None = None
    modality: Modality | None = None
    warnings: tuple[str, ...] = ()


def read_table(source: Any) -> pd.DataFrame:
    """The rows of ``source`` as a DataFrame with the index 0..N-1.

    source: a path (str or Path), ``hub:org/name[:split]``, DataFrame, ``datasets.Dataset``, dict of columns, list
        of dicts, list or array of inputs, or a pair ``(inputs, targets)``. CSV cells stay text. An array's rows
        and images are cells of one column.
    Raises DataError naming file and row; MissingExtra for hub data without `datasets`.
    """
    return read(source).frame


def read(source: Any) -> Table:
    """`read_table` with what the source says about its columns."""
    table = _read(source)
    check_names(list(table.frame.columns), table.name)
    if len(table.frame) == 0:
        raise DataError(f"{table.name} has no rows.", next_step="check how the data was made")
    return table


def _read(source: Any) -> Table:
    if isinstance(source, (str, Path)):
        text = str(source)
        return _read_hub(text.removeprefix("hub:")) if text.startswith("hub:") else _read_path(Path(source))
    if isinstance(source, pd.DataFrame):
        return Table(source.reset_index(drop=True), "the DataFrame")
    if type(source).__module__.split(".")[0] == "datasets":
        return _from_dataset(source, "the Dataset")
    if isinstance(source, Mapping):
        return _from_columns(source)
    if isinstance(source, tuple) and len(source) == 2 and all(_is_column(part) for part in source):
        return _from_pair(*source)
    if isinstance(source, (list, tuple)) and source and all(isinstance(row, Mapping) for row in source):
        return Table(frame_of_records(list(source)), "the list of dicts")
    if _is_column(source):
        columns, modality = _inputs_as_columns(source)
        return Table(pd.DataFrame(columns), "the inputs", input=tuple(columns), modality=modality)
    raise DataError(f"Data of the type {type(source).__name__} cannot be read.", allowed=ACCEPTED, option="data")


def _is_column(value: Any) -> bool:
    if isinstance(value, (str, bytes, Mapping)):
        return False
    return isinstance(value, (Sequence, pd.Series, pd.Index)) or hasattr(value, "__array__")


# --- from disk and hub -----------------------------------------------------------------------------------


def _read_path(path: Path) -> Table:
    if path.is_dir():
        return _read_image_folder(path)
    if not path.is_file():
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(
            f"There is no file or folder '{path}'.",
            option="data",
            next_step=nearest(path.name, names) or "check the path",
        )
    frame = read_file(path)
    if path.suffix.lower() == ".npz":
        inputs, modality = _inputs_as_columns(np.stack(frame["X"].to_list()))
        frame["X"] = next(iter(inputs.values()))
        target = "y" if "y" in frame.columns else ""
        return Table(frame, str(path), path.parent, ("X",), target, modality=modality)
    return Table(frame, str(path), path.parent)


def _read_image_folder(folder: Path) -> Table:
    """``folder/class/**/*.png``, or the same below train, validation and test.

    Images outside class folders are unlabelled rows.
    """
    inner = _folders(folder)
    splits = {entry: SPLIT_NAMES[entry.name.lower()] for entry in inner if entry.name.lower() in SPLIT_NAMES}
    if "train" not in splits.values() or len(splits) < len(inner):
        splits = {}  # a class may be named "test"; only a folder of nothing but splits is read as splits
    rows: list[tuple[Path, str | None, str]] = []
    warnings: list[str] = []
    for root, split in splits.items() or [(folder, "train")]:
        rows += [(path, None, split) for path in _images(root, deep=False)]
        for class_folder in _folders(root):
            found = _images(class_folder, deep=True)
            rows += [(path, class_folder.name, split) for path in found]
            if not found:
                warnings.append(f"the class folder '{class_folder}' holds no image")
    if not rows:
        raise DataError(
            f"The folder '{folder}' holds no images.",
            allowed=f"folder/class/image or folder/train/class/image with {', '.join(IMAGE_SUFFIXES)}",
            option="data",
        )
    columns: dict[str, Any] = {"image": [row[0] for row in rows], "label": [row[1] for row in rows]}
    if splits:
        columns["split"] = [row[2] for row in rows]
    return Table(
        pd.DataFrame(columns, dtype=object), str(folder), Path(), ("image",), "label",
        "split" if splits else None, "image", tuple(warnings),
    )  # fmt: skip


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__")))


def _images(folder: Path, *, deep: bool) -> list[Path]:
    found = folder.rglob("*") if deep else folder.iterdir()
    return sorted(
        path for path in found
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )  # fmt: skip


def _read_hub(name: str) -> Table:
    require_extra("datasets", "hub", f"reading hub:{name}")
    import datasets

    name, _, split = name.partition(":")
    try:
        found = datasets.load_dataset(name, split=split or None)
    except Exception as error:  # the library raises many kinds: network, names, formats, scripts
        raise DataError(
            f"The hub data set '{name}' cannot be loaded ({type(error).__name__}: {error}).",
            option=f"hub:{name}" + (f":{split}" if split else ""),
            next_step="check the name, the split and the network, or download it and give the files",
        ) from error
    return _from_dataset(found, f"hub:{name}")


def _from_dataset(found: Any, name: str) -> Table:
    if isinstance(found, Mapping):  # a DatasetDict: its splits become a column
        parts = {key: _from_dataset(part, name).frame for key, part in found.items()}
        known = {key: frame for key, frame in parts.items() if key.lower() in SPLIT_NAMES}
        if len(known) <= 1:
            return Table(next(iter((known or parts).values())), name)
        column = "split" if all("split" not in frame.columns for frame in known.values()) else "__split__"
        frames = [frame.assign(**{column: key}) for key, frame in known.items()]
        skipped = [key for key in parts if key not in known]
        warnings = (f"{name}: the splits {', '.join(skipped)} are left out",) if skipped else ()
        return Table(pd.concat(frames, ignore_index=True), name, split=column, warnings=warnings)
    import datasets

    for key, feature in found.features.items():  # the bytes as stored: nothing is decoded before it is needed
        if type(feature).__name__ == "Image":
            found = found.cast_column(key, datasets.Image(decode=False))
    frame = found.with_format("arrow")[:].to_pandas(integer_object_nulls=True, ignore_metadata=True)
    for key, feature in found.features.items():
        if type(feature).__name__ == "ClassLabel":
            # -1 marks rows without a label, as in the test splits of many benchmarks.
            named = [None if code is None or code < 0 else feature.names[int(code)] for code in frame[key]]
            frame[key] = pd.Series(named, dtype=object)
    return Table(frame, name)


# --- from memory -----------------------------------------------------------------------------------------


def _from_columns(columns: Mapping[Any, Any]) -> Table:
    sizes = {name: len(column) for name, column in columns.items() if _is_column(column)}
    bad = [name for name in columns if name not in sizes]
    if bad or len(set(sizes.values())) > 1:
        raise DataError(
            f"{bad} are no columns." if bad else f"The columns do not have the same length: {sizes}.",
            allowed="a dict of columns of equal length",
            option="data",
        )
    return Table(pd.DataFrame({name: _cells(column) for name, column in columns.items()}), "the dict of columns")


def _from_pair(inputs: Any, targets: Any) -> Table:
    problems = []
    if getattr(targets, "ndim", 1) != 1:
        problems.append(f"The targets have the shape {tuple(targets.shape)}, not (N,).")
    elif len(inputs) != len(targets):
        problems.append(f"The pair has {len(inputs)} inputs and {len(targets)} targets.")
    raise_all(problems, option="data", allowed="a pair (inputs, targets) of equal length")
    columns, modality = _inputs_as_columns(inputs)
    frame = pd.DataFrame({**columns, "target": _cells(targets)})
    return Table(frame, "the pair (inputs, targets)", input=tuple(columns), target="target", modality=modality)


def _cells(column: Any) -> pd.Series:
    """A list's cells stay as they are (1 stays 1 beside None); a 1-D array brings its dtype."""
    if isinstance(column, pd.Series):
        return column.reset_index(drop=True)
    if hasattr(column, "__array__") and np.asarray(column).ndim == 1:
        return pd.Series(np.asarray(column))
    return pd.Series(list(column), dtype=object)


def _inputs_as_columns(inputs: Any) -> tuple[dict[str, Any], Modality | None]:
    """Columns for inputs without names, and the modality if it can be told."""
    if hasattr(inputs, "__array__") and not isinstance(inputs, (pd.Series, pd.Index)):
        array = np.asarray(inputs)
        if array.dtype == np.uint8 and (array.ndim == 3 or (array.ndim == 4 and array.shape[3] in (1, 3, 4))):
            return {"image": _cells(list(array))}, "image"
        if array.dtype.kind in "biuf" and array.ndim == 2:
            return {"features": _cells(list(array))}, "features"
        if array.dtype.kind not in "OUT" or array.ndim > 2:
            raise DataError(
                f"An array of {array.dtype} with the shape {array.shape} cannot be read as inputs.",
                allowed="numbers (N, D) as features; uint8 (N, H, W) or (N, H, W, 3) as images; N texts",
                option="data",
            )
        inputs = array.tolist()
    cells = list(inputs)
    first = next((cell for cell in cells if cell is not None), None)
    if _is_text_pair(first):
        odd = [row for row, cell in enumerate(cells) if not _is_text_pair(cell)]
        if odd:
            raise DataError(
                f"The inputs are pairs of texts, but row {odd[0]} is {cells[odd[0]]!r}.", option="data"
            )  # fmt: skip
        return {name: _cells([cell[at] for cell in cells]) for at, name in enumerate(("first", "second"))}, "text"
    column = _cells(cells)
    if isinstance(first, str):
        paths = all(isinstance(cell, str) and is_image_path(cell) for cell in cells)
        return ({"image": column}, "image") if paths else ({"text": column}, "text")
    if is_image(first):
        return {"image": column}, "image"
    if isinstance(first, (list, tuple, np.ndarray)):
        return {"features": column}, "features"
    return {"input": column}, None


def _is_text_pair(cell: Any) -> bool:
    return isinstance(cell, (tuple, list)) and len(cell) == 2 and all(isinstance(part, str) for part in cell)


def is_image_path(cell: str) -> bool:
    """Whether a text looks like the path of an image: by its suffix alone."""
    return cell.lower().endswith(IMAGE_SUFFIXES)


def is_image(cell: Any) -> bool:
    """Whether a cell holds an image or says where one is, by its type: Path, bytes, Pillow, uint8 array, hub."""
    if isinstance(cell, (Path, bytes, bytearray)):
        return True
    if isinstance(cell, Mapping):
        return "bytes" in cell and "path" in cell
    if isinstance(cell, np.ndarray):
        return cell.dtype == np.uint8 and cell.ndim in (2, 3)
    return hasattr(cell, "tobytes") and hasattr(cell, "convert") and hasattr(cell, "mode")
