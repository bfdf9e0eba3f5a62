"""Bootstrap of the metrics against the metrics of repeated images; rows that are read when asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ontarget.data.vision_tasks import VisionTask
from ontarget.errors import DataError
from ontarget.runtime.preprocess import Preprocess
from ontarget.search.detection_maps import average_precisions, matches, mean_average_precision
from ontarget.search.task_rows import TaskRows, TensorCache
from ontarget.search.task_scores import score

PREPROCESS = Preprocess(
    "image", {"size": 8, "crop": 1, "interpolation": "bilinear", "channels": 1, "mean": [0.0], "std": [1.0]}
)


def test_counts_are_repeated_images() -> None:
    random = np.random.default_rng(0)
    truth, found = [], []
    for _ in range(6):
        corners = random.uniform(0, 20, (4, 2))
        boxes = np.c_[random.integers(0, 2, 4), corners, corners + 6]
        moved = np.c_[boxes[:, :1], boxes[:, 1:] + random.uniform(-2, 2, (4, 1))]
        truth.append(boxes)
        found.append(np.c_[random.uniform(0, 1, 4), moved])
    counts = random.integers(0, 3, (20, 6))
    values = average_precisions(matches(found, truth, 2), counts)
    assert np.ptp(values) > 0.05
    for row, value in zip(counts, values, strict=True):
        chosen = np.repeat(np.arange(6), row)
        expected = mean_average_precision([found[at] for at in chosen], [truth[at] for at in chosen], 2)
        assert value == pytest.approx(expected)


def rows(folder: Path, kind: str, targets: list[Any], limit: float = 1e9) -> TaskRows:
    images = []
    for at in range(len(targets)):
        images.append(folder / f"{at}.png")
        Image.new("L", (8, 8), 10 * at).save(images[-1])
    task = VisionTask("t", kind, ("a", "b"), tuple(images), targets, ("",) * len(images))
    return TaskRows(task, np.arange(len(images)), PREPROCESS, 8, TensorCache(limit))


class Bright(torch.nn.Module):
    """Class 1 where brighter than 45 / 255."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        over = images - 45 / 255
        return torch.cat([-over, over], 1) if self.pixels else torch.stack([-over, over], 1).mean((2, 3, 4))

    def __init__(self, pixels: bool) -> None:
        super().__init__()
        self.pixels = pixels


def test_scores_and_intervals_by_hand(tmp_path: Path) -> None:
    found = score(Bright(False), rows(tmp_path, "classification", [0, 0, 0, 0, 0, 1, 1, 1, 1, 0]))
    assert found.value == 0.9 and found.images == 10 and found.low == pytest.approx(0.5958, abs=1e-4)  # Wilson's
    masks = [np.full((8, 8), at >= 5, np.uint8) for at in range(10)]
    masks[9][:4] = 0
    masks[0][:] = 255
    found = score(Bright(True), rows(tmp_path, "segmentation", masks))
    background, square = 4 * 64 / (4 * 64 + 32), (4 * 64 + 32) / (5 * 64)
    assert found.value == pytest.approx((background + square) / 2) and found.low < found.value < found.high
    perfect = score(Bright(False), rows(tmp_path, "classification", [0] * 5 + [1] * 5))
    assert perfect.value == perfect.high == 1 and perfect.low < 0.75


def test_the_cache_is_bounded_and_rows_do_not_depend_on_it(tmp_path: Path) -> None:
    image = 8 * 8 * 4
    few, all_ = (rows(tmp_path, "classification", [0, 1] * 5, limit) for limit in (3.5 * image, 1e9))
    order = torch.tensor([7, 0, 7, 9, 3, 1])
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(few[order], all_[order], strict=True))
    assert few.cache.bytes == 3 * image and len(all_.cache.known) == 5
    for path in tmp_path.glob("*.png"):
        path.unlink()
    assert torch.equal(few[torch.tensor([7, 0])][0], all_[torch.tensor([7, 0])][0])  # kept
    with pytest.raises(DataError, match=r"Task 't': .*1\.png' cannot be read"):
        few[torch.tensor([1])]
