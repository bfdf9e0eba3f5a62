"""What few labels allow on the source of the best head: guesses for unlabelled rows, contrast of pairs."""

from __future__ import annotations

from ontarget.plan.tuning import SAFETY
from ontarget.values import Recipe, TargetData

GUESSED_ROWS = 2000  # unlabelled rows for self-training, at most (choice)
FEWEST_GUESSED = 50  # and at least, or a quarter of the labelled ones: fewer cannot matter (choice)


def few_label_recipes(data: TargetData, source: str, seconds_per_row: float, budget_s: float) -> list[Recipe]:
    """Recipes on ``source``, an encoder with ``seconds_per_row`` of one forward pass, that fit the budget."""
    if data.kind != "classification":
        return []
    recipes = []
    if rows := guessed_rows(data, seconds_per_row, budget_s):
        recipes.append(Recipe(source, "self_training", {"rows": rows}))
    if data.modality == "text" and len(data.folds):
        recipes.append(Recipe(source, "contrastive", {"steps": contrastive_steps(data, seconds_per_row, budget_s)}))
    return recipes


def guessed_rows(data: TargetData, seconds_per_row: float, budget_s: float) -> int:
    """Unlabelled rows that self-training may use: features for a tenth of the budget; 0 where too few are left."""
    rows = min(len(data.unlabelled), GUESSED_ROWS, int(0.1 * budget_s / max(seconds_per_row, 1e-9)))
    return rows if rows >= max(FEWEST_GUESSED, len(data.train) // 4) else 0


def contrastive_steps(data: TargetData, seconds_per_row: float, budget_s: float) -> int:
    """Steps of few-label contrastive tuning: its default, or half of it, or a quarter, ... that fits a quarter of the
    budget, at least 2. Halves, so that a little noise in the measured seconds changes nothing.

    seconds_per_row: of one forward pass. A step costs about 1.5 of them a row (half of the layers, forwards and
    backwards); every fold but one is trained on, and then all rows.
    """
    from ontarget.adapt.tune.contrastive import default_steps

    rows = len(data.train) * len(set(data.folds.tolist()))
    step_s = SAFETY * 1.5 * rows * seconds_per_row
    steps = default_steps(data.outputs)
    while steps > 2 and steps * step_s > 0.25 * budget_s:
        steps //= 2
    return max(2, steps)
