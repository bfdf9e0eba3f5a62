"""Safetensors files read and written range by range: memory stays with what is asked for.

The library maps files, so that what was read counts as memory of the process, and writes only what is in memory as a
whole. Format: github.com/huggingface/safetensors. Every header is checked before a tensor is read.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ontarget.errors import DataError, RunError
from ontarget.merge.number_types import STORED, size_of
from ontarget.values import Array

MOST_HEADER = 100_000_000  # bytes, the library's own limit


@dataclass(frozen=True)
class Entry:
    """A tensor of a file. kind: "F32", "BF16", ... begin: of its bytes, counted from the file's start."""

    kind: str
    shape: tuple[int, ...]
    begin: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


class SafetensorsReader:
    """name -> `Entry`, and ``read``. Raises DataError for a file that is damaged, cut off, or no safetensors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open(path, "rb", buffering=0)
        except OSError as error:
            raise DataError(f"'{path}' cannot be read ({error.strerror}).", next_step="check the path") from error
        self.entries, self.metadata = self._header()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Elements ``start`` to ``stop`` of a tensor's flat form, as they are stored (bfloat16 as uint16)."""
        entry = self.entries[name]
        stop = entry.numel if stop is None else stop
        found: Array = np.empty(stop - start, dtype=STORED[entry.kind])
        view, size = found.view(np.uint8).data, size_of(entry.kind)
        self._file.seek(entry.begin + start * size)
        while len(view):
            got = self._file.readinto(view)
            if not got:
                raise DataError(f"'{self.path}' ends within tensor '{name}'.", next_step="fetch the file again")
            view = view[got:]
        return found

    def close(self) -> None:
        self._file.close()

    def _header(self) -> tuple[dict[str, Entry], dict[str, str]]:
        size = os.fstat(self._file.fileno()).st_size
        length = int.from_bytes(self._file.read(8), "little")
        if size < 8 or not 2 <= length <= min(MOST_HEADER, size - 8):
            raise self._damaged("its header does not fit into it")
        try:
            header: Any = json.loads(self._file.read(length))
            metadata = header.pop("__metadata__", None) or {}
            spans, entries = [], {}
            for name, told in header.items():
                (begin, end), shape = told["data_offsets"], tuple(told["shape"])
                if told["dtype"] not in STORED:
                    raise self._damaged(f"tensor '{name}' is of type {told['dtype']}, which is not read here")
                if not all(isinstance(value, int) and value >= 0 for value in (begin, end, *shape)):
                    raise self._damaged(f"tensor '{name}' has a place or shape that is no number")
                entries[name] = Entry(told["dtype"], shape, 8 + length + begin)
                if end - begin != entries[name].numel * size_of(entries[name].kind):
                    raise self._damaged(f"tensor '{name}' does not have the bytes of its shape")
                spans.append((begin, end))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged("its header cannot be read") from error
        at = 0
        for begin, end in sorted(spans):
            if begin != at:
                raise self._damaged("its tensors overlap or leave gaps")
            at = end
        if 8 + length + at != size:
            raise self._damaged(f"it should have {8 + length + at:,} bytes and has {size:,}")
        return entries, dict(metadata)

    def _damaged(self, reason: str) -> DataError:
        return DataError(
            f"'{self.path}' is cut off, damaged, or no safetensors file: {reason}.", next_step="fetch the file again"
        )


class SafetensorsWriter:
    """A file of tensors whose names, types and shapes are known before; it appears under its name when it is whole."""

    def __init__(
        self, path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
    ) -> None:
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        at = 0
        # Large types first, as the library does: every tensor then begins at a multiple of its type's size.
        for name in sorted(tensors, key=lambda name: (-size_of(tensors[name][0]), name)):
            kind, shape = tensors[name]
            end = at + math.prod(shape) * size_of(kind)
            header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, end]}
            at = end
        content = json.dumps(header, separators=(",", ":")).encode()
        content += b" " * (-len(content) % 8)
        begin = 8 + len(content)
        self.path, self.partial = path, path.with_name(path.name + ".partial")
        self.entries = {
            name: Entry(tensors[name][0], tensors[name][1], begin + header[name]["data_offsets"][0]) for name in tensors
        }
        self._file = open(self.partial, "wb", buffering=0)
        try:
            self._file.write(len(content).to_bytes(8, "little") + content)
            self._file.truncate(begin + at)
        except OSError as error:
            self.__exit__(type(error), error, None)
            raise RunError(f"'{path}' cannot be written ({error.strerror}).", next_step="make room for it") from error

    def write(self, name: str, start: int, stored: Array) -> None:
        """Write a flat part of a tensor, as it is stored, from element ``start`` on."""
        entry = self.entries[name]
        assert stored.dtype == STORED[entry.kind], (name, stored.dtype)
        view = np.ascontiguousarray(stored).view(np.uint8).data
        self._file.seek(entry.begin + start * size_of(entry.kind))
        while len(view):
            view = view[self._file.write(view) :]

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            os.fsync(self._file.fileno())
        self._file.close()
        if kind is None:
            os.replace(self.partial, self.path)
        else:
            self.partial.unlink(missing_ok=True)
