import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ontarget.plan.halving import Rung, SearchSpace, bracket_epochs, rungs, tune
from ontarget.plan.run_folder import RunFolder
from ontarget.values import Recipe


def space(epochs: int = 4) -> SearchSpace:
    starts = (("a", "full"), ("a", "lora"), ("b", "full"))
    defaults = tuple(Recipe(source, "finetune", {"mode": mode, "size": 8, "rate": 1e-3}) for source, mode in starts)
    return SearchSpace(defaults, starts, {"size": (8, 16)}, {"rate": (0.01, 100.0)}, epochs)


def quality(recipe: Recipe, mark: int) -> float:
    """Best at rate 1e-2, growing with epochs: a stand-in whose optimum is known."""
    return -abs(math.log10(recipe.settings["rate"]) + 2) + 0.01 * mark + (0.5 if recipe.source == "b" else 0.0)


class Recorder:
    """Runs rungs by formula and keeps a list of what was run, as a trainer would be asked to."""

    def __init__(self, stop_after: int | None = None, seconds: float = 10.0) -> None:
        self.ran: list[tuple[int, int]] = []
        self.recipes: dict[int, Recipe] = {}
        self.stop_after, self.seconds = stop_after, seconds

    def __call__(self, numbered, mark, last):  # type: ignore[no-untyped-def]
        results = {}
        for number, recipe in numbered:
            if self.stop_after is not None and len(self.ran) >= self.stop_after:
                raise KeyboardInterrupt
            self.ran.append((number, mark))
            self.recipes[number] = recipe
            results[number] = Rung(quality(recipe, mark), True, self.seconds * mark)
        return results


def run(folder: Path, recorder: Recorder, *, budget_s: float = 400.0, epochs: int = 4) -> str:
    return tune(
        RunFolder(folder), space(epochs), predicted_s=lambda recipe, epochs: 10.0 * epochs, run_rung=recorder,
        first_number=5, budget_s=budget_s, out_of_time=lambda: False, seed=0,
    )  # fmt: skip


@pytest.mark.parametrize(("epochs", "expected"), [(1, (1,)), (2, (2,)), (4, (2, 4)), (12, (3, 6, 12))])
def test_rungs_by_hand(epochs: int, expected: tuple[int, ...]) -> None:
    assert rungs(epochs) == expected


@given(st.integers(1, 200), st.integers(1, 16))
def test_bracket_epochs_are_those_of_its_rungs(epochs: int, count: int) -> None:
    reached = bracket_epochs(count, epochs)
    assert len(reached) == count
    assert reached[0] == epochs
    assert list(reached) == sorted(reached, reverse=True)
    assert set(reached) <= set(rungs(epochs))


def test_defaults_come_first_and_the_better_half_goes_on(tmp_path: Path) -> None:
    recorder = Recorder()
    run(tmp_path, recorder, budget_s=70)
    first = [number for number, mark in recorder.ran if mark == 2]
    assert [recorder.recipes[number].settings["mode"] for number in first] == ["full", "lora"]
    assert [entry for entry in recorder.ran if entry[1] == 4] == [(5, 4)]


def test_measured_seconds_correct_the_predictions(tmp_path: Path) -> None:
    """Predicted: 10 s an epoch. Twice as fast, more brackets fit in the same budget; twice as slow, fewer."""
    ran = {}
    for seconds in (5.0, 10.0, 20.0):
        recorder = Recorder(seconds=seconds)
        (tmp_path / str(seconds)).mkdir()
        run(tmp_path / str(seconds), recorder, budget_s=400)
        ran[seconds] = len(recorder.recipes)
    assert ran[5.0] > ran[10.0] > ran[20.0]


def test_recipes_that_fail_at_once_say_nothing_of_costs(tmp_path: Path) -> None:
    """They take no time; the next bracket is still expected to take what it was predicted to."""
    asked = []

    def failing(numbered, mark, last):  # type: ignore[no-untyped-def]
        asked.append(len(numbered))
        return {number: Rung(-math.inf, False, 0.0) for number, _ in numbered}

    reason = tune(
        RunFolder(tmp_path), space(), predicted_s=lambda recipe, epochs: 10.0 * epochs, run_rung=failing,
        first_number=0, budget_s=90, out_of_time=lambda: False, seed=0,
    )  # fmt: skip
    assert asked == [3, 3] and "nothing better" in reason


def test_rates_are_factors_of_the_default_of_the_start(tmp_path: Path) -> None:
    recorder = Recorder()
    run(tmp_path, recorder, budget_s=2000)
    first, *others = [recorder.recipes[number].settings["rate"] for number in sorted(recorder.recipes)]
    assert first == pytest.approx(1e-3)
    assert all(1e-5 <= rate <= 1e-1 for rate in others) and len(set(others)) > 4


def test_predicted_budget_is_never_exceeded(tmp_path: Path) -> None:
    recorder = Recorder()
    reason = run(tmp_path, recorder, budget_s=400)
    trained = {}
    for number, mark in recorder.ran:
        trained[number] = mark
    assert sum(10.0 * mark for mark in trained.values()) <= 400
    assert reason


def test_no_budget_runs_nothing(tmp_path: Path) -> None:
    recorder = Recorder()
    assert "needs about" in run(tmp_path, recorder, budget_s=5)
    assert recorder.ran == []


@pytest.mark.parametrize("stop_after", [0, 1, 2, 3, 5, 8])
def test_a_killed_search_proposes_the_same_recipes_when_it_goes_on(tmp_path: Path, stop_after: int) -> None:
    undisturbed = Recorder()
    run(tmp_path / "a", undisturbed) if (tmp_path / "a").mkdir() is None else None
    (tmp_path / "b").mkdir()
    killed = Recorder(stop_after)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", killed)
    again = Recorder()
    run(tmp_path / "b", again)
    assert again.recipes == undisturbed.recipes


def test_patience_ends_a_search_without_progress(tmp_path: Path) -> None:
    def flat(numbered, mark, last):  # type: ignore[no-untyped-def]
        return {number: Rung(0.5, True, 1.0) for number, _ in numbered}

    reason = tune(
        RunFolder(tmp_path), space(), predicted_s=lambda recipe, epochs: 1.0, run_rung=flat, first_number=0,
        budget_s=1e9, out_of_time=lambda: False, seed=0,
    )  # fmt: skip
    assert "nothing better" in reason


def test_failed_recipes_do_not_go_on(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def failing(numbered, mark, last):  # type: ignore[no-untyped-def]
        seen.extend((number, mark) for number, _ in numbered)
        return {number: Rung(-math.inf, False, 1.0) for number, _ in numbered}

    tune(
        RunFolder(tmp_path), space(), predicted_s=lambda recipe, epochs: 1.0, run_rung=failing, first_number=0,
        budget_s=1e9, out_of_time=lambda: False, seed=0,
    )  # fmt: skip
    assert {mark for _, mark in seen} == {2}


def test_a_bracket_that_is_too_long_loses_its_costliest_recipes(tmp_path: Path) -> None:
    recorder = Recorder()
    per_epoch = {"full": 100.0, "lora": 1.0}
    tune(
        RunFolder(tmp_path), space(), predicted_s=lambda recipe, epochs: per_epoch[recipe.settings["mode"]] * epochs,
        run_rung=recorder, first_number=0, budget_s=30, out_of_time=lambda: False, seed=0,
    )  # fmt: skip
    assert recorder.recipes and {recipe.settings["mode"] for recipe in recorder.recipes.values()} == {"lora"}
