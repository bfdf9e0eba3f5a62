"""ConcurrentNAS: predictors, genetic search, fronts and their volume, warm start, journal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ontarget.errors import DataError, RunError, SettingError
from ontarget.search.concurrent_nas import concurrent_nas
from ontarget.search.genetic import genetic_search, hypervolume, non_dominated
from ontarget.search.importance import importance
from ontarget.search.predictor import ALPHAS, fit_predictor, power_of_ten
from ontarget.search.space import Code, Slot, check_code, count, one_hot
from ontarget.testing.toy_space import ToySpace

pytest.importorskip("pymoo")


class Layers(ToySpace):
    """A toy: depth 1 to 3, a width of 4 choices in each layer. Quality and time grow with the widths."""

    slots = (Slot("depth", 3), *(Slot(f"width {at}", 4) for at in range(3)))

    def canonical(self, code: Code) -> Code:
        return (code[0], *(value if at <= code[0] else 0 for at, value in enumerate(code[1:])))


def objectives(codes: Sequence[Code]) -> Any:
    """Error falls with width and depth, unevenly; time is linear."""
    rows = []
    for code in codes:
        widths = [1 + value for at, value in enumerate(code[1:]) if at <= code[0]]
        rows.append([10 / (1 + sum(np.sqrt(widths) * (1, 2, 0.5)[: len(widths)])), 0.5 + sum(widths)])
    return np.array(rows, dtype=float)


def everything(space: Any) -> list[Code]:
    codes = {space.canonical(code) for code in np.ndindex(*(slot.choices for slot in space.slots))}
    return sorted(codes)


def test_features_are_one_hot_and_empty_where_a_slot_has_no_effect() -> None:
    space = Layers()
    features = one_hot(space, [(0, 2, 0, 0), (2, 0, 3, 1), (0, 2, 3, 3)])
    assert features.shape == (3, 3 + 4 * 3)
    assert features[0].sum() == 2  # depth and the one width
    assert np.array_equal(features[0], features[2])  # the same network
    assert features[1].tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0]
    assert count(space) == 192 and len(everything(space)) == 4 + 16 + 64
    with pytest.raises(SettingError, match="Slot 'width 1' is 4"):
        check_code(space, (0, 0, 4, 0))
    with pytest.raises(SettingError, match="has 2 integers"):
        check_code(space, (0, 0))


def test_ridge_grid_equals_scikit_learn() -> None:
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV, KFold

    generator = np.random.default_rng(0)
    features = (generator.random((40, 12)) < 0.4).astype(float)
    labels = 300 * (2 + features @ generator.normal(size=12) + 0.3 * generator.normal(size=40))
    found = fit_predictor(features, labels, seed=3)
    search = GridSearchCV(
        Ridge(), {"alpha": ALPHAS}, cv=KFold(5, shuffle=True, random_state=3),
        scoring="neg_mean_absolute_percentage_error",
    ).fit(features, labels / power_of_ten(labels))  # fmt: skip
    assert found.tried["ridge"] == pytest.approx(-search.best_score_, rel=1e-6)
    if found.kind == "ridge":
        assert found.model.alpha == pytest.approx(search.best_params_["alpha"])
    assert power_of_ten(np.array([0.02, 0.07])) == pytest.approx(0.01)
    assert power_of_ten(np.array([-450.0, 3.0])) == 100
    with pytest.raises(DataError, match="4 networks"):
        fit_predictor(features[:4], labels[:4])


def test_a_curved_objective_is_left_to_support_vectors() -> None:
    generator = np.random.default_rng(1)
    features = (generator.random((120, 6)) < 0.5).astype(float)
    labels = 1 + 5 * np.logical_xor(features[:, 0], features[:, 1]) + 3 * np.logical_xor(features[:, 2], features[:, 3])
    found = fit_predictor(features, labels)
    assert found.kind == "svr" and found.tried["svr"] < found.tried["ridge"]
    assert np.allclose(found(features), labels, atol=0.6)


def test_front_and_volume_by_hand() -> None:
    values = np.array([[1.0, 4.0], [2.0, 2.0], [3.0, 3.0], [4.0, 1.0], [2.0, 2.0], [4.0, 4.0]])
    assert non_dominated(values).tolist() == [0, 1, 3]
    # Up to (5, 5): 4 x 1 + 3 x 2 + 1 x 1 = 11, by hand.
    assert hypervolume(values, np.array([5.0, 5.0])) == pytest.approx(4 * 1 + 3 * 2 + 1 * 1)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_genetic_search_approaches_the_true_front(number: int) -> None:
    space = Layers()

    def evaluate(codes: Sequence[Code]) -> Any:
        both = objectives(codes)
        third = np.array([[float(sum(code) % 3)] for code in codes])
        return np.hstack([both, third])[:, :number] if number > 1 else both[:, :1] + 0.2 * both[:, 1:]

    found = genetic_search(space, evaluate, objectives=number, population=20, evaluations=800, seed=0)
    assert len(found) == len(set(found)) and all(space.canonical(code) == code for code in found)
    codes = everything(space)
    values = evaluate(codes)
    if number == 1:
        assert evaluate(found).min() == pytest.approx(values.min())
    else:
        corner = values.max(axis=0) + 1
        assert hypervolume(evaluate(found), corner) >= 0.97 * hypervolume(values, corner)


def test_search_finds_the_front_and_asks_for_each_network_once(tmp_path: Path) -> None:
    space, asked = Layers(), []

    def evaluate(codes: Sequence[Code]) -> Any:
        asked.extend(codes)
        return objectives(codes)

    found = concurrent_nas(space, evaluate, budget=45, population=15, predicted=300)
    assert len(asked) == len(set(asked)) == len(found.codes) == 45
    corner = objectives(everything(space)).max(axis=0) + 1
    whole = hypervolume(objectives(everything(space)), corner)
    assert hypervolume(found.values, corner) >= 0.97 * whole
    volumes = [row["hypervolume"] for row in found.history]
    assert volumes == sorted(volumes) and [row["evaluations"] for row in found.history] == [15, 30, 45]
    assert found.last_population == found.codes[30:]
    assert concurrent_nas(space, objectives, budget=45, population=15, predicted=300).codes == found.codes


def test_a_warm_start_comes_first_and_a_small_space_ends_the_search() -> None:
    space = Layers()
    start = [(2, 3, 3, 3), (0, 1, 2, 3)]
    found = concurrent_nas(space, objectives, budget=200, population=20, predicted=200, start=start)
    assert found.codes[:2] == ((2, 3, 3, 3), (0, 1, 0, 0))
    assert len(found.codes) == len(everything(space)) == 84


def test_a_space_smaller_than_a_predictor_needs_is_evaluated_whole() -> None:
    class Four(Layers):
        slots = (Slot("depth", 1), Slot("width 0", 4), *(Slot(f"width {at}", 1) for at in (1, 2)))

    found = concurrent_nas(Four(), objectives, budget=40, population=20, predicted=200)
    assert sorted(found.codes) == [(0, width, 0, 0) for width in range(4)]


def test_a_killed_search_goes_on_from_its_journal(tmp_path: Path) -> None:
    space, journal = Layers(), tmp_path / "evaluated.jsonl"
    whole = concurrent_nas(space, objectives, budget=30, population=10, predicted=150)
    calls = 0

    def dying(codes: Sequence[Code]) -> Any:
        nonlocal calls
        calls += 1
        if calls == 17:
            raise KeyboardInterrupt
        return objectives(codes)

    with pytest.raises(KeyboardInterrupt):
        concurrent_nas(space, dying, budget=30, population=10, predicted=150, journal=journal)
    with open(journal, "a") as file:
        file.write('{"code": [0, 1')  # a line that the kill cut
    again = []

    def counting(codes: Sequence[Code]) -> Any:
        again.extend(codes)
        return objectives(codes)

    found = concurrent_nas(space, counting, budget=30, population=10, predicted=150, journal=journal)
    assert found.codes == whole.codes and np.allclose(found.values, whole.values)
    assert len(again) == 14
    assert len(journal.read_text().splitlines()) == 31
    journal.write_text(json.dumps({"slots": [["other", 2]], "objectives": 2}) + "\n")
    with pytest.raises(RunError, match="journal of another search"):
        concurrent_nas(space, objectives, budget=40, population=10, journal=journal)


def test_bad_settings_and_values_are_named() -> None:
    space = Layers()
    with pytest.raises(SettingError, match="objectives is 4"):
        concurrent_nas(space, objectives, objectives=4)
    with pytest.raises(SettingError, match="nan"):
        concurrent_nas(space, lambda codes: np.full((len(codes), 2), np.nan), budget=20, population=10)


def test_importance_tells_what_matters() -> None:
    space = Layers()
    codes = everything(space)
    values = np.array([1.0 * code[0] + 0.1 * code[1] for code in codes])
    found = importance(space, codes, values)
    assert found[0]["slot"] == "depth" and found[0]["spread"] > 3 * found[1]["spread"]
    assert list(found[0]["effects"]) == ["0", "1", "2"]
