"""Numbers as safetensors files hold them, in numpy: merging needs no torch, whose import alone takes hundreds of MB."""

from __future__ import annotations

from typing import Any

import numpy as np

from ontarget.values import Array

# Name in a file -> numpy's type of the same bytes; bfloat16 is the upper half of float32.
STORED: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64, "I32": np.int32,
    "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
FLOATING = ("F64", "F32", "F16", "BF16")
NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def size_of(kind: str) -> int:
    """Bytes of a number."""
    return int(np.dtype(STORED[kind]).itemsize)


def to_float32(stored: Array, kind: str) -> Array:
    """Values of what a file holds."""
    if kind == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    values: Array = stored.astype(np.float32, copy=False)
    return values


def from_float32(values: Array, kind: str) -> Array:
    """What a file of that type holds: rounded to nearest, ties to even."""
    if kind == "BF16":
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        rounded: Array = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
        return rounded
    stored: Array = values.astype(STORED[kind], copy=False)
    return stored


def is_finite(stored: Array, kind: str) -> bool:
    """Whether all numbers are."""
    if kind == "BF16":
        return not bool(((stored & 0x7F80) == 0x7F80).any())
    return kind not in FLOATING or bool(np.isfinite(stored).all())


def magnitude_bits(values: Array, kind: str) -> Array:
    """Numbers that are ordered as |values| rounded to the type: below 2**15 for 16-bit types, 2**31 for others."""
    if kind == "BF16":
        return from_float32(values, kind) & 0x7FFF
    if kind == "F16":
        return values.astype(np.float16).view(np.uint16) & 0x7FFF
    return np.ascontiguousarray(values, dtype=np.float32).view(np.uint32) & 0x7FFFFFFF
