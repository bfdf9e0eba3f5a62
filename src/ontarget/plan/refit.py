"""The chosen model and the baselines once more, on training and validation rows together.

Validation rows are held out to choose by; once everything is chosen they are labelled rows like any other. What is
refitted has nothing left to choose: penalty, number of neighbours and number of epochs are those that won.
Baselines are refitted too, so that paired tests on the test rows compare models that saw the same rows. Left alone:
cross-fitted data, whose models are trained on all rows anyway, and validation rows that the user set apart.
A refitted model cannot be judged by rows that it has seen; but one that does worse on them than the model that had not
seen them has gone wrong, and is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ontarget.plan.run_folder import RunFolder, write_atomic
from ontarget.plan.trial import PART_FOLDERS, TrialJob, TrialOutcome, run_trial
from ontarget.values import Recipe, TargetData

REFIT = "refit"  # folder in a trial's, for the model that was trained again
SAFETY = 1.1  # the trial's own seconds are multiplied by this (choice)
METHODS = ("tfidf_linear", "linear_head", "self_training", "nearest_neighbours", "finetune", "found_network")


def can_be_refitted(data: TargetData) -> bool:
    """Whether OnTarget itself held validation rows out of the training."""
    return not len(data.folds) and data.validation_made


def refit_trial(
    run: RunFolder,
    trial: Mapping[str, Any],
    data: TargetData,
    executor: Any,
    make_job: Callable[[int, Recipe], TrialJob],
    *,
    left_s: float,
) -> str:
    """Train a trial's recipe again into its folder ``REFIT``; why the result is not used, in words, or "".

    A blend keeps its weights, and both of its parts are trained again. left_s: seconds that fine-tuning or training
    a found network may take; it is expected to take what it took, for more rows.
    """
    folder = run.trial_folder(trial["number"]) / REFIT
    parts = {"": trial}
    if trial["method"] == "tfidf_blend":
        numbered = {stored["number"]: stored for stored in run.trials()}
        listing = trial["settings"]["parts"]
        parts = {f"{name}/": numbered[part["trial"]] for name, part in zip(PART_FOLDERS, listing, strict=True)}
    files: dict[str, bytes] = {}
    for prefix, part in parts.items():
        found = _trained_again(run, part, data, executor, make_job, left_s=left_s)
        if isinstance(found, str):
            return found
        files |= {prefix + name: content for name, content in found.items()}
    for name, content in files.items():
        write_atomic(folder / name, content)
    return ""


def _trained_again(
    run: RunFolder,
    trial: Mapping[str, Any],
    data: TargetData,
    executor: Any,
    make_job: Callable[[int, Recipe], TrialJob],
    *,
    left_s: float,
) -> Mapping[str, bytes] | str:
    """The files of a trial's recipe trained again, or why there are none, in words."""
    recipe = Recipe(trial["source"], trial["method"], trial["settings"])
    if trial["method"] not in METHODS:
        return f"{trial['method']} has nothing to gain from more rows"
    if trial["method"] in ("finetune", "found_network"):
        share = (len(data.train) + len(data.validation)) / len(data.train)
        needed_s = SAFETY * share * (trial.get("notes", {}).get("training_s") or trial["seconds"])
        if needed_s > left_s:
            return f"training again needs about {needed_s:.0f} s, and {max(0.0, left_s):.0f} s of the budget are left"
    epochs = run.read("tuning-plan")["total_epochs"] if trial["method"] == "finetune" else 1
    job = refit_job(make_job(trial["number"], recipe), trial, epochs)
    ((_, outcome),) = executor.run(run_trial, [job], data)
    return dropped_because(outcome, trial) or outcome.files


def refit_job(job: TrialJob, trial: Mapping[str, Any], total_epochs: int) -> TrialJob:
    """``job`` with what the trial chose by its validation rows held fast."""
    notes, settings = trial["notes"], dict(job.recipe.settings)
    if trial["method"] == "finetune":
        return replace(job, refit=True, total_epochs=total_epochs, stop_epoch=int(trial["curve"][-1]["epoch"]))
    if "l2" in notes:
        settings["l2_grid"] = (notes["l2"],)
    if "neighbours" in notes:
        settings["neighbours"] = (notes["neighbours"],)
    return replace(job, refit=True, recipe=Recipe(job.recipe.source, job.recipe.method, settings))


def dropped_because(outcome: TrialOutcome, trial: Mapping[str, Any]) -> str:
    """Why a refitted model is not used, in words; "" where it is."""
    if outcome.state != "complete":
        return outcome.reason
    if outcome.metric < trial["metric"]:
        return (
            f"worse on the rows that it had seen ({outcome.metric:.4f}) than the model that had not "
            f"({trial['metric']:.4f})"
        )
    return ""
