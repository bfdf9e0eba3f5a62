"""A task's examples as rows that a search trains on: read and tokenized or decoded once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ontarget.adapt.tune.batches import Batches
from ontarget.runtime.preprocess import Preprocess
from ontarget.values import Array, Examples


class ExampleRows:
    """``rows[positions]`` -> (*tensors of the preprocessing, targets). augment: drawn anew for each epoch's pass.

    Raises InputError for a row that cannot be read.
    """

    def __init__(self, preprocess: Preprocess, examples: Examples, *, augment: str = "none", seed: int = 0) -> None:
        self.source = Batches(preprocess, examples, batch_size=1, augment=augment, seed=seed)
        self.targets = torch.from_numpy(np.asarray(examples.targets))
        self.augmented, self.calls = augment != "none", 0

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, positions: Any) -> tuple[Tensor, ...]:
        at: Array = np.asarray(positions)
        self.calls += 1
        epoch = self.calls if self.augmented else None
        return (*self.source.tensors(at, epoch), self.targets[torch.from_numpy(at)])


class Part:
    """Some rows of others, by position."""

    def __init__(self, rows: Any, positions: Array) -> None:
        self.rows, self.positions = rows, torch.from_numpy(np.asarray(positions, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, positions: Any) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = self.rows[self.positions[positions]]
        return found


def first_rows(rows: Any, count: int) -> Part:
    """The first ``count`` rows, or all where there are fewer."""
    return Part(rows, np.arange(min(count, len(rows))))


def drawn(rows: Any, count: int, seed: int) -> Part:
    """Up to ``count`` rows, drawn, in their order."""
    return Part(rows, np.sort(np.random.default_rng(seed).permutation(len(rows))[:count]))


def image_preprocess(examples: Examples, size: int) -> Preprocess:
    """Images squashed to ``size`` pixels, grey where all are, scaled by the rows' own mean and spread.

    Up to 500 rows are looked at (choice).
    """
    from ontarget.runtime.preprocess import open_image

    shown = [open_image(image, row) for row, image in enumerate(examples.inputs[:500])]
    grey = all(_is_grey(image) for image in shown)
    pixels = np.stack(
        [np.asarray(image.convert("L" if grey else "RGB").resize((size, size)), dtype=np.float32) for image in shown]
    ).reshape(len(shown), -1, 1 if grey else 3) / 255  # fmt: skip
    mean, spread = pixels.mean((0, 1)), np.maximum(pixels.std((0, 1)), 0.05)
    return Preprocess(
        "image",
        {
            "size": size, "crop": 1, "interpolation": "bilinear", "channels": 1 if grey else 3,
            "mean": [round(float(value), 4) for value in mean], "std": [round(float(value), 4) for value in spread],
        },
    )  # fmt: skip


def _is_grey(image: Any) -> bool:
    if image.mode in ("L", "1", "I", "I;16", "LA"):
        return True
    colours = np.asarray(image.convert("RGB").resize((32, 32)), dtype=np.int16)
    return bool(np.ptp(colours, axis=2).max() <= 8)
