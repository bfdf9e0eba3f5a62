"""Splits of several image tasks: what the search learns from, what it is steered by, and what scores its networks.

Rows go by the content of the image's file, so that an image in the data of two tasks (under two names, too) is in the
same split of both where they hold the same images. Where they do not, or where the user's own splits disagree, an
image that scores any task is left out of what the search and the trainings of all tasks see. Another encoding of a
picture is another content. Checked in tests/data/test_vision_splits.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ontarget.data.vision_tasks import VisionTask
from ontarget.errors import DataError
from ontarget.values import Array

TEST, VALIDATION, ARCHITECTURE = 0.15, 0.15, 0.2  # of a task's images, of them, and of the rest (choice)


@dataclass(frozen=True)
class Splits:
    """Positions (N,) int64 among a task's images. left_out: images of no split, for another's sake.

    train: weights learn from them. architecture: steer the search; the training from scratch takes both. validation:
    held out, for comparing one's own attempts. test: scored once, at the end.
    """

    train: Array
    architecture: Array
    validation: Array
    test: Array
    left_out: int

    @property
    def learnt(self) -> Array:
        """What a network is trained on from scratch."""
        return np.concatenate([self.train, self.architecture])


def split_tasks(tasks: Sequence[VisionTask], seed: int) -> tuple[Splits, ...]:
    """The splits of each task: the user's own where the data say them, else drawn with the seed.

    Raises DataError for a task that is left with fewer than 2 rows to learn from, or none of another split.
    """
    drawn = [_drawn(task, seed) for task in tasks]
    scoring = {task.digests[at] for task, (_, held, test) in zip(tasks, drawn, strict=True) for at in (*held, *test)}
    found = []
    for task, (rest, held, test) in zip(tasks, drawn, strict=True):
        own = {task.digests[at] for at in test}
        kept = [at for at in rest if task.digests[at] not in scoring]
        held = [at for at in held if task.digests[at] not in own]
        second = max(1, round(ARCHITECTURE * len(kept)))
        train, architecture = kept[second:], kept[:second]
        if len(train) < 2 or not (architecture and held and test):
            raise DataError(
                f"Task '{task.name}': {len(train)} images to learn from, {len(architecture)} to steer the search, "
                f"{len(held)} for validation, {len(test)} for the test, once images that score a task are left out.",
                allowed="2 or more to learn from, 1 or more of the others", option=f"[[tasks]] {task.name}",
                next_step="add images, or make the tasks' splits agree",
            )  # fmt: skip
        left_out = len(task.images) - len(kept) - len(held) - len(test)
        positions = [np.array(part, dtype=np.int64) for part in (train, architecture, held, test)]
        found.append(Splits(positions[0], positions[1], positions[2], positions[3], left_out))
    return tuple(found)


def _drawn(task: VisionTask, seed: int) -> tuple[list[int], list[int], list[int]]:
    """(rest, validation, test), in an order that the seed and the images' contents fix."""
    ranks = [hashlib.sha256(f"{seed} {digest}".encode()).hexdigest() for digest in task.digests]
    order = sorted(range(len(ranks)), key=lambda at: ranks[at])
    given = {name: [at for at in order if task.given and task.given[at] == name] for name in ("validation", "test")}
    rest = [at for at in order if not task.given or task.given[at] == "train"]
    for name, share in (("test", TEST), ("validation", VALIDATION)):
        if not given[name]:
            count = max(1, round(share * len(order)))
            given[name], rest = rest[:count], rest[count:]
    return rest, given["validation"], given["test"]
