"""What fine-tuning is planned to cost: steps and seconds that fit the budget."""

from dataclasses import replace

import numpy as np
import pytest

from ontarget.adapt.tune.contrastive import default_steps
from ontarget.plan.few_labels import contrastive_steps, few_label_recipes, guessed_rows
from ontarget.plan.reserve import judging_seconds, reserved_seconds
from ontarget.plan.tuning import predicted_seconds, search_space, tuning_plan, within_reach
from ontarget.values import Examples, Recipe, TargetData


def text_data(rows: int, classes: int, held: int = 0) -> TargetData:
    """``held`` validation rows; with none the data is cross-fitted in 5 folds."""
    targets = np.arange(rows + held) % classes
    every = Examples([f"text {row}" for row in range(rows + held)], targets, np.arange(rows + held))
    train = every.take(np.arange(rows))
    names = tuple(f"c{number}" for number in range(classes))
    folds = np.zeros(0, dtype=np.int64) if held else np.arange(rows) % 5
    validation = every.take(np.arange(rows, rows + held)) if held else train
    return TargetData("text", "classification", "accuracy", names, train, validation, train, train, "f", folds)


def test_steps_grow_with_the_classes_and_shrink_with_the_budget() -> None:
    assert [default_steps(classes) for classes in (2, 3, 7, 11, 50)] == [2, 4, 12, 20, 20]
    data = text_data(80, 10)
    assert contrastive_steps(data, 0.001, 600) == 18
    # 80 rows, 5 models, 1.5 passes of 10 ms, 1.2 for safety: 7.2 s a step; 15 s are a quarter of a minute's budget.
    assert contrastive_steps(data, 0.01, 60) == 2
    assert contrastive_steps(data, 0.01, 300) == 9
    assert contrastive_steps(data, 100.0, 1) == 2


def test_unlabelled_rows_are_used_where_there_are_enough_and_features_fit_the_budget() -> None:
    data = replace(text_data(80, 10), unlabelled=text_data(5000, 10).train)
    assert guessed_rows(data, 0.001, 600) == 2000
    assert guessed_rows(data, 0.1, 600) == 600
    assert guessed_rows(data, 1.0, 60) == 0
    assert guessed_rows(replace(data, unlabelled=text_data(40, 10).train), 0.001, 600) == 0
    methods = [recipe.method for recipe in few_label_recipes(data, "zoo:minilm", 0.001, 600)]
    assert methods == ["self_training", "contrastive"]
    held_out = replace(text_data(80, 10, held=20), unlabelled=data.unlabelled.take([]))
    assert few_label_recipes(held_out, "zoo:minilm", 0.001, 600) == []


def seconds(data: TargetData, epochs: int, epoch_s: float) -> float:
    costs = {"zoo:minilm|full": {"seconds_per_epoch": epoch_s}}
    return predicted_seconds(costs, data, Recipe("zoo:minilm", "finetune", {"mode": "full"}), epochs)


def test_time_is_kept_for_training_again_unless_nothing_could_be_trained_beside_it() -> None:
    data = text_data(850, 10, held=150)
    costs = {"zoo:minilm|full": {"seconds_per_epoch": 10.0}}
    full_s = seconds(data, 6, 10.0)
    plan = tuning_plan(costs, data, left_s=500, refits=True)
    assert plan["starts"] == [["zoo:minilm", "full"]] and plan["total_epochs"] == 6
    assert plan["refit_s"] == pytest.approx(full_s * 1000 / 850)
    assert plan["budget_s"] == pytest.approx(500 - plan["refit_s"])
    assert tuning_plan(costs, data, left_s=500, refits=False)["budget_s"] == 500
    tight = tuning_plan(costs, data, left_s=1.5 * full_s, refits=True)
    assert (tight["budget_s"], tight["refit_s"], tight["total_epochs"]) == (1.5 * full_s, 0.0, 6)


def test_what_could_not_be_trained_to_its_end_is_left_out_and_epochs_shrink_before_nothing_is_tried() -> None:
    data = text_data(850, 10, held=150)
    costs = {name: {"seconds_per_epoch": epoch_s} for name, epoch_s in (("large|full", 100.0), ("small|full", 10.0))}
    assert tuning_plan(costs, data, left_s=500, refits=True)["starts"] == [["small", "full"]]
    assert len(tuning_plan(costs, data, left_s=5000, refits=True)["starts"]) == 2
    short = tuning_plan(costs, data, left_s=seconds(data, 3, 10.0), refits=True)
    assert (short["starts"], short["total_epochs"], short["refit_s"]) == ([["small", "full"]], 3, 0.0)
    assert tuning_plan(costs, data, left_s=seconds(data, 1, 10.0), refits=False)["total_epochs"] == 1
    nothing = tuning_plan(costs, data, left_s=-3.0, refits=True)
    assert (nothing["starts"], nothing["budget_s"]) == ([], 0.0)


def test_sources_out_of_reach_are_not_measured() -> None:
    data = text_data(850, 10, held=150)
    cost = {"large": 0.1, "middle": 0.02, "small": 0.01}  # 2 x 850 x 6 passes: 1020, 204 and 102 s
    assert within_reach(["large", "middle", "small"], cost, data, left_s=300, count=2) == ["middle", "small"]
    assert within_reach(["large", "middle", "small"], cost, data, left_s=3000, count=2) == ["large", "middle"]
    assert within_reach(["large", "middle"], cost, data, left_s=5, count=2) == ["middle"]


def test_time_is_kept_for_the_test_rows() -> None:
    data = text_data(850, 10, held=150)  # tested on its 850 training rows
    assert reserved_seconds(data, 0.0, 600) == 90
    assert judging_seconds(data, 0.1) == pytest.approx(0.1 * (2 * 128 + 2 * 850))
    assert reserved_seconds(data, 0.1, 600) == pytest.approx(20 + 0.1 * 4 * 150 + judging_seconds(data, 0.1))


def test_the_space_holds_the_given_starts() -> None:
    space = search_space(text_data(850, 10, held=150), [("zoo:minilm", "lora")], 3)
    assert space.total_epochs == 3 and [recipe.settings["mode"] for recipe in space.defaults] == ["lora"]
