"""What a search takes over: fronts of each earlier search, a space cut down, and why not, decided once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ontarget.errors import RunError, SettingError
from ontarget.search.population_store import PopulationStore, Visited, describe_space
from ontarget.search.shrink_space import ShrunkSpace
from ontarget.search.space import Code, Slot, count
from ontarget.search.take_over import Earlier, TakenOver, fronts, short, take_over
from ontarget.testing.toy_space import ToySpace

SETTING = {"runtime": "onnxruntime", "threads": 1, "batch_size": 1, "precision": "float32"}


class Widths(ToySpace):
    """A toy of four widths."""

    slots = tuple(Slot(f"width {at}", 6, tuple("abcdef")) for at in range(4))


def families() -> list[Code]:
    """Two clusters, near (0, 0) and (4, 4) in the first two widths; all choices of the others."""
    return [(first + near, second + near, third, fourth)
            for near in (0, 4) for first in (0, 1) for second in (0, 1)
            for third in range(6) for fourth in range(6)]  # fmt: skip


def visited(codes: list[Code], values: Any = None, **more: Any) -> Visited:
    values = np.array([[1 - sum(code) / 24, float(sum(code))] for code in codes]) if values is None else values
    return Visited("file", "a processor", SETTING, tuple(codes), np.array(values, dtype=float), **more)


def store(tmp_path: Path) -> Earlier:
    return Earlier(store=PopulationStore(tmp_path))


def test_each_search_gives_its_own_front_in_turn() -> None:
    a, b, c = (0, 0, 0, 0), (1, 0, 0, 0), (2, 0, 0, 0)
    one = visited([a, b, c], [[0.5, 1], [0.2, 3], [0.6, 2]])  # c is dominated
    two = visited([c, b], [[0.9, 9], [0.95, 10]])  # far worse than any of the first, but there c is the front
    assert fronts([one, two]) == [b, c, a]
    assert fronts([visited([], np.zeros((0, 2)))]) == []


def test_known_choices_are_dropped_and_told(tmp_path: Path) -> None:
    taken = take_over(Widths(), store(tmp_path), [visited(families()), visited(families()[:60])])
    assert taken.kept == ((0, 1, 4, 5), (0, 1, 4, 5), tuple(range(6)), tuple(range(6)))
    assert taken.dropped == (("width 0", ("c", "d")), ("width 1", ("c", "d")))
    assert taken.visited == 288 and taken.configurations == 6**4 and taken.reduced_to == 16 * 36
    space = taken.space(Widths())
    assert isinstance(space, ShrunkSpace) and count(space) == 16 * 36
    lines = taken.lines()
    assert "width 0: c; d dropped" in lines and "1,296 -> 576 configurations" in lines
    assert "288 networks that 2 earlier search(es) visited" in lines[0]
    assert lines[1] == "from a processor, onnxruntime float32, 1 thread(s), batch 1, 288 networks (file)"
    assert TakenOver.from_json(json.loads(json.dumps(taken.to_json()))) == taken


def test_networks_outside_the_space_cut_down_do_not_start_the_search(tmp_path: Path) -> None:
    stray = (3, 3, 5, 5)
    values = [[0.5, 5.0]] * 288 + [[0.1, 1.0]]  # the stray is the whole front
    taken = take_over(Widths(), store(tmp_path), [visited([*families(), stray], values)])
    assert taken.kept is not None and taken.start == ()
    whole = take_over(
        Widths(), Earlier(store=PopulationStore(tmp_path), whole_space=True), [visited([*families(), stray], values)]
    )
    assert whole.kept is None and whole.start == (stray,) and "the whole space is asked for" in whole.lines()[-1]


def test_why_nothing_is_dropped_is_said(tmp_path: Path) -> None:
    few = take_over(Widths(), store(tmp_path), [visited(families()[:49])])
    assert few.kept is None and few.reduced_to == few.configurations == 1296 and few.start
    assert few.lines()[-1] == ("No choice is dropped: 49 different networks were visited, and a cluster needs 50.")
    none = take_over(Widths(), store(tmp_path), [], others=3)
    assert none.lines() == [
        "No choice is dropped: the store holds nothing of this space and these data yet "
        "(searches of other spaces, data or splits: 3)."
    ]
    generator = np.random.default_rng(0)
    drawn = [tuple(map(int, generator.integers(0, 6, 4))) for _ in range(120)]
    assert "forms no clusters" in take_over(Widths(), store(tmp_path), [visited(drawn)]).reason
    slow = take_over(Widths(), store(tmp_path), [visited(families())], within=lambda space: False)
    assert slow.kept is None and slow.start and "no network within the latency limit" in slow.reason
    assert take_over(Widths(), Earlier(), []).lines() == []


def test_given_codes_come_first_and_are_checked() -> None:
    earlier = Earlier(codes=((5, 5, 5, 5),))
    assert take_over(Widths(), earlier, []).start == ((5, 5, 5, 5),)
    with pytest.raises(SettingError, match="Slot 'width 3' is 6"):
        Earlier(codes=((5, 5, 5, 6),)).read(Widths(), {"name": "widths"}, "task")


def test_a_search_that_is_given_twice_is_taken_once(tmp_path: Path) -> None:
    earlier = Earlier(folders=(tmp_path / "one",), store=PopulationStore(tmp_path / "store"))
    (tmp_path / "one").mkdir()
    rows = [{"code": [0, 1, 2, 3], "quality": 0.5, "predicted_ms": 1.0}]
    (tmp_path / "one" / "search.json").write_text(json.dumps({"space": "widths", "evaluated": rows}))
    described = describe_space(Widths(), "widths")
    assert earlier.store is not None
    writer = earlier.store.writer(described, "task", "a", device={}, setting=SETTING)
    writer.write([(0, 1, 2, 3)], np.array([[0.5, 1.0]]))
    assert [one.origin for one in earlier.read(Widths(), described, "task")] == [str(tmp_path / "one")]
    writer.write([(0, 1, 2, 3), (0, 0, 0, 0)], np.array([[0.5, 1.0]] * 2))
    assert len(earlier.read(Widths(), described, "task")) == 2


def test_a_search_goes_on_with_the_start_that_it_began_with(tmp_path: Path) -> None:
    taken = TakenOver(kept=((0,),), folders=(str((tmp_path / "a").resolve()),))
    taken.check_asked(Earlier(), tmp_path)
    taken.check_asked(Earlier(folders=(tmp_path / "a",)), tmp_path)
    with pytest.raises(RunError, match="goes on as it began, with another --warm-start"):
        taken.check_asked(Earlier(folders=(tmp_path / "b",)), tmp_path)
    with pytest.raises(RunError, match="--whole-space"):
        taken.check_asked(Earlier(whole_space=True), tmp_path)


def test_the_own_folder_is_no_earlier_search_and_no_store(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="the search's own folder") as raised:
        Earlier(folders=(tmp_path,)).check(tmp_path)
    assert raised.value.option == "--warm-start"
    with pytest.raises(SettingError, match="the search's own folder") as raised:
        store(tmp_path).check(tmp_path)
    assert raised.value.option == "--store"


def test_counts_are_short() -> None:
    assert [short(number) for number in (840, 99_999, 1_200_000_000, 10**19)] == ["840", "99,999", "1.2e9", "1.0e19"]
