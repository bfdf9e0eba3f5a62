"""One look at every image before any work: is it whole, what is its content, what does it look like?

Each image is read once, decoded at the smallest scale that its format allows, in threads (Pillow decodes without
the interpreter lock).
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ontarget.data.fingerprint import image_digest
from ontarget.data.problems import SHOWN, Rows
from ontarget.runtime.preprocess import MAX_IMAGE_PIXELS
from ontarget.values import Array

SIDE = 16  # of the thumbnails, in pixels


@dataclass(frozen=True)
class Looks:
    """What `look_at` keeps of N images.

    digests: N times 32 bytes of content. hashes: (N,) uint64, the difference hash: bit set where a pixel of the
    8 x 9 thumbnail is darker than its right neighbour. thumbnails: (N, 256) uint8 grey.
    """

    digests: list[bytes]
    hashes: Array
    thumbnails: Array


def look_at(images: Sequence[Any] | Array, rows: Rows, problems: list[str]) -> Looks:
    """Read all images; those that are missing, empty, damaged or too large become one entry of ``problems``."""
    digests = [b""] * len(images)
    hashes = np.zeros(len(images), dtype=np.uint64)
    thumbnails = np.zeros((len(images), SIDE * SIDE), dtype=np.uint8)
    broken: list[tuple[int, str]] = []

    def some(start: int) -> None:
        for position in range(start, min(start + 64, len(images))):
            try:
                digests[position], hashes[position], thumbnails[position] = _look(images[position])
            except Exception as error:  # Pillow raises a dozen kinds for damaged files
                broken.append((position, _reason(error)))

    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        # In chunks, because a future for each image would cost as much as a small image.
        list(pool.map(some, range(0, len(images), 64)))
    if broken:
        broken.sort()
        lines = []
        for position, reason in broken[:SHOWN]:
            name = f"'{images[position]}' " if isinstance(images[position], (str, Path)) else ""
            lines.append(f"{name}({rows.some([position])}) {reason}")
        more = f"; and {len(broken) - SHOWN:,} more" if len(broken) > SHOWN else ""
        problems.append(f"{len(broken):,} image(s) cannot be read: " + "; ".join(lines) + more)
    return Looks(digests, hashes, thumbnails)


def _look(item: Any) -> tuple[bytes, int, Array]:
    from PIL import Image, ImageFile

    content = Path(item).read_bytes() if isinstance(item, (str, Path)) else item
    image: Image.Image
    if isinstance(content, (bytes, bytearray)):
        if not content:
            raise ValueError("is empty (0 bytes)")
        image = Image.open(io.BytesIO(content))
    elif isinstance(content, np.ndarray):
        image = Image.fromarray(content[:, :, 0] if content.ndim == 3 and content.shape[2] == 1 else content)
    else:
        image = content
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise ValueError(f"has {image.width} x {image.height} pixels; at most {MAX_IMAGE_PIXELS:,} are allowed")
    digest = image_digest(content)
    if isinstance(image, ImageFile.ImageFile):
        image.draft("L", (4 * SIDE, 4 * SIDE))  # JPEG: decode at a fraction of the size
    grey = image.convert("L")  # decodes everything, so a truncated file shows here
    thumbnail = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.uint8).reshape(-1)
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits(small[:, :-1] < small[:, 1:])
    return digest, int(bits.view(">u8")[0]), thumbnail


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, IsADirectoryError):
        return "is a folder"
    name = type(error).__name__
    if name == "UnidentifiedImageError":
        return "is no image"
    return str(error) if isinstance(error, ValueError) else f"is damaged ({name}: {error})"
