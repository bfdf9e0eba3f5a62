"""Weights of a merge tuned on the task's own metric, and never a merge that is worse than its best parent.

Any rule of this room is tuned the same way: the models' weights (and a rule's density, where it has one) are proposed
by Optuna's TPE after a few fixed starts (each parent alone at half its task vector, all together), a merge is made and
scored on validation rows. Row scores decide: a merge is taken only where its mean is above that of the best parent.

A process that was killed goes on: every scored merge is a line of ``folder/tried.jsonl``, and proposals are the same.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ontarget.errors import SettingError
from ontarget.merge.mergekit_config import MergePlan, PlannedModel
from ontarget.values import Array, Context

TRIED = "tried.jsonl"
HIGHEST = 1.5  # weight of a task vector (choice)
DENSITIES = (0.2, 0.9)  # range of ties, dare and breadcrumbs (choice)


@dataclass(frozen=True)
class TunedMerge:
    """plan: of the best merge, or None where no merge is better than the best parent.

    best_parent: locator. parents: locator -> mean score. tried: each merge's weights, density and mean score, in order.
    rows: row scores (N,) of what is best.
    """

    plan: MergePlan | None
    best_parent: str
    parents: Mapping[str, float]
    tried: tuple[Mapping[str, Any], ...]
    rows: Array = field(repr=False)

    @property
    def says(self) -> str:
        """One sentence for people."""
        best = max((one["score"] for one in self.tried), default=-np.inf)
        parent = self.parents[self.best_parent]
        if self.plan is None:
            return f"no merge of {len(self.tried)} is better than {self.best_parent} ({best:.4f}, {parent:.4f})"
        return f"the best of {len(self.tried)} merges has {best:.4f}, its best parent {self.best_parent} {parent:.4f}"


def tune_weights(
    parents: Mapping[str, Array],
    base: str | None,
    score: Callable[[Path], Array],
    folder: Path,
    *,
    method: str = "task_arithmetic",
    trials: int = 12,
    context: Context = Context(),
) -> TunedMerge:
    """Merge ``parents`` on ``base`` with weights that the metric chooses; each attempt is made in ``folder``.

    parents: locator -> row scores (N,) on validation rows. base: what they were tuned from; None for "linear". score:
    folder of a model -> its row scores on the same rows. The best merge stays in ``folder/merged``, others are removed.
    A call with the same arguments, or more ``trials``, does not repeat what ``folder`` has. Stops at the context's
    deadline. Raises SettingError; and what merging raises.
    """
    import optuna

    from ontarget.merge.merge_models import RULES, merge_models

    if method not in RULES:
        raise SettingError(f"'{method}' has no weights to tune.", allowed=", ".join(RULES), option="method")
    if RULES[method].needs_base and base is None:
        raise SettingError(f"{method} needs the models' base.", option="--base")
    if not parents or trials < 1:
        raise SettingError(f"{len(parents)} parents, {trials} trials.", allowed="1 or more of both")
    means = {name: float(np.mean(rows)) for name, rows in parents.items()}
    best_parent = max(means, key=lambda name: means[name])
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=context.seed))
    for start in _starts(list(parents), RULES[method].needs_base, "density" in RULES[method].of_model):
        study.enqueue_trial(start)
    key = _key(parents, base, method, context.seed)
    known = _read(folder, key)
    tried: list[dict[str, Any]] = []
    plan, rows, highest = None, np.asarray(parents[best_parent]), means[best_parent]
    attempt, best = folder / "attempt", folder / "none"
    for at in range(trials):
        if at not in known and context.deadline is not None and time.monotonic() > context.deadline:
            break
        if context.progress is not None:
            context.progress(at, trials, "tuning the merge's weights")
        trial = study.ask()
        weights = {name: trial.suggest_float(f"weight {place}", 0.0, HIGHEST) for place, name in enumerate(parents)}
        own = {"density": trial.suggest_float("density", *DENSITIES)} if "density" in RULES[method].of_model else {}
        if sum(weights.values()) <= 0:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        proposed = MergePlan(
            merge_method=method, base_model=base if RULES[method].needs_base else None,
            models=[PlannedModel(model=name, parameters={"weight": weight, **own}) for name, weight in weights.items()],
        )  # fmt: skip
        if at in known and known[at]["weights"] == weights and known[at]["own"] == own:
            found = np.array(known[at]["rows"])
        else:
            known = {}  # what follows was proposed after another past
            shutil.rmtree(attempt, ignore_errors=True)
            found = np.asarray(score(merge_models(proposed, attempt, seed=context.seed)), dtype=np.float64)
        study.tell(trial, float(found.mean()))
        tried.append({"weights": weights, **own, "score": float(found.mean())})
        better = bool(found.mean() > highest)
        if better:
            last, best = best, folder / f"best-{at}"
            plan, rows, highest = proposed, found, float(found.mean())
            if at not in known:
                shutil.rmtree(best, ignore_errors=True)
                attempt.rename(best)
        if at not in known:
            _write(folder, key, at, {"weights": weights, "own": own, "rows": found.tolist()})
        if better:
            shutil.rmtree(last, ignore_errors=True)
    shutil.rmtree(attempt, ignore_errors=True)
    if plan is not None:
        shutil.rmtree(folder / "merged", ignore_errors=True)
        if best.exists():
            best.rename(folder / "merged")
        else:  # it was renamed before, by a process that was killed after that
            merge_models(plan, folder / "merged", seed=context.seed)
    return TunedMerge(plan, best_parent, means, tuple(tried), rows)


def finished_merges(folder: Path) -> int:
    """How many merges `tune_weights` has scored in ``folder``; half a line does not count."""
    return len(_lines(folder))


def _key(parents: Mapping[str, Array], base: str | None, method: str, seed: int) -> str:
    """What proposals and scores hang on."""
    told = [method, base or "", str(seed)]
    for name, rows in parents.items():
        told += [name, np.asarray(rows, dtype=np.float64).tobytes().hex()]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def _lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / TRIED
    found = []
    for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:  # the last line of a process that was killed
            continue
    return found


def _read(folder: Path, key: str) -> dict[int, dict[str, Any]]:
    """Number of a proposal -> what is known of it."""
    return {int(line["at"]): line for line in _lines(folder) if line["key"] == key}


def _write(folder: Path, key: str, at: int, told: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / TRIED, "a", encoding="utf-8") as file:
        # A line break first: a killed process may have left half a line.
        file.write("\n" + json.dumps({"key": key, "at": at, **told}) + "\n")


def _starts(names: Sequence[str], on_base: bool, dense: bool) -> list[dict[str, float]]:
    """Points to begin with: all alike, and with a base each parent alone at half and three quarters of its vector."""
    more = {"density": 0.5} if dense else {}
    alike = {f"weight {at}": 1 / len(names) for at in range(len(names))}
    if not on_base:
        return [{**alike, **more}]
    alone = [
        {f"weight {at}": share if at == one else 0.0 for at in range(len(names))} | more
        for share in (0.75, 0.5) for one in range(len(names))
    ]  # fmt: skip
    return [{**alike, **more}, *alone] if len(names) > 1 else alone
