"""Splits of image tasks: shares, equal contents, the user's own splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ontarget.data.vision_splits import split_tasks
from ontarget.data.vision_tasks import VisionTask
from ontarget.errors import DataError


def task(name: str, digests: list[str], given: tuple[str, ...] = ()) -> VisionTask:
    count = len(digests)
    return VisionTask(name, "classification", ("a", "b"), tuple(map(Path, digests)), [0] * count, tuple(digests), given)


def contents(found: VisionTask, positions: np.ndarray) -> set[str]:
    return {found.digests[at] for at in positions}


def test_no_image_that_scores_a_task_is_learnt_by_any() -> None:
    one, two = task("one", [f"{at}" for at in range(40)]), task("two", [f"{at}" for at in range(20, 80)])
    parts = split_tasks([one, two], 0)
    scoring = set().union(*(contents(t, np.r_[p.validation, p.test]) for t, p in zip((one, two), parts, strict=True)))
    for each, part in zip((one, two), parts, strict=True):
        assert scoring.isdisjoint(contents(each, part.learnt)) and not set(part.train) & set(part.architecture)
        sizes = [len(part.train), len(part.architecture), len(part.validation), len(part.test)]
        assert sum(sizes) + part.left_out == len(each.images) and sizes[3] == round(0.15 * len(each.images))
    assert sum(part.left_out for part in parts) > 0
    assert np.array_equal(split_tasks([one, two], 0)[0].test, parts[0].test)
    assert not np.array_equal(split_tasks([one, two], 1)[0].test, parts[0].test)


def test_the_users_splits_are_kept_and_duplicates_left_out() -> None:
    given = ("train",) * 12 + ("test",) * 3
    found = task("own", [*(f"{at}" for at in range(12)), "0", "x", "y"], given)
    (part,) = split_tasks([found], 0)
    assert sorted(part.test) == [12, 13, 14] and 0 not in part.learnt
    assert contents(found, part.learnt).isdisjoint({"0", "x", "y"}) and len(part.validation) >= 1
    with pytest.raises(DataError, match="'same': 0 images to learn from"):
        split_tasks([task("same", ["0"] * 15)], 0)
