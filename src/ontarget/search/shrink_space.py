"""PopDB: a space cut down to what a search on one device visited in clusters, for sibling devices.

Sarah et al., arXiv 2202.12954, section on PopDB. All configurations visited on a device are clustered (HDBSCAN,
smallest cluster 50, 10 samples); a choice of a slot that fewer than 1% of the points in clusters make is left out.
Only points in which the slot has an effect count for it (choice): a layer that most networks leave out loses no width.
Checked: tests/search/test_shrink_space.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ontarget.errors import DataError
from ontarget.search.space import Code, ElasticNetwork, Operator, Slot, one_hot

SMALLEST_CLUSTER, SAMPLES, RARE = 50, 10, 0.01


class ShrunkSpace:
    """An `ElasticNetwork` with fewer choices over another: slot choices are positions in ``kept``."""

    def __init__(self, space: ElasticNetwork, kept: Sequence[Sequence[int]]) -> None:
        self.space, self.kept = space, tuple(tuple(choices) for choices in kept)
        self.slots = tuple(
            Slot(slot.name, len(choices), tuple(slot.labels[choice] for choice in choices) if slot.labels else ())
            for slot, choices in zip(space.slots, self.kept, strict=True)
        )

    def outer(self, code: Code) -> Code:
        """The same network's code in the whole space."""
        return self.space.canonical(tuple(choices[value] for choices, value in zip(self.kept, code, strict=True)))

    def inner(self, code: Code) -> Code | None:
        """The code of the whole space's network here, in canonical form; None where it makes a choice left out here."""
        whole = self.space.canonical(code)
        near = tuple(
            choices.index(value) if value in choices else 0 for choices, value in zip(self.kept, whole, strict=True)
        )
        return self.canonical(near) if self.outer(near) == whole else None

    def canonical(self, code: Code) -> Code:
        """Slots without effect at 0: those whose choice the whole space's canonical form does not repeat."""
        whole = self.outer(code)
        return tuple(
            value if choices[value] == same else 0 for choices, value, same in zip(self.kept, code, whole, strict=True)
        )

    @property
    def dropped(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """(slot's name, labels of the choices left out) of every slot that lost some."""
        found = []
        for slot, choices in zip(self.space.slots, self.kept, strict=True):
            names = slot.labels or tuple(map(str, range(slot.choices)))
            gone = tuple(names[choice] for choice in range(slot.choices) if choice not in choices)
            if gone:
                found.append((slot.name, gone))
        return tuple(found)

    def slice(self, code: Code) -> torch.nn.Module:
        return self.space.slice(self.outer(code))

    def config(self, code: Code) -> dict[str, Any]:
        return self.space.config(self.outer(code))

    def operators(self, code: Code) -> tuple[Operator, ...]:
        return self.space.operators(self.outer(code))

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        return self.space.example(batch_size)


def whole_code(space: ElasticNetwork, code: Code) -> Code:
    """A code of the space that is searched in the whole space."""
    return space.outer(code) if isinstance(space, ShrunkSpace) else code


def codes_inside(space: ElasticNetwork, codes: Sequence[Code]) -> list[Code]:
    """Codes of the whole space in the space that is searched, without those that are not in it."""
    if not isinstance(space, ShrunkSpace):
        return list(codes)
    return [code for code in map(space.inner, codes) if code is not None]


def shrink_space(space: ElasticNetwork, visited: Sequence[Code]) -> ShrunkSpace:
    """The space without the choices that clusters of ``visited`` codes, equal ones counted once, hardly make.

    Every slot keeps its most frequent choice; one that has no effect in any point of a cluster keeps its first. Without
    any cluster nothing is left out. Raises DataError for fewer different codes than a smallest cluster, 50.
    """
    from sklearn.cluster import HDBSCAN

    codes = list(dict.fromkeys(space.canonical(code) for code in visited))
    if len(codes) < SMALLEST_CLUSTER:
        raise DataError(
            f"{len(codes)} different networks were visited.", allowed=f"{SMALLEST_CLUSTER} or more",
            next_step="give the search a larger budget before its space is cut down",
        )  # fmt: skip
    features = one_hot(space, codes)
    model = HDBSCAN(min_cluster_size=SMALLEST_CLUSTER, min_samples=min(SAMPLES, len(codes)), copy=True)
    inside = np.flatnonzero(model.fit_predict(features) >= 0)
    if not len(inside):
        return ShrunkSpace(space, [range(slot.choices) for slot in space.slots])
    made = features[inside].sum(axis=0)  # how often each choice is made where its slot has an effect
    kept, first = [], 0
    for slot in space.slots:
        counts = made[first : first + slot.choices]
        first += slot.choices
        least = max(RARE * counts.sum(), 1.0)
        kept.append([int(at) for at in np.flatnonzero(counts >= least)] or [int(counts.argmax())])
    return ShrunkSpace(space, kept)
