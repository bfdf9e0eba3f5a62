"""Posterior sampling of the front: the volume added, what it finds and in how many evaluations, journal, settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ontarget.errors import SettingError
from ontarget.search.genetic import hypervolume, non_dominated
from ontarget.search.posterior_front import posterior_front, volume_added
from ontarget.search.space import Code, Slot
from ontarget.testing.toy_space import ToySpace
from ontarget.values import Context

pytest.importorskip("pymoo")


class Widths(ToySpace):
    """A toy: five slots of four choices."""

    slots = tuple(Slot(f"width {at}", 4) for at in range(5))


NOISE = np.random.default_rng(0).normal(0, 0.01, (4,) * 5)


def latency(codes: Sequence[Code]) -> Any:
    return np.array([1.0 + sum(code) for code in codes])


def objectives(codes: Sequence[Code]) -> Any:
    """Errors fall with the widths, unevenly, and are measured with noise that is the same each time."""
    gains = np.array([0.08, 0.01, 0.05, 0.0, 0.02])
    errors = [0.5 - float(gains @ np.sqrt(code)) + NOISE[code] for code in codes]
    return np.stack([errors, latency(codes)], 1)


def test_the_volume_added_is_that_of_an_independent_library() -> None:
    generator = np.random.default_rng(1)
    for _ in range(20):
        there, points = generator.random((8, 2)), generator.random((15, 2)) * 1.3 - 0.1
        corner = there.max(0)
        before = hypervolume(there, corner)
        expected = [hypervolume(np.concatenate([there, point[None]]), corner) - before for point in points]
        np.testing.assert_allclose(volume_added(points, there, corner), expected, atol=1e-12)
    # By hand: a front of (1, 2) and (2, 1) up to (3, 3); (0, 0) adds all but the 3 that they cover.
    there = np.array([[1.0, 2.0], [2.0, 1.0]])
    found = volume_added(np.array([[0.0, 0.0], [1.5, 1.5], [2.5, 2.5], [2.0, 0.5]]), there, np.array([3.0, 3.0]))
    assert found.tolist() == [6.0, 0.25, 0.0, 0.5]


@pytest.mark.parametrize("candidates", [2000, 200])
def test_most_of_the_front_is_found_in_few_evaluations(candidates: int) -> None:
    """The space whole, and larger than the candidates. No random search of as many evaluations finds as much."""
    everything = [tuple(map(int, code)) for code in np.ndindex(*(4,) * 5)]
    table = objectives(everything)
    corner = table.max(0)
    whole = hypervolume(table[non_dominated(table)], corner)
    asked: list[Code] = []

    def evaluate(codes: Sequence[Code]) -> Any:
        asked.extend(codes)
        return objectives(codes)

    result = posterior_front(Widths(), evaluate, latency, budget=40, candidates=candidates, context=Context(seed=1))
    assert len(asked) == len(set(asked)) == 40 and result.codes == tuple(asked)
    share = hypervolume(result.values, corner) / whole
    generator = np.random.default_rng(0)
    random = [hypervolume(table[generator.permutation(len(table))[:40]], corner) / whole for _ in range(20)]
    assert share > 0.95 and share > max(random)
    again = posterior_front(Widths(), objectives, latency, budget=40, candidates=candidates, context=Context(seed=1))
    assert again.codes == result.codes


def test_a_killed_search_goes_on_from_its_journal_and_starts_where_it_is_told(tmp_path: Path) -> None:
    path, start = tmp_path / "evaluated.jsonl", [(3, 3, 3, 3, 3), (0, 0, 0, 0, 0)]
    whole = posterior_front(Widths(), objectives, latency, budget=20, start=start)
    assert list(whole.codes[:2]) == start
    left = 13

    def dying(codes: Sequence[Code]) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return objectives(codes)

    with pytest.raises(KeyboardInterrupt):
        posterior_front(Widths(), dying, latency, budget=20, start=start, journal=path)
    asked: list[Code] = []

    def evaluate(codes: Sequence[Code]) -> Any:
        asked.extend(codes)
        return objectives(codes)

    found = posterior_front(Widths(), evaluate, latency, budget=20, start=start, journal=path)
    assert found.codes == whole.codes and len(asked) == 7


def test_settings_out_of_range_are_refused() -> None:
    for settings in ({"first": 3}, {"first": 30}, {"batch": 0}, {"candidates": 20}):
        with pytest.raises(SettingError, match="first is"):
            posterior_front(Widths(), objectives, latency, budget=20, **settings)  # type: ignore[arg-type]
