"""PopDB: populations made by hand, for which the choices that clusters hardly make are known."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from ontarget.errors import DataError
from ontarget.search.concurrent_nas import concurrent_nas
from ontarget.search.shrink_space import ShrunkSpace, shrink_space
from ontarget.search.space import Code, Slot, count, draw, one_hot

pytest.importorskip("pymoo")


class Layers:
    """A toy: depth 1 to 3, a width of 4 choices in each layer."""

    slots: tuple[Slot, ...] = (Slot("depth", 3), *(Slot(f"width {at}", 4) for at in range(3)))

    def canonical(self, code: Code) -> Code:
        return (code[0], *(value if at <= code[0] else 0 for at, value in enumerate(code[1:])))

    def slice(self, code: Code) -> Any:
        raise NotImplementedError

    def config(self, code: Code) -> dict[str, Any]:
        return {"widths": [value for at, value in enumerate(code[1:]) if at <= code[0]]}

    def operators(self, code: Code) -> tuple[Any, ...]:
        return ()

    def example(self, batch_size: int) -> tuple[Any, ...]:
        return ()


class Wide(Layers):
    slots = (Slot("depth", 4), *(Slot(f"width {at}", 6, tuple("abcdef")) for at in range(4)))


def everything(space: Any) -> set[Code]:
    return {space.canonical(code) for code in np.ndindex(*(slot.choices for slot in space.slots))}


def families() -> list[Code]:
    """Two clusters in the first two widths, near (0, 0) and (4, 4), 144 networks each, all of full depth."""
    return [(3, first + near, second + near, third, fourth)
            for near in (0, 4) for first in (0, 1) for second in (0, 1)
            for third in range(6) for fourth in range(6)]  # fmt: skip


def test_a_space_shrinks_to_what_clusters_choose() -> None:
    wide = Wide()
    strays = [(0, 2, 0, 0, 0), (1, 3, 2, 0, 0)]  # what only strays choose is left out
    shrunk = shrink_space(wide, [*families(), *strays, *families()])
    assert shrunk.kept[0] == (3,)
    assert shrunk.kept[1] == shrunk.kept[2] == (0, 1, 4, 5)
    assert shrunk.kept[3] == shrunk.kept[4] == tuple(range(6))
    assert count(shrunk) == 16 * 36 and shrunk.slots[0].choices == 1
    assert shrunk.dropped == (("depth", ("0", "1", "2")), ("width 0", ("c", "d")), ("width 1", ("c", "d")))
    inner = draw(shrunk, np.random.default_rng(0))
    assert wide.canonical(shrunk.outer(inner)) == shrunk.outer(inner)
    with pytest.raises(DataError, match="2 different networks"):
        shrink_space(wide, strays * 60)


def test_the_limit_is_one_in_a_hundred_points() -> None:
    # A network beside each family: 2 of 290 in clusters are under 1%, 4 of 292 over it.
    few = [(3, 0, 2, 0, 0), (3, 4, 2, 0, 0)]
    assert 2 not in shrink_space(Wide(), [*families(), *few]).kept[2]
    assert 2 in shrink_space(Wide(), [*families(), *few, (3, 0, 2, 0, 1), (3, 4, 2, 0, 1)]).kept[2]


def test_only_networks_in_which_a_slot_has_an_effect_count_for_it() -> None:
    class Six(Layers):
        """The last width has an effect at depth 3 alone."""

        slots = (Slot("depth", 4), *(Slot(f"width {at}", 6) for at in range(6)))

        def canonical(self, code: Code) -> Code:
            return code if code[0] == 3 else (*code[:-1], 0)

    near = [(at + a, at + b, at + c) for at in (0, 4) for a, b, c in product((0, 1), repeat=3)]  # two families
    most = [(2, *widths, third, fourth, 0) for widths in near for third in range(6) for fourth in range(6)]
    deep = [(3, *widths, third, 0, 3) for widths in near for third in range(6)]
    rare = [(3, 0, 0, 0, 0, 0, 5), (3, 4, 4, 4, 0, 0, 5)]
    # The width 5 is made by 2 of 674 networks, 0.3%, but by 2% of the 98 in which that width has an effect.
    assert one_hot(Six(), [*most, *deep, *rare])[:, -6:].sum(axis=0).tolist() == [0, 0, 0, 96, 0, 2]
    shrunk = shrink_space(Six(), [*most, *deep, *rare])
    assert shrunk.kept[0] == (2, 3) and shrunk.kept[6] == (3, 5)
    # Where no network uses the slot, one choice is left, and it has no effect.
    assert shrink_space(Six(), most).kept[6] == (0,)


def test_a_shrunk_space_is_canonical_too() -> None:
    space = ShrunkSpace(Layers(), [(0, 2), (1, 3), (0, 2), (2, 3)])
    assert space.outer((0, 1, 0, 0)) == (0, 3, 0, 0)
    assert space.canonical((0, 1, 1, 1)) == (0, 1, 0, 0)
    assert space.canonical((1, 1, 1, 1)) == (1, 1, 1, 1)
    by_definition = set()
    for code in product(*(range(slot.choices) for slot in space.slots)):
        same = [other for other in product(*(range(slot.choices) for slot in space.slots))
                if space.outer(other) == space.outer(code)]  # fmt: skip
        assert space.canonical(code) == min(same)
        by_definition.add(min(same))
    assert len({space.outer(code) for code in by_definition}) == len(by_definition)


def test_inner_is_the_inverse_of_outer_and_none_outside() -> None:
    whole = Layers()
    space = ShrunkSpace(whole, [(0, 2), (1, 3), (0, 2), (2, 3)])
    inside = {space.outer(code) for code in everything(space)}
    for code in everything(whole):
        found = space.inner(code)
        assert (found is not None) == (code in inside)
        assert found is None or (space.outer(found) == code and space.canonical(found) == found)
    assert space.inner((0, 1, 3, 3)) == (0, 0, 0, 0)  # widths without effect do not put it outside


def test_a_search_of_a_shrunk_space_evaluates_only_networks_of_it() -> None:
    space = shrink_space(Wide(), families())
    asked: list[Code] = []

    def evaluate(codes: Any) -> Any:
        asked.extend(space.outer(code) for code in codes)
        return np.array([[10 / (1 + sum(space.outer(code))), float(sum(space.outer(code)))] for code in codes])

    concurrent_nas(space, evaluate, budget=60, population=20, predicted=300)
    assert len(set(asked)) == 60
    assert all(code[0] == 3 and {code[1], code[2]} <= {0, 1, 4, 5} for code in asked)
