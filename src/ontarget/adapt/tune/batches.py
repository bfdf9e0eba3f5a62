"""Rows of a split as batches of tensors: texts tokenized once, images decoded once, the order fixed by the seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ontarget.errors import SettingError
from ontarget.runtime.preprocess import InputError, Preprocess, open_image, resize_and_crop
from ontarget.values import Array, Examples

BUCKET_BATCHES = 8  # batches that are sorted by length together (choice)
CHUNK_ROWS = 1024  # rows that are tokenized in one call
MEMORY_SHARE = 0.25  # of the free memory that decoded images may take (choice)


class Batches:
    """Batches of ``examples``, in the same order and with the same augmentation for the same seed and epoch.

    augment: see `ontarget.augment.image_augmentation`; images only, drawn anew for each (seed, epoch, row).
    Raises InputError for a row that cannot be read, SettingError for an augmentation of what is no image.
    """

    def __init__(
        self, preprocess: Preprocess, examples: Examples, *, batch_size: int, augment: str = "none", seed: int = 0
    ) -> None:
        self.preprocess, self.examples, self.batch_size, self.seed = preprocess, examples, batch_size, seed
        self.augment: Any = None
        self.lengths: Array | None = None
        self.pixels: Array | None = None
        self._apart = False
        self._ids: list[tuple[Array, ...]] = []  # by row: the tokens of each field that is encoded on its own
        if augment != "none":
            if preprocess.kind != "image":
                raise SettingError(f"augment is '{augment}'.", allowed="none, for what is no image", option="augment")
            from ontarget.augment.image_augmentation import image_augmentation

            self.augment = image_augmentation(augment)
        if preprocess.kind == "tokens":
            self._tokenize()
        elif preprocess.kind == "image":
            self._decode()

    def plan(self, epoch: int) -> list[Array]:
        """Positions of the rows of each training batch. Texts of like length go together."""
        generator = np.random.default_rng((self.seed, epoch))
        order = generator.permutation(len(self.examples))
        if self.lengths is None:
            return self._cut(order)
        span = BUCKET_BATCHES * self.batch_size
        spans = [order[at : at + span] for at in range(0, len(order), span)]
        order = np.concatenate([rows[np.argsort(self.lengths[rows], kind="stable")] for rows in spans])
        batches = self._cut(order)
        return [batches[int(at)] for at in generator.permutation(len(batches))]

    def ordered(self) -> list[Array]:
        """Positions of the rows of each batch for scoring: every row once, shortest texts first."""
        if self.lengths is None:
            return self._cut(np.arange(len(self.examples)))
        return self._cut(np.argsort(self.lengths, kind="stable"))

    def tensors(self, rows: Array, epoch: int | None = None) -> list[Tensor]:
        """The network's arguments for these rows; augmented where an epoch is given."""
        if self.lengths is not None:
            return self._padded(rows)
        if self.preprocess.kind == "image":
            pixels = [self._pixels(int(row), epoch) for row in rows]
            return [normalised(np.stack(pixels), self.preprocess)]
        return [torch.from_numpy(value) for value in self.preprocess(self.examples.take(rows).inputs).values()]

    def _cut(self, order: Array) -> list[Array]:
        return [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]

    def _tokenize(self) -> None:
        texts = self.examples.inputs
        for start in range(0, len(texts), CHUNK_ROWS):
            rows = np.arange(start, min(start + CHUNK_ROWS, len(texts)))
            try:
                prepared = self.preprocess([texts[int(row)] for row in rows])
            except InputError as error:
                raise error.at(rows) from error
            ids, mask = prepared["input_ids"].astype(np.int32), prepared["attention_mask"]
            self._apart = ids.ndim == 3
            fields = ids.shape[1] if self._apart else 1
            ids, counts = ids.reshape(len(rows), fields, -1), mask.reshape(len(rows), fields, -1).sum(axis=2)
            self._ids += [
                tuple(ids[at, field, : counts[at, field]].copy() for field in range(fields)) for at in range(len(rows))
            ]
        self.lengths = np.array([max(map(len, fields)) for fields in self._ids], dtype=np.int64)

    def _padded(self, rows: Array) -> list[Tensor]:
        assert self.lengths is not None
        chosen = [self._ids[int(row)] for row in rows]
        shape = (len(chosen), len(chosen[0]), int(self.lengths[rows].max()))
        ids = np.full(shape, int(self.preprocess.settings["pad_id"]), dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        for at, fields in enumerate(chosen):
            for field, tokens in enumerate(fields):
                ids[at, field, : len(tokens)], mask[at, field, : len(tokens)] = tokens, 1
        both = (ids, mask) if self._apart else (ids[:, 0], mask[:, 0])
        return [torch.from_numpy(value) for value in both]

    def _decode(self) -> None:
        import psutil

        settings = self.preprocess.settings
        shape = (len(self.examples), int(settings["size"]), int(settings["size"]), int(settings.get("channels", 3)))
        if int(np.prod(shape)) <= MEMORY_SHARE * psutil.virtual_memory().available:
            pixels = np.empty(shape, dtype=np.uint8)
            for row in range(len(pixels)):
                pixels[row] = self._decoded(row)
            self.pixels = pixels

    def _decoded(self, row: int) -> Array:
        image = resize_and_crop(open_image(self.examples.inputs[row], row), self.preprocess.settings)
        return np.asarray(image).reshape(image.height, image.width, -1)

    def _pixels(self, row: int, epoch: int | None) -> Array:
        pixels = self._decoded(row) if self.pixels is None else self.pixels[row]
        if self.augment is None or epoch is None:
            return pixels
        from PIL import Image

        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        changed = self.augment(image, np.random.default_rng((self.seed, epoch, row)))
        return np.asarray(changed).reshape(pixels.shape)


def normalised(pixels: Array, preprocess: Preprocess) -> Tensor:
    """uint8 (N, H, W, channels) -> float32 (N, channels, H, W), bit for bit what ``preprocess`` makes of them."""
    mean, std = (torch.tensor(preprocess.settings[name], dtype=torch.float32).view(1, -1, 1, 1) for name in _SCALE)
    values = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return values.div_(255).sub_(mean).div_(std)


_SCALE = ("mean", "std")
