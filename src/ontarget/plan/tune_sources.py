"""Fine-tuning in a fit: what it costs here, what the budget allows, and the search, each stored before the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ontarget.plan.halving import tune
from ontarget.plan.refit import can_be_refitted
from ontarget.plan.reserve import reserved_seconds
from ontarget.plan.run_folder import Clock, RunFolder
from ontarget.plan.rungs import RungRunner
from ontarget.plan.tuning import predict_costs, predicted_seconds, search_space, starts_of, tuning_plan, within_reach
from ontarget.task import Request
from ontarget.values import Context, Recipe, TargetData

TUNED_SOURCES = 2  # best sources by their head that are fine-tuned (choice)


def tune_sources(
    run: RunFolder,
    request: Request,
    data: TargetData,
    sources: Sequence[str],
    *,
    clock: Clock,
    executor: Any,
    make_job: Callable[..., Any],
    store: Callable[..., None],
    storage: str | None,
    context: Context,
) -> None:
    """Search fine-tuning recipes on the best of ``sources`` (best first) and store every trial.

    make_job, store: see `RungRunner`. storage: Optuna's, or None for SQLite in the run folder. Stages that are stored
    already are read back.
    """
    if not sources or data.modality == "features":
        run.once("tuning", lambda: {"stopped": "there is no source to fine-tune"}, clock=clock)
        return
    seconds_per_row = {source: run.read("admission")[source]["seconds_per_row"] for source in sources}
    reserved_s = reserved_seconds(data, max(seconds_per_row.values()), request.limits.budget_s)

    def costs_of_anchors() -> dict[str, dict[str, Any]]:
        left_s = clock.remaining_s() - reserved_s
        if left_s <= 0:
            return {}
        anchors = within_reach(sources, seconds_per_row, data, left_s=left_s, count=TUNED_SOURCES)
        return predict_costs(data, anchors, max_length=request.task.max_length, context=context)

    costs = run.once("tuning-costs", costs_of_anchors, clock=clock, kind="measuring")
    if not starts_of(costs):
        why = "no source can be fine-tuned" if costs else "judging and reporting need all the time that is left"
        run.once("tuning", lambda: {"stopped": why}, clock=clock)
        return

    def predicted_s(recipe: Recipe, epochs: int) -> float:
        return predicted_seconds(costs, data, recipe, epochs)

    plan = run.once("tuning-plan", lambda: _plan(run, request, data, costs, clock, reserved_s), clock=clock)
    if run.has("tuning"):
        return
    if not plan["starts"]:
        epoch_s = min(predicted_s(Recipe(source, "finetune", {"mode": mode}), 1) for source, mode in starts_of(costs))
        models = " of all its models" if len(data.folds) else ""
        left = f"one epoch{models} takes about {epoch_s:.0f} s at least, {plan['budget_s']:.0f} s are left for tuning"
        run.write("tuning", {"stopped": left})
        return
    space = search_space(data, [(source, mode) for source, mode in plan["starts"]], plan["total_epochs"])
    kept_s = plan["reserved_s"] + plan["refit_s"]
    runner = RungRunner(
        run, executor, data, make_job, store, clock=clock, progress=context.progress, predicted_s=predicted_s,
        memory_mb=lambda recipe: costs[f"{recipe.source}|{recipe.settings['mode']}"].get("memory_mb"),
        total_epochs=space.total_epochs,
    )  # fmt: skip
    stopped = tune(
        run, space, predicted_s=predicted_s, run_rung=runner.run_rung, first_number=plan["first_number"],
        budget_s=plan["budget_s"], out_of_time=lambda: clock.remaining_s() < kept_s, seed=request.task.seed,
        storage=storage, best_so_far=-float("inf") if plan["best_so_far"] is None else plan["best_so_far"],
        stop_at=1.0 if data.metric in ("accuracy", "balanced_accuracy", "macro_f1") else float("inf"),
    )  # fmt: skip
    runner.drop_checkpoints()
    run.write("tuning", {"stopped": stopped})


def _plan(
    run: RunFolder, request: Request, data: TargetData, costs: dict[str, Any], clock: Clock, reserved_s: float
) -> dict[str, Any]:
    trials = run.trials()
    return {
        **tuning_plan(costs, data, left_s=clock.remaining_s() - reserved_s, refits=can_be_refitted(data)),
        "reserved_s": reserved_s,
        "first_number": max((trial["number"] for trial in trials), default=-1) + 1,
        "best_so_far": max((trial["metric"] for trial in trials if trial["state"] == "complete"), default=None),
    }
