"""Rows of image tasks, read when they are asked for; what was read is kept while a bounded memory lasts.

Once the memory is full, rows beyond it are read again each time. Nothing is thrown out: where all rows are passed over
in turn, the latest kept are the first gone again, and a cache of those would never be hit.
Checked in tests/search/test_task_scores.py.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ontarget.data.vision_tasks import VisionTask
from ontarget.errors import DataError
from ontarget.runtime.preprocess import InputError, Preprocess
from ontarget.search.detection_maps import box_maps
from ontarget.search.rows import Rows
from ontarget.values import Array


class TensorCache:
    """Tensors by key, up to ``limit_bytes`` of them together; shared by tasks that share images."""

    def __init__(self, limit_bytes: float) -> None:
        self.limit_bytes, self.bytes = limit_bytes, 0
        self.known: dict[Hashable, Tensor] = {}

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of a key, made where it is not kept."""
        if key in self.known:
            return self.known[key]
        made = make()
        size = made.numel() * made.element_size()
        if self.bytes + size <= self.limit_bytes:
            self.known[key] = made
            self.bytes += size
        return made


class TaskRows:
    """``rows[positions]`` -> images (B, channels, size, size), targets; of the task's images at ``chosen``.

    targets: (B,) int64 class indices, (B, size, size) int64 masks, or the maps of `box_maps`.
    Raises DataError naming an image that cannot be read any more.
    """

    def __init__(self, task: VisionTask, chosen: Array, preprocess: Preprocess, size: int, cache: TensorCache) -> None:
        self.task, self.chosen, self.preprocess, self.size, self.cache = task, chosen, preprocess, size, cache

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, positions: Any) -> tuple[Tensor, Tensor]:
        at = [int(row) for row in self.chosen[np.asarray(positions)]]
        return torch.stack([self._image(row) for row in at]), torch.stack([self._target(row) for row in at])

    def _image(self, row: int) -> Tensor:
        path = self.task.images[row]

        def read() -> Tensor:
            try:
                return torch.from_numpy(self.preprocess([path])["pixels"][0])
            except InputError as error:
                raise DataError(
                    f"Task '{self.task.name}': {error.problem}.", next_step="put the image back; a search goes on"
                ) from error

        return self.cache.get(path, read)

    def _target(self, row: int) -> Tensor:
        if self.task.kind == "classification":
            return torch.tensor(self.task.targets[row])
        if self.task.kind == "detection":
            classes, boxes = len(self.task.classes), self.task.targets[row]
            return self.cache.get((self.task.name, row), lambda: box_maps(boxes, classes, self.size))
        mask = self.cache.get((self.task.name, row), lambda: torch.from_numpy(np.array(self.task.targets[row])))
        return mask.to(torch.int64)


class Mixed:
    """Rows of several tasks side by side: inputs of all of them below each other, then each task's own targets.

    A task with fewer rows than the longest begins again.
    """

    def __init__(self, tasks: Sequence[Rows]) -> None:
        self.tasks = tasks

    def __len__(self) -> int:
        return max(map(len, self.tasks))

    def __getitem__(self, positions: Any) -> tuple[Tensor, ...]:
        parts = [rows[positions % len(rows)] for rows in self.tasks]
        return (torch.cat([inputs for inputs, _ in parts]), *(targets for _, targets in parts))
