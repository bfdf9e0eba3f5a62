"""What fine-tuning may try on a task, and what a recipe is predicted to cost, in seconds and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ontarget.plan.halving import SearchSpace
from ontarget.values import Context, Recipe, TargetData

MODES = ("full", "lora")
# Starting points: learning rates that are usual for a pretrained encoder of the modality (choice).
DEFAULT_LEARNING_RATE = {
    ("text", "full"): 3e-5,
    ("text", "lora"): 5e-4,
    ("image", "full"): 3e-4,
    ("image", "lora"): 1e-3,
}
SAFETY = 1.2  # predictions are multiplied by this: a plan must not overrun (choice)


def total_epochs(rows: int) -> int:
    """Epochs of a full training: more for fewer rows (choice)."""
    return 3 if rows >= 5000 else 4 if rows >= 2000 else 6 if rows >= 600 else 10


def search_space(data: TargetData, starts: Sequence[tuple[str, str]]) -> SearchSpace:
    """Learning rate, optimizer, batch size and, for images, RandAugment, from the given (source, mode) pairs."""
    batch = 16 if len(data.train) < 2000 else 32
    base: dict[str, Any] = {"optimizer": "adamw", "batch_size": batch, "class_weight": "none"}
    if data.modality == "image":
        base["augment"] = "none"
    defaults = tuple(
        Recipe(
            source,
            "finetune",
            {**base, "mode": mode, "learning_rate": DEFAULT_LEARNING_RATE[data.modality, mode]},
        )
        for source, mode in starts
    )
    choices: dict[str, tuple[Any, ...]] = {
        "optimizer": ("adamw", "lion"),
        "batch_size": (batch, 2 * batch),
        "class_weight": ("none", "balanced") if data.kind == "classification" else ("none",),
    }
    if data.modality == "image":
        choices["augment"] = ("none", "flip", "randaugment-1-5", "randaugment-2-9")
    return SearchSpace(
        defaults=defaults,
        starts=tuple(starts),
        choices=choices,
        ranges={"learning_rate": (1e-5, 2e-3)},
        total_epochs=total_epochs(len(data.train)),
    )


def predict_costs(
    data: TargetData, anchors: Sequence[str], *, max_length: int | None, context: Context
) -> dict[str, dict[str, Any]]:
    """ "source|mode" -> seconds of one epoch over the training rows and peak memory, by timing real batches."""
    from ontarget.adapt.tune.finetune import estimate
    from ontarget.errors import OnTargetError
    from ontarget.pool import load, resolve

    costs: dict[str, dict[str, Any]] = {}
    for anchor in anchors:
        for mode in MODES:
            loaded = load(resolve(anchor), max_length=max_length)
            try:
                seconds, memory_mb = estimate(
                    loaded, data.train, outputs=data.outputs, kind=data.kind, mode=mode, batch_size=16, epochs=1,
                    context=context,
                )  # fmt: skip
            except OnTargetError as error:
                costs[f"{anchor}|{mode}"] = {"reason": str(error)}
                continue
            costs[f"{anchor}|{mode}"] = {"seconds_per_epoch": seconds, "memory_mb": memory_mb}
    return costs


def starts_of(costs: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The (source, mode) pairs that can be trained, in the order of ``costs``."""
    pairs = [(name.rpartition("|")[0], name.rpartition("|")[2]) for name in costs]
    return [pair for pair in pairs if "seconds_per_epoch" in costs["|".join(pair)]]


def predicted_seconds(costs: Mapping[str, Mapping[str, Any]], data: TargetData, recipe: Recipe, epochs: int) -> float:
    """Seconds that ``recipe`` is expected to take for ``epochs``, with the safety factor; cross-fitting included."""
    entry = costs[f"{recipe.source}|{recipe.settings['mode']}"]
    fits = len(set(data.folds.tolist())) + 1 if len(data.folds) else 1
    return SAFETY * float(entry["seconds_per_epoch"]) * epochs * fits


def tuning_plan(
    costs: Mapping[str, Mapping[str, Any]], space: SearchSpace, data: TargetData, *, left_s: float, refits: bool
) -> dict[str, Any]:
    """Seconds for the search, and whether time is kept for training the chosen recipe again on more rows.

    left_s: seconds for both. refits: whether that second training is wanted. It is given up where no recipe could be
    trained to its end beside it.
    """
    full_s = [predicted_seconds(costs, data, recipe, space.total_epochs) for recipe in space.defaults]
    share = (len(data.train) + len(data.validation)) / len(data.train)
    refit_s = share * max(full_s) if refits else 0.0
    if left_s - refit_s < min(full_s):
        refit_s = 0.0
    return {"budget_s": max(0.0, left_s - refit_s), "refit_s": refit_s}


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
