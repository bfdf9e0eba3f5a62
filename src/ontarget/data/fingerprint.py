"""Hex digests of content: the same for the same rows, whatever the files are called or where they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ontarget.values import Array

_CHUNK = 1 << 22


def fingerprint(inputs: Sequence[Any] | Array, *, modality: str | None = None) -> str:
    """SHA-256 of all inputs in their order, as 64 hex digits.

    inputs: texts, pairs of texts, images (Path, bytes, Pillow image, uint8 array), or an array of numbers (features
        (N, D), targets (N,)). modality: "image" says that a str is the path of an image and not a text.
    An image file counts by its bytes, so a file and its bytes have the same digest; an array by dtype, shape and
    values. Raises OSError for an image file that cannot be read.
    """
    if isinstance(inputs, np.ndarray) and inputs.dtype.kind in "biufc":
        return _of_array(inputs)
    digest = hashlib.sha256(b"rows")
    for chunk in _encoded(inputs, modality):
        digest.update(chunk)
    return digest.hexdigest()


def image_digest(image: Any) -> bytes:
    """32 bytes: SHA-256 of an image's file content (str or Path, bytes), or of its shape and pixels."""
    if isinstance(image, (str, Path)):
        with open(image, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    if isinstance(image, (bytes, bytearray)):
        return hashlib.sha256(image).digest()
    pixels = image if isinstance(image, np.ndarray) else np.asarray(image)
    mode = "" if isinstance(image, np.ndarray) else str(image.mode)
    header = f"pixels|{mode}|{pixels.dtype.str}|{pixels.shape}|".encode()
    return hashlib.sha256(header + np.ascontiguousarray(pixels).tobytes()).digest()


def of_image_digests(digests: Iterable[bytes]) -> str:
    """`fingerprint` of images whose `image_digest` is known."""
    digest = hashlib.sha256(b"rows")
    for part in digests:
        digest.update(b"i" + part)
    return digest.hexdigest()


def _encoded(inputs: Iterable[Any], modality: str | None) -> Iterable[bytes]:
    """Every row with its kind and length in front, so that no two lists of rows give the same bytes."""
    for row in inputs:
        if isinstance(row, str) and modality != "image":
            yield _text(b"t", row)
        elif isinstance(row, (tuple, list)) and all(isinstance(part, str) for part in row):
            yield b"p" + len(row).to_bytes(8, "little") + b"".join(_text(b"t", part) for part in row)
        elif isinstance(row, np.ndarray) and row.dtype != np.uint8:
            yield b"a" + bytes.fromhex(_of_array(row))
        else:
            yield b"i" + image_digest(row)


def _text(kind: bytes, text: str) -> bytes:
    content = text.encode("utf-8", "surrogatepass")
    return kind + len(content).to_bytes(8, "little") + content


def _of_array(array: Array) -> str:
    digest = hashlib.sha256(f"array|{array.dtype.newbyteorder('<').str}|{array.shape}|".encode())
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    flat = array.reshape(-1) if array.flags.c_contiguous else np.ascontiguousarray(array).reshape(-1)
    step = max(1, _CHUNK // max(1, array.itemsize))
    for start in range(0, flat.size, step):
        digest.update(flat[start : start + step].data)
    return digest.hexdigest()
