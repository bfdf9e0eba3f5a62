"""What fine-tuning is planned to cost: steps and seconds that fit the budget."""

import numpy as np
import pytest

from ontarget.adapt.tune.contrastive import default_steps
from ontarget.plan.tuning import contrastive_steps, predicted_seconds, search_space, tuning_plan
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


def test_time_is_kept_for_training_again_unless_nothing_could_be_trained_beside_it() -> None:
    data = text_data(850, 10, held=150)
    space = search_space(data, [("zoo:minilm", "full")])
    costs = {"zoo:minilm|full": {"seconds_per_epoch": 10.0}}
    full_s = predicted_seconds(costs, data, Recipe("zoo:minilm", "finetune", {"mode": "full"}), space.total_epochs)
    plan = tuning_plan(costs, space, data, left_s=500, refits=True)
    assert plan["refit_s"] == pytest.approx(full_s * 1000 / 850)
    assert plan["budget_s"] == pytest.approx(500 - plan["refit_s"])
    assert tuning_plan(costs, space, data, left_s=500, refits=False) == {"budget_s": 500, "refit_s": 0.0}
    assert tuning_plan(costs, space, data, left_s=1.5 * full_s, refits=True) == {
        "budget_s": 1.5 * full_s,
        "refit_s": 0.0,
    }
    assert tuning_plan(costs, space, data, left_s=-3.0, refits=True)["budget_s"] == 0.0
