"""Boxes as maps that a heat-map head learns, boxes back from its outputs, and their average precision.

Source: CenterNet (Zhou, Wang, Krähenbühl, "Objects as Points", 2019, arXiv 1904.07850): a heat map for each class with
the penalty-reduced focal loss, the width and height of the box and the offset of its centre at the centre's cell.
Choices: one spread of a sixth of the box's sides; sizes as shares of the image; no suppression beyond local maxima.
Checked in tests/search/test_search_tasks.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ontarget.values import Array

EXTRA = 4  # channels beside the classes: width, height, offset across, offset down
PRIOR = 2.19  # taken off the class logits, so that training starts at a tenth everywhere
SIZE_WEIGHT = 5.0  # of the sizes against the heat map (choice)
MOST = 50  # boxes of an image


def box_maps(boxes: Array, classes: int, size: int, stride: int = 2) -> Tensor:
    """(classes + 5, size / stride, size / stride) float32: heat maps, width, height, offsets, and where they count.

    boxes: (K, 5) class, left, top, right, bottom in pixels.
    """
    side = size // stride
    maps = np.zeros((classes + EXTRA + 1, side, side), dtype=np.float32)
    cells = np.arange(side)
    for kind, left, top, right, bottom in boxes:
        across, down = (left + right) / 2 / stride, (top + bottom) / 2 / stride
        column, row = min(int(across), side - 1), min(int(down), side - 1)
        spreads = [max(length / stride / 6, 0.5) for length in (right - left, bottom - top)]
        heat = np.exp(-((cells - row)[:, None] ** 2) / (2 * spreads[1] ** 2)
                      - (cells - column)[None] ** 2 / (2 * spreads[0] ** 2))  # fmt: skip
        maps[int(kind)] = np.maximum(maps[int(kind)], heat)
        maps[classes:, row, column] = (
            (right - left) / size, (bottom - top) / size, across - column, down - row, 1.0,
        )  # fmt: skip
    return torch.from_numpy(maps)


def detection_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Focal loss of the heat maps plus absolute errors of sizes and offsets, for each object.

    outputs: (B, classes + 4, h, w); targets: (B, classes + 5, h, w) of `box_maps`.
    """
    classes = targets.shape[1] - EXTRA - 1
    logits, heat, there = outputs[:, :classes] - PRIOR, targets[:, :classes], targets[:, -1:]
    sure, unsure = torch.nn.functional.logsigmoid(logits), torch.nn.functional.logsigmoid(-logits)
    share = logits.sigmoid()
    peaks = (heat == 1).to(logits.dtype)
    focal = -(peaks * (1 - share) ** 2 * sure + (1 - peaks) * (1 - heat) ** 4 * share**2 * unsure).sum()
    sizes = ((outputs[:, classes:] - targets[:, classes:-1]).abs() * there).sum()
    return (focal + SIZE_WEIGHT * sizes) / there.sum().clamp(min=1)


def boxes_of(outputs: Tensor, size: int) -> list[Array]:
    """For each image (K, 6) float64: score, class, left, top, right, bottom; local maxima, the highest `MOST`."""
    classes, stride = outputs.shape[1] - EXTRA, size / outputs.shape[2]
    heat = (outputs[:, :classes] - PRIOR).sigmoid()
    peaks = heat * (heat == torch.nn.functional.max_pool2d(heat, 3, 1, 1))
    found = []
    for image in range(len(outputs)):
        values, places = peaks[image].flatten().topk(min(MOST, peaks[image].numel()))
        kinds, rest = places // heat[0, 0].numel(), places % heat[0, 0].numel()
        rows, columns = rest // heat.shape[3], rest % heat.shape[3]
        wide, high, across, down = outputs[image, classes:, rows, columns]
        middle = ((columns + across) * stride, (rows + down) * stride)
        half = (wide.clamp(min=0) * size / 2, high.clamp(min=0) * size / 2)
        parts = [values, kinds, middle[0] - half[0], middle[1] - half[1], middle[0] + half[0], middle[1] + half[1]]
        found.append(torch.stack([part.double() for part in parts], 1).numpy()[values.numpy() > 0])
    return found


def overlap(boxes: Array, box: Array) -> Array:
    """(K,) intersection over union of boxes (K, 4) with one, (4,): left, top, right, bottom."""
    shared = np.clip(np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2]), 0, None).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    found: Array = shared / np.maximum(areas - shared, 1e-12)
    return found


def mean_average_precision(found: Sequence[Array], truth: Sequence[Array], classes: int, least: float = 0.5) -> float:
    """Mean over classes that occur of the area under precision (its envelope) by recall, at one overlap.

    found: (K, 6) of `boxes_of`; truth: (K, 5). The highest score first takes the free box that it overlaps most.
    """
    return float(average_precisions(matches(found, truth, classes, least), np.ones((1, len(truth))))[0])


def matches(
    found: Sequence[Array], truth: Sequence[Array], classes: int, least: float = 0.5
) -> list[tuple[Array, Array, Array]]:
    """For each class that occurs: (image of each found box, whether it is right), the surest first; (N,) true boxes."""
    values = []
    for kind in range(classes):
        wanted = [boxes[boxes[:, 0] == kind, 1:] for boxes in truth]
        totals = np.array([len(boxes) for boxes in wanted], dtype=np.float64)
        if not totals.any():
            continue
        rows = [(row[0], image, row[2:]) for image, boxes in enumerate(found) for row in boxes if row[1] == kind]
        rows.sort(key=lambda row: -row[0])
        taken = [np.zeros(len(boxes), dtype=bool) for boxes in wanted]
        hits = np.zeros(len(rows))
        for at, (_, image, box) in enumerate(rows):
            shares = np.where(taken[image], 0.0, overlap(wanted[image], box))
            if len(shares) and shares.max() >= least:
                taken[image][shares.argmax()] = True
                hits[at] = 1
        values.append((np.array([image for _, image, _ in rows], dtype=np.int64), hits, totals))
    return values


def average_precisions(matched: Sequence[tuple[Array, Array, Array]], counts: Array) -> Array:
    """(R,) the mean average precision with each image counted so many times. matched: of `matches`; counts: (R, N)."""
    values = []
    for images, hits, totals in matched:
        weights = counts[:, images].astype(np.float64)
        right = np.cumsum(weights * hits, 1)
        precision = right / np.maximum(np.cumsum(weights, 1), 1)
        envelope = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        total = counts @ totals
        values.append(np.where(total > 0, (envelope * hits * weights).sum(1) / np.maximum(total, 1), np.nan))
    if not values:
        return np.zeros(len(counts))
    occurs = ~np.isnan(values)
    mean: Array = np.nansum(values, 0) / np.maximum(occurs.sum(0), 1)
    return mean


def mean_overlap(predicted: Array, truth: Array, classes: int, ignored: int = 255) -> float:
    """Mean over classes that occur in either of intersection over union, all pixels together. Equal shapes, int."""
    kept = truth != ignored
    counts = np.bincount(truth[kept].astype(np.int64) * classes + predicted[kept], minlength=classes**2)
    table = counts.reshape(classes, classes)
    both, either = np.diag(table), table.sum(0) + table.sum(1) - np.diag(table)
    return float((both[either > 0] / either[either > 0]).mean()) if (either > 0).any() else 0.0
