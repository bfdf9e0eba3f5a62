"""Expected hypervolume: the expectation by simulation, what it finds in how few evaluations, journal, settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ontarget.errors import SettingError
from ontarget.search.expected_hypervolume import expected_hypervolume, expected_volume
from ontarget.search.genetic import hypervolume, non_dominated
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


def added(there: Any, point: Any, corner: Any) -> float:
    return hypervolume(np.concatenate([there, [point]]), corner) - hypervolume(there, corner)


def test_the_expected_volume_is_that_of_drawn_errors_and_of_an_independent_library() -> None:
    generator = np.random.default_rng(1)
    for _ in range(5):
        there, corner = generator.random((8, 2)), np.array([0.9, 0.95])
        mean, deviation, latencies = generator.random(3), generator.uniform(0.05, 0.3, 3), generator.random(3) * 1.2
        found = expected_volume(mean, deviation, latencies, there, corner)
        for at in range(3):
            errors = mean[at] + deviation[at] * generator.normal(size=2000)
            drawn = [added(there, (error, latencies[at]), corner) for error in errors]
            assert found[at] == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / 2000**0.5 + 1e-9)


def test_the_expected_volume_of_a_sure_error_by_hand() -> None:
    # A front of (1, 2) and (2, 1) up to (3, 3); (0, 0) adds all but the 3 that they cover.
    there, errors = np.array([[1.0, 2.0], [2.0, 1.0]]), np.array([0.0, 1.5, 2.5, 2.0])
    found = expected_volume(errors, np.full(4, 1e-9), np.array([0.0, 1.5, 2.5, 0.5]), there, np.array([3.0, 3.0]))
    np.testing.assert_allclose(found, [6.0, 0.25, 0.0, 0.5], atol=1e-6)


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

    result = expected_hypervolume(
        Widths(), evaluate, latency, budget=40, candidates=candidates, context=Context(seed=1)
    )
    assert len(asked) == len(set(asked)) == 40 and result.codes == tuple(asked)
    share = hypervolume(result.values, corner) / whole
    generator = np.random.default_rng(0)
    random = [hypervolume(table[generator.permutation(len(table))[:40]], corner) / whole for _ in range(20)]
    assert share > 0.95 and share > max(random)
    again = expected_hypervolume(
        Widths(), objectives, latency, budget=40, candidates=candidates, context=Context(seed=1)
    )
    assert again.codes == result.codes


def test_a_table_that_is_off_is_learned_from_what_is_measured() -> None:
    """Latencies that the table has half as long for wide networks: the front is found all the same."""
    everything = [tuple(map(int, code)) for code in np.ndindex(*(4,) * 5)]
    table = objectives(everything)
    corner = table.max(0)
    whole = hypervolume(table[non_dominated(table)], corner)

    def told(codes: Sequence[Code]) -> Any:
        return latency(codes) * np.array([0.5 if code[0] >= 2 else 1.0 for code in codes])

    found = expected_hypervolume(Widths(), objectives, told, budget=40, context=Context(seed=1))
    assert hypervolume(found.values, corner) / whole > 0.95
    assert found.values[:, 1].tolist() == latency(found.codes).tolist()


def test_with_a_limit_networks_within_it_are_looked_for() -> None:
    everything = [tuple(map(int, code)) for code in np.ndindex(*(4,) * 5)]
    table = objectives(everything)
    best = table[table[:, 1] <= 6, 0].min()
    found = [
        expected_hypervolume(Widths(), objectives, latency, budget=30, limit=limit, context=Context(seed=2)).values
        for limit in (6.0, None)
    ]
    assert (found[0][10:, 1] <= 6).all() and (found[1][10:, 1] > 6).any()
    missed = [values[values[:, 1] <= 6, 0].min() - best for values in found]
    assert missed[0] <= missed[1] and missed[0] < 0.02
    # None of the first is within it: the fastest there is comes next.
    values = expected_hypervolume(Widths(), objectives, latency, budget=11, limit=1.0, context=Context(seed=3)).values
    assert values[:10, 1].min() > 1 and values[10, 1] == 1.0


def test_a_killed_search_goes_on_from_its_journal_and_starts_where_it_is_told(tmp_path: Path) -> None:
    path, start = tmp_path / "evaluated.jsonl", [(3, 3, 3, 3, 3), (0, 0, 0, 0, 0)]
    whole = expected_hypervolume(Widths(), objectives, latency, budget=20, start=start)
    assert list(whole.codes[:2]) == start
    left = 13

    def dying(codes: Sequence[Code]) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return objectives(codes)

    with pytest.raises(KeyboardInterrupt):
        expected_hypervolume(Widths(), dying, latency, budget=20, start=start, journal=path)
    asked: list[Code] = []

    def evaluate(codes: Sequence[Code]) -> Any:
        asked.extend(codes)
        return objectives(codes)

    found = expected_hypervolume(Widths(), evaluate, latency, budget=20, start=start, journal=path)
    assert found.codes == whole.codes and len(asked) == 7


def test_settings_out_of_range_are_refused() -> None:
    for settings in ({"first": 3}, {"first": 30}, {"candidates": 9}):
        with pytest.raises(SettingError, match="first is"):
            expected_hypervolume(Widths(), objectives, latency, budget=20, **settings)  # type: ignore[arg-type]
