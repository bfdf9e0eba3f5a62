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


def search_space(data: TargetData, starts: Sequence[tuple[str, str]], epochs: int) -> SearchSpace:
    """Recipes of ``epochs`` from the given (source, mode) pairs: learning rate, optimizer, batch size, class weights
    and, for images, RandAugment."""
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
        factors={"learning_rate": (0.2, 5.0)},
        total_epochs=epochs,
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
                    validation_rows=len(data.validation), context=context,
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
    return SAFETY * float(entry["seconds_per_epoch"]) * epochs * _fits(data)


def _fits(data: TargetData) -> int:
    """Models a recipe trains: one a fold and one on all rows where the data is cross-fitted, else one."""
    return len(set(data.folds.tolist())) + 1 if len(data.folds) else 1


def tuning_plan(
    costs: Mapping[str, Mapping[str, Any]], data: TargetData, *, left_s: float, refits: bool
) -> dict[str, Any]:
    """What the search may start from and spend.

    left_s: seconds for the search and, with ``refits``, for training the chosen recipe again on more rows.
    starts: the [source, mode] pairs that can be trained to their end; total_epochs: those that are usual for so many
    rows, or half of them, or a quarter, ... where no pair could reach more. budget_s: of the search. refit_s: kept for
    the second training, and given up where nothing could be trained beside it.
    """
    share = (len(data.train) + len(data.validation)) / len(data.train)
    usual = total_epochs(len(data.train))
    for epochs in dict.fromkeys(max(1, usual // part) for part in (1, 2, 4, usual)):
        full_s = {pair: _pair_s(costs, data, pair, epochs) for pair in starts_of(costs)}
        for again in (share, 0.0) if refits else (0.0,):
            starts = [pair for pair, seconds in full_s.items() if (1 + again) * seconds <= left_s]
            if starts:
                refit_s = again * max(full_s[pair] for pair in starts)
                return {
                    "starts": [list(pair) for pair in starts],
                    "total_epochs": epochs,
                    "budget_s": left_s - refit_s,
                    "refit_s": refit_s,
                }
    return {"starts": [], "total_epochs": usual, "budget_s": max(0.0, left_s), "refit_s": 0.0}


def _pair_s(costs: Mapping[str, Mapping[str, Any]], data: TargetData, pair: tuple[str, str], epochs: int) -> float:
    return predicted_seconds(costs, data, Recipe(pair[0], "finetune", {"mode": pair[1]}), epochs)


def within_reach(
    sources: Sequence[str], seconds_per_row: Mapping[str, float], data: TargetData, *, left_s: float, count: int
) -> list[str]:
    """The first ``count`` sources whose full training is likely to end in ``left_s``; the cheapest where none is.

    Rough, to spare the measuring of what has no chance: a training pass takes at least twice a feature pass.
    """
    passes = 2 * len(data.train) * total_epochs(len(data.train)) * _fits(data)
    likely = [source for source in sources if passes * seconds_per_row[source] <= left_s]
    return likely[:count] or sorted(sources, key=lambda source: seconds_per_row[source])[:1]
