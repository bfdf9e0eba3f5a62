"""The chosen model and the baselines once more, on training and validation rows together.

Validation rows are held out to choose by; once everything is chosen they are labelled rows like any other. What is
refitted has nothing left to choose: penalty, number of neighbours and the epoch to stop at are those that won.
Baselines are refitted too, so that paired tests on the test rows compare models that saw the same rows. Left alone:
cross-fitted data, whose models are trained on all rows anyway, and validation rows that the user set apart.
A refitted model cannot be judged by rows that it has seen; but one that does worse on them than the model that had not
seen them has gone wrong, and is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ontarget.plan.trial import TrialJob, TrialOutcome
from ontarget.task import Task
from ontarget.values import Recipe, TargetData

METHODS = ("tfidf_linear", "linear_head", "nearest_neighbours", "finetune")


def can_be_refitted(task: Task, data: TargetData) -> bool:
    """Whether OnTarget itself held validation rows out of the training."""
    return not len(data.folds) and task.validation is None and not task.split


def best_epoch(trial: Mapping[str, Any]) -> int:
    """The epoch whose weights a fine-tuned trial kept: the first with the best validation metric."""
    curve = trial["curve"]
    best = max(point["validation"] for point in curve)
    return int(next(point["epoch"] for point in curve if point["validation"] == best))


def refit_job(job: TrialJob, trial: Mapping[str, Any], total_epochs: int) -> TrialJob:
    """``job`` with what the trial chose by its validation rows held fast."""
    notes, settings = trial["notes"], dict(job.recipe.settings)
    if trial["method"] == "finetune":
        return replace(job, refit=True, total_epochs=total_epochs, stop_epoch=best_epoch(trial))
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
