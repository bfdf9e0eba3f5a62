"""The best encoder model and the TF-IDF model of a run as one more candidate.

A blend's folder holds its parts' files in PART_FOLDERS, so that it is whole without the trials that it was made of.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ontarget.plan.decision import order
from ontarget.plan.run_folder import Clock, RunFolder
from ontarget.plan.trial import PART_FOLDERS, TrialOutcome
from ontarget.values import Recipe, TargetData

METHOD = "tfidf_blend"
ENCODER_METHODS = ("linear_head", "self_training", "finetune", "contrastive")
NEGLIGIBLE = 0.02  # share of the weights below which a part adds nothing (choice)


def blend_best_trials(
    run: RunFolder,
    data: TargetData,
    *,
    seed: int,
    clock: Clock,
    make_job: Callable[[int, Recipe], Any],
    store: Callable[[Any, TrialOutcome, float], None],
) -> dict[str, Any]:
    """Blend the best trials of ``run`` and store the blend as a trial of its own, once.

    Returns its number, or None and the reason why there is none.
    """
    trials = run.trials()
    stored = next((trial["number"] for trial in trials if trial["method"] == METHOD), None)
    if stored is not None:  # a run that was killed between storing the trial and the stage
        return {"number": stored, "reason": ""}
    parts = parts_of(run, data)
    if not parts:
        return {"number": None, "reason": "there is nothing to blend"}
    start_s, number = clock.elapsed_s(), max(trial["number"] for trial in trials) + 1
    found = blend(run, parts, data, number=number, seed=seed)
    if isinstance(found, str):
        return {"number": None, "reason": found}
    recipe, outcome = found
    store(make_job(number, recipe), outcome, start_s)
    return {"number": number, "reason": ""}


def parts_of(run: RunFolder, data: TargetData) -> list[Mapping[str, Any]]:
    """The trials to blend, [encoder's, TF-IDF's], each the best of its kind; [] where one of the two is missing."""
    complete = [trial for trial in run.trials() if trial["state"] == "complete"]
    encoders = [
        trial for trial in complete if trial["method"] in ENCODER_METHODS and not trial["source"].startswith("control:")
    ]
    sparse = [trial for trial in complete if trial["method"] == "tfidf_linear"]
    if not encoders or not sparse:
        return []
    return [order(trials, data, run.trial_scores)[0] for trials in (encoders, sparse)]


def blend(
    run: RunFolder, parts: Sequence[Mapping[str, Any]], data: TargetData, *, number: int, seed: int
) -> tuple[Recipe, TrialOutcome] | str:
    """The blend of trials ``parts`` as trial ``number``, or why there is none, in words.

    Its metric and scores are those of weights fitted without the row, so that they compare with its parts'.
    """
    from ontarget.adapt.metric import metric_value
    from ontarget.adapt.tune.tfidf_blend import tfidf_blend

    start = time.monotonic()
    targets = data.validation.targets
    if len(targets) < 2:
        return "one validation row is too few to weigh two models by"
    scores = [run.trial_scores(trial["number"]) for trial in parts]
    weights, fitted = tfidf_blend(scores, targets, kind=data.kind, seed=seed)
    total = float(weights.sum())
    if total <= 0 or float(weights.min()) < NEGLIGIBLE * total:
        weak = parts[int(weights.argmin())]
        return f"{weak['method']} on {weak['source']} adds nothing to the other model on the validation rows"
    listing = [
        {"trial": trial["number"], **{name: trial[name] for name in ("source", "method", "settings")}}
        for trial in parts
    ]
    recipe = Recipe(parts[0]["source"], METHOD, {"parts": listing, "weights": weights.tolist()})
    files = {
        f"{folder}/{path.name}": path.read_bytes()
        for folder, trial in zip(PART_FOLDERS, parts, strict=True)
        for path in sorted(run.trial_folder(trial["number"]).iterdir())
        if path.is_file() and path.name not in ("trial.json", "scores.npy")
    }
    metric = metric_value(data.metric, fitted, targets)
    return recipe, TrialOutcome(
        number, "complete", metric=metric, scores=fitted, seconds=time.monotonic() - start, files=files
    )
