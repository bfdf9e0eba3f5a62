"""Scores of a network on rows of an image task, with a bootstrap interval over the images.

Accuracy, mean IoU (all pixels together) and mean AP at IoU 0.5 are all sums over images put together, so that a
resample is a count of each image and nothing is predicted again. Outputs are taken a batch at a time.
Efron, "Bootstrap Methods: Another Look at the Jackknife", Annals of Statistics 1979; an accuracy's interval is widened
to Wilson's (choice). Classes that a resample lacks are left out of its mean.
Checked in tests/search/test_task_scores.py against the metrics on repeated images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ontarget.data.vision_tasks import IGNORED
from ontarget.search.detection_maps import average_precisions, boxes_of, matches
from ontarget.search.rows import ordered
from ontarget.search.task_rows import TaskRows
from ontarget.values import Array

METRICS = {"classification": "accuracy", "segmentation": "mean IoU", "detection": "mean AP at IoU 0.5"}
RESAMPLES, LEVEL = 1000, 0.95  # (choice)
BATCH = 64  # images at once
BLOCK = 2_000_000  # numbers of a block of resamples


@dataclass(frozen=True)
class TaskScore:
    """The metric's value, its 95% interval, and the images that it is of."""

    value: float
    low: float
    high: float
    images: int


def score(network: torch.nn.Module, rows: TaskRows, *, seed: int = 0) -> TaskScore:
    """The task's metric of a network, in evaluation mode, on all rows."""
    statistic, width, hits = _statistic(network, rows)
    count = len(rows)
    value = float(statistic(np.ones((1, count)))[0])
    generator = np.random.default_rng(seed)
    each = max(1, BLOCK // max(width, count))
    draws = np.concatenate([
        statistic(generator.multinomial(count, np.full(count, 1 / count), size=min(each, RESAMPLES - at)))
        for at in range(0, RESAMPLES, each)
    ])  # fmt: skip
    low, high = (float(end) for end in np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    if hits is not None:
        from scipy import stats

        wilson = stats.binomtest(hits, count).proportion_ci(LEVEL, "wilson")
        low, high = min(low, float(wilson.low)), max(high, float(wilson.high))
    return TaskScore(value, min(low, value), max(high, value), count)


def _statistic(network: torch.nn.Module, rows: TaskRows) -> tuple[Callable[[Array], Array], int, int | None]:
    """(counts (R, N) -> the metric (R,)), numbers that a resample needs, right answers of a classifier."""
    task, parts = rows.task, []
    network.eval()
    with torch.inference_mode():
        for inputs, targets in ordered(rows, BATCH):
            parts.append(_facts(task.kind, network(inputs), targets, len(task.classes), rows.size))
    if task.kind == "classification":
        right = np.concatenate(parts)
        return lambda counts: counts @ right / len(right), 1, int(right.sum())
    if task.kind == "detection":
        found = [boxes for part in parts for boxes in part]
        matched = matches(found, [task.targets[at] for at in rows.chosen], len(task.classes))
        return lambda counts: average_precisions(matched, counts), sum(map(len, found)), None
    both, either = np.concatenate(parts).transpose(1, 0, 2)

    def mean_overlaps(counts: Array) -> Array:
        shared, whole = counts @ both, counts @ either
        mean: Array = (shared / np.maximum(whole, 1)).sum(1) / np.maximum((whole > 0).sum(1), 1)
        return mean

    return mean_overlaps, len(task.classes), None


def _facts(kind: str, outputs: torch.Tensor, targets: torch.Tensor, classes: int, size: int) -> Any:
    """Of each image: whether it is right; its boxes; (2, C) pixels in a class of both and of either."""
    if kind == "detection":
        return boxes_of(outputs, size)
    predicted = outputs.argmax(1).numpy()
    truth = targets.numpy()
    if kind == "classification":
        return (predicted == truth).astype(np.float64)
    found = np.zeros((len(truth), 2, classes))
    for image, (guess, real) in enumerate(zip(predicted, truth, strict=True)):
        kept = real != IGNORED
        table = np.bincount(real[kept] * classes + guess[kept], minlength=classes**2).reshape(classes, classes)
        found[image] = np.diag(table), table.sum(0) + table.sum(1) - np.diag(table)
    return found
