"""Successive halving over fine-tuning recipes that Optuna proposes, under a budget of predicted seconds.

Jamieson, Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", AISTATS 2016
(arXiv 1502.07943); brackets as in Hyperband (Li et al., JMLR 2018). Proposals: Optuna's multivariate TPE.

A bracket asks for n recipes at once, trains all of them to the first rung, keeps the better half, continues
those from their checkpoints, and so on. What is run depends on stored predictions and scores, never on the
clock of the moment, so a run that was killed and resumed decides as an undisturbed one. Once recipes have run, their
stored seconds correct the predictions. The clock only cuts off a run that is slower than predicted.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ontarget.plan.run_folder import RunFolder, to_json, write_atomic
from ontarget.values import Recipe

CONFIGURATIONS = 4  # recipes a bracket (choice)
REDUCTION = 2  # one in REDUCTION recipes goes on to the next rung (choice)
MARGIN = 1.1  # on predictions corrected by what was measured (choice)
ALIKE = 0.67  # of the highest cost: recipes from there on are left out in the reverse of their order (choice)
PATIENCE = 2  # brackets without a better recipe before tuning stops early (choice)


@dataclass(frozen=True)
class SearchSpace:
    """What may be varied.

    starts: (source, mode) pairs that recipes may start from. defaults: a recipe for each start; the first
    CONFIGURATIONS are tried first, as they are. choices: setting -> allowed values. factors: setting -> (low, high),
    searched on a logarithmic scale, times what the start's default has.
    """

    defaults: tuple[Recipe, ...]
    starts: tuple[tuple[str, str], ...]
    choices: Mapping[str, tuple[Any, ...]]
    factors: Mapping[str, tuple[float, float]]
    total_epochs: int


@dataclass(frozen=True)
class Rung:
    """One recipe's state after a rung: its validation metric, whether it can go on, and its seconds since epoch 0."""

    metric: float
    alive: bool
    seconds: float


def rungs(total_epochs: int) -> tuple[int, ...]:
    """Epochs after which recipes are compared, the last one being ``total_epochs``: 12 -> (3, 6, 12)."""
    marks = [total_epochs]
    while marks[0] > 2 and len(marks) < 3:
        marks.insert(0, max(1, math.ceil(marks[0] / REDUCTION)))
    return tuple(dict.fromkeys(marks))


def bracket_epochs(count: int, total_epochs: int) -> tuple[int, ...]:
    """Epochs that the 1st, 2nd, ... best recipe of a bracket is trained for: what the bracket will cost at most.

    >>> bracket_epochs(4, 8)
    (8, 4, 2, 2)
    """
    alive, reached = count, [0] * count
    for mark in rungs(total_epochs):
        for position in range(alive):
            reached[position] = mark
        alive = max(1, alive // REDUCTION)
    return tuple(reached)


def tune(
    run: RunFolder,
    space: SearchSpace,
    *,
    predicted_s: Callable[[Recipe, int], float],
    run_rung: Callable[[Sequence[tuple[int, Recipe]], int, bool], Mapping[int, Rung]],
    first_number: int,
    budget_s: float,
    out_of_time: Callable[[], bool],
    seed: int,
    storage: str | None = None,
    best_so_far: float = -math.inf,
    maximum_brackets: int = 50,
    stop_at: float = math.inf,
) -> str:
    """Run brackets until the budget is spent; returns why it stopped, in words.

    predicted_s(recipe, epochs): seconds, from stored measurements only.
    run_rung(numbered recipes, epoch mark, is the last rung): trains each up to the mark, stores it in the run
        folder, and returns number -> Rung. Work that is stored already is not done again.
    storage: Optuna storage URL; SQLite in the run folder by default.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    study = optuna.create_study(
        study_name="tune",
        storage=storage or f"sqlite:///{run.path / 'study.db'}",
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=CONFIGURATIONS),
    )
    spent_s, number, since_better = 0.0, first_number, 0
    measured_s, foreseen_s = 0.0, 0.0  # of the recipes that ended well: one that failed early says nothing of costs
    for bracket in range(maximum_brackets):
        proposals = _proposals(study, run, space, bracket, seed)
        correction = MARGIN * measured_s / foreseen_s if foreseen_s else 1.0
        bracket_s = correction * _bracket_seconds(proposals, space.total_epochs, predicted_s)
        while len(proposals) > 1 and spent_s + bracket_s > budget_s:
            proposals = _without_costliest(proposals, space.total_epochs, predicted_s)
            bracket_s = correction * _bracket_seconds(proposals, space.total_epochs, predicted_s)
        if spent_s + bracket_s > budget_s:
            return f"the next bracket needs about {bracket_s:.0f} s and {max(0.0, budget_s - spent_s):.0f} s are left"
        numbered = [(number + at, recipe) for at, (_, recipe) in enumerate(proposals)]
        asked = {number + at: trial_number for at, (trial_number, _) in enumerate(proposals)}
        number += CONFIGURATIONS
        results, reached, complete = _run_bracket(numbered, space.total_epochs, run_rung, out_of_time)
        spent_s += sum(result.seconds for result in results.values())
        sound = [(at, recipe) for at, recipe in numbered if at in results and results[at].alive]
        measured_s += sum(results[at].seconds for at, _ in sound)
        foreseen_s += sum(predicted_s(recipe, reached[at]) for at, recipe in sound)
        _tell(study, {asked[at]: result for at, result in results.items()})
        best = max((result.metric for result in results.values() if result.alive), default=-math.inf)
        if not complete:
            return "the time was up before the bracket ended; its finished rungs count"
        since_better = 0 if best > best_so_far else since_better + 1
        best_so_far = max(best, best_so_far)
        if best_so_far >= stop_at:
            return "the validation metric cannot get better"
        if since_better >= PATIENCE:
            return f"{PATIENCE} brackets in a row found nothing better"
    return f"{maximum_brackets} brackets were run"


def _bracket_seconds(
    proposals: Sequence[tuple[int, Recipe]], total_epochs: int, predicted_s: Callable[[Recipe, int], float]
) -> float:
    """Predicted seconds of a bracket at most: its costliest recipes are those that go on."""
    costs = sorted((predicted_s(recipe, total_epochs) for _, recipe in proposals), reverse=True)
    epochs = bracket_epochs(len(proposals), total_epochs)
    return sum(cost * mark / total_epochs for cost, mark in zip(costs, epochs, strict=True))


def _without_costliest(
    proposals: list[tuple[int, Recipe]], total_epochs: int, predicted_s: Callable[[Recipe, int], float]
) -> list[tuple[int, Recipe]]:
    """``proposals`` less the last of those that cost about the most."""
    costs = [predicted_s(recipe, total_epochs) for _, recipe in proposals]
    worst = max(at for at, cost in enumerate(costs) if cost >= ALIKE * max(costs))
    return proposals[:worst] + proposals[worst + 1 :]


def _run_bracket(
    numbered: Sequence[tuple[int, Recipe]],
    total_epochs: int,
    run_rung: Callable[[Sequence[tuple[int, Recipe]], int, bool], Mapping[int, Rung]],
    out_of_time: Callable[[], bool],
) -> tuple[dict[int, Rung], dict[int, int], bool]:
    """Number -> its last rung, number -> epochs that it has reached, and whether time allowed all rungs."""
    results: dict[int, Rung] = {}
    reached: dict[int, int] = {}
    alive = list(numbered)
    marks = rungs(total_epochs)
    for mark in marks:
        if out_of_time():
            return results, reached, False
        results.update(run_rung(alive, mark, mark == marks[-1]))
        reached.update(dict.fromkeys((number for number, _ in alive), mark))
        # Ties go to the recipe that was proposed first, so that the order of finishing cannot matter.
        alive = [entry for entry in alive if results[entry[0]].alive]
        alive.sort(key=lambda entry: (-results[entry[0]].metric, entry[0]))
        alive = alive[: max(1, len(alive) // REDUCTION)]
        if not alive:
            break
    return results, reached, True


def _proposals(study: Any, run: RunFolder, space: SearchSpace, bracket: int, seed: int) -> list[tuple[int, Recipe]]:
    """The recipes of a bracket with their Optuna trial numbers: read back if they were asked for before."""
    import optuna

    path = run.path / "brackets" / f"{bracket:03d}.json"
    if path.exists():
        return [
            (entry["trial"], Recipe(entry["source"], entry["method"], entry["settings"]))
            for entry in json.loads(path.read_text())
        ]
    # Asked for by a process that died before it wrote them down: never run, never to be counted.
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    study.sampler = optuna.samplers.TPESampler(
        seed=seed + 1000 * (bracket + 1), multivariate=True, n_startup_trials=CONFIGURATIONS
    )
    sampler = study.sampler
    defaults = space.defaults[:CONFIGURATIONS] if bracket == 0 else ()
    proposals = []
    for at in range(len(defaults) or CONFIGURATIONS):
        # Fixed rather than enqueued: an enqueued trial would outlive a process that dies here.
        fixed: dict[str, Any] = {}
        if defaults:
            chosen = {name: defaults[at].settings[name] for name in space.choices}
            start = f"{defaults[at].source}|{defaults[at].settings['mode']}"
            fixed = {**chosen, "start": start, **{f"{name} factor": 1.0 for name in space.factors}}
        study.sampler = optuna.samplers.PartialFixedSampler(fixed, sampler) if fixed else sampler
        trial = study.ask()
        start = trial.suggest_categorical("start", ["|".join(pair) for pair in space.starts])
        source, _, mode = start.rpartition("|")
        settings: dict[str, Any] = {"mode": mode}
        for name, values in space.choices.items():
            settings[name] = trial.suggest_categorical(name, list(values))
        default = next(
            recipe for recipe in space.defaults if recipe.source == source and recipe.settings["mode"] == mode
        )
        for name, (low, high) in space.factors.items():
            settings[name] = default.settings[name] * trial.suggest_float(f"{name} factor", low, high, log=True)
        proposals.append((trial.number, Recipe(source, "finetune", settings)))
    listing = [
        {"trial": number, "source": recipe.source, "method": recipe.method, "settings": dict(recipe.settings)}
        for number, recipe in proposals
    ]
    write_atomic(path, to_json(listing))
    return proposals


def _tell(study: Any, results: Mapping[int, Rung]) -> None:
    import optuna

    told = {trial.number: trial.state for trial in study.get_trials(deepcopy=False)}
    for number in sorted(results):
        if told.get(number) != optuna.trial.TrialState.RUNNING:
            continue
        result = results[number]
        if result.alive and math.isfinite(result.metric):
            study.tell(number, result.metric)
        else:
            study.tell(number, state=optuna.trial.TrialState.FAIL)
