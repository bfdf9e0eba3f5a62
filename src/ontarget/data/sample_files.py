"""The cache of `ontarget.data.samples`: one file a data set, whole or not at all, fetched by one process at a time."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ontarget.errors import DataError
from ontarget.pool.cache import cache_folder
from ontarget.values import Array

if TYPE_CHECKING:
    import pandas as pd

Arrays = dict[str, Array]
Data = TypeVar("Data")
Shapes = Mapping[str, tuple[int | None, ...]]


def samples_folder() -> Path:
    """Where sample data is kept; it need not exist."""
    return cache_folder() / "samples"


def stored_table(name: str, build: Callable[[Path], pd.DataFrame]) -> pd.DataFrame:
    """The cached table ``name``, or ``build(empty folder to work in)``, stored."""
    import pandas as pd

    def write(path: Path, work: Path) -> None:
        build(work).to_parquet(path, index=False)

    return _stored(f"{name}.parquet", write, pd.read_parquet)


def stored_arrays(name: str, build: Callable[[Path], Arrays], shapes: Shapes) -> Arrays:
    """The cached arrays ``name``, or ``build(empty folder to work in)``, stored; shapes are checked, None is any."""

    def read(path: Path) -> Arrays:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
        for key, shape in shapes.items():
            got = arrays[key].shape
            if len(got) != len(shape) or any(want not in (None, have) for want, have in zip(shape, got)):
                raise DataError(f"sample data '{name}' has {key} of shape {got}, expected {shape}")
        return arrays

    def write(path: Path, work: Path) -> None:
        arrays: dict[str, Any] = build(work)
        with path.open("wb") as stream:
            np.savez_compressed(stream, **arrays)

    return _stored(f"{name}.npz", write, read)


def _stored(name: str, write: Callable[[Path, Path], None], read: Callable[[Path], Data]) -> Data:
    """``read(path)`` of the cached file; fetched and written first where it is missing or cannot be read."""
    path = samples_folder() / name
    with locked(name):
        if path.is_file():
            try:
                return read(path)
            except Exception:  # a file that another version or a fault of the disk left: fetched anew
                path.unlink()
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=samples_folder()) as work, replacing(path) as new:
            write(new, Path(work))
            read(new)
        return read(path)


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock ``name`` of the cache: other processes that want it wait."""
    folder = samples_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / f".{name}.lock").open("w")
    except OSError as error:
        raise DataError(
            f"sample data cannot be kept in '{folder}': {error}",
            option="ONTARGET_CACHE",
            next_step="set ONTARGET_CACHE to a folder that can be written",
        ) from error
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write a file or folder to, which then takes its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        yield new
        if path.is_dir():
            shutil.rmtree(path)
        new.replace(path)
    finally:
        if new.is_dir():
            shutil.rmtree(new)
        else:
            new.unlink(missing_ok=True)
