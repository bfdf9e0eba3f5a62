"""A cache of arrays by content: written whole or not at all, read as memory maps, safe under concurrent processes.

Location: ``$ONTARGET_CACHE`` or ``~/.cache/ontarget``. Size: ``$ONTARGET_CACHE_GB`` (20), least recently used out
first. A cache that cannot be written costs time, never results: the work goes on without it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ontarget.values import Array

DEFAULT_GB = 20.0


def cache_folder() -> Path:
    """Where the cache is; it need not exist."""
    return Path(os.environ.get("ONTARGET_CACHE") or Path.home() / ".cache" / "ontarget")


def key_of(*parts: Any) -> str:
    """Hex digest of JSON-able parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def cached_array(key: str, compute: Callable[[], Array], *, room: str = "features") -> tuple[Array, bool]:
    """The array stored under ``key`` as a read-only memory map, or ``compute()``, stored; and whether it was there.

    Two processes that want the same key: one computes, the other waits for it (and computes itself if that one
    dies). A damaged file is computed anew.
    """
    path = cache_folder() / room / key[:2] / f"{key}.npy"
    stored = _read(path)
    if stored is not None:
        return stored, True
    with _lock(path):
        stored = _read(path)
        if stored is not None:
            return stored, True
        value = np.ascontiguousarray(compute())
        if _write(path, value):
            _evict(cache_folder() / room, keep=path)
            stored = _read(path)
    return (value if stored is None else stored), False


def cached_json(key: str, compute: Callable[[], Any], *, room: str) -> tuple[Any, bool]:
    """The same for a JSON value."""
    path = cache_folder() / room / key[:2] / f"{key}.json"
    try:
        return json.loads(path.read_text()), True
    except (OSError, json.JSONDecodeError):
        value = compute()
        from ontarget.plan.run_folder import to_json

        _write_bytes(path, to_json(value))
        return json.loads(to_json(value)), False


def _read(path: Path) -> Array | None:
    try:
        value: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError):
        return None  # cut short or damaged: the memory map checks the length against the header
    try:
        os.utime(path)
    except OSError:
        pass
    return value


def _write(path: Path, value: Array) -> bool:
    import io

    if value.nbytes > 2**28:
        return _write_stream(path, value)
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=False)
    return _write_bytes(path, buffer.getbuffer())


def _write_stream(path: Path, value: Array) -> bool:
    return _write_with(path, lambda file: np.save(file, value, allow_pickle=False))


def _write_bytes(path: Path, content: Any) -> bool:
    return _write_with(path, lambda file: file.write(content))


def _write_with(path: Path, write: Callable[[Any], Any]) -> bool:
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".part-", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        return True
    except OSError as error:  # full disk, read-only folder, quota
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        warnings.warn(f"The cache {cache_folder()} cannot be written ({error}); going on without it.", stacklevel=2)
        return False


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time for a key; the kernel frees the lock of a process that dies. No folder: no lock."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_suffix(".lock"), "a+")
    except OSError:
        yield
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        lock.close()


def _evict(folder: Path, *, keep: Path) -> None:
    limit = float(os.environ.get("ONTARGET_CACHE_GB", DEFAULT_GB)) * 2**30
    entries = []
    for path in folder.glob("*/*.npy"):
        try:
            status = path.stat()
        except OSError:
            continue
        entries.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries, key=lambda entry: entry[0]):
        if total <= limit:
            break
        if path != keep:
            path.unlink(missing_ok=True)
            total -= size


def check_cache() -> dict[str, Any]:
    """A doctor's check: can the cache be written, and how much is in it?"""
    folder = cache_folder()
    writable = _write_bytes(folder / ".probe", b"probe")
    (folder / ".probe").unlink(missing_ok=True)
    size = sum(path.stat().st_size for path in folder.rglob("*.npy")) / 2**20 if folder.exists() else 0.0
    return {
        "name": "cache",
        "state": "ok" if writable else "warning",
        "detail": f"{folder}, {size:.0f} MiB of arrays",
        "next": "set ONTARGET_CACHE to a folder that can be written",
    }
