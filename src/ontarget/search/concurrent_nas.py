"""ConcurrentNAS (LINAS): sub-networks of any super-network on the front of several objectives, few of them evaluated.

Sarah, Cummings, Sridhar, Sundaresan, Szankin, Webb, Munoz, "A Hardware-Aware System for Accelerating Deep Neural
Network Optimization", 2022, arXiv 2202.12954. Official code: IntelLabs/DyNAS-T (archived), search/search_tactic.py.
Claim: a front as good as NSGA-II's on real evaluations with a fraction of them.
Left out: distributed workers; CMA-ES for one objective (a GA does it).
Checked: tests/search/test_concurrent_nas.py, claims/31_concurrent_nas.py.

Loop: evaluate a population of 50 for real (drawn, or another device's last one); fit one predictor an objective on all
that was evaluated; run NSGA-II on predictions alone, for 200 generations; its last population is evaluated next.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ontarget.errors import RunError, SettingError
from ontarget.search.genetic import genetic_search, hypervolume, non_dominated
from ontarget.search.predictor import Predictor, fit_predictor
from ontarget.search.space import Code, ElasticNetwork, count, draw, one_hot
from ontarget.values import Array, Context

LEAST_PREDICTED = 10  # networks that a predictor is fitted on
PREDICTED = 10_000  # predicted evaluations a round (the code's range is 5,000 to 20,000)


@dataclass(frozen=True)
class SearchResult:
    """All that was evaluated, in order. codes; values (N, objectives), minimised; front: positions in codes.

    history: after each round: evaluations, hypervolume up to the worst corner of the first round, predictors used.
    """

    codes: tuple[Code, ...]
    values: Array
    front: Array
    history: tuple[dict[str, Any], ...] = field(default_factory=tuple)

    @property
    def last_population(self) -> tuple[Code, ...]:
        """What the last round evaluated: the start for another device."""
        return self.codes[self.history[-2]["evaluations"] if len(self.history) > 1 else 0 :]


def concurrent_nas(
    space: ElasticNetwork,
    evaluate: Callable[[Sequence[Code]], Array],
    *,
    objectives: int = 2,
    budget: int = 250,
    population: int = 50,
    start: Sequence[Code] = (),
    predicted: int = PREDICTED,
    journal: Path | None = None,
    context: Context = Context(),
) -> SearchResult:
    """Search with at most ``budget`` real evaluations.

    evaluate: canonical codes -> (N, objectives) to be minimised; every code is asked for once. objectives: 1 to 3.
    population: real evaluations a round. start: the first population (warm start); drawn ones fill it up.
    journal: a file of JSON lines in which finished evaluations are kept: a killed search goes on from it.
    Raises SettingError for settings out of range, RunError for a journal of another space.
    """
    if not 1 <= objectives <= 3 or population < 10 or budget < population or predicted < population:
        raise SettingError(
            f"objectives is {objectives}, population {population}, budget {budget}, predicted {predicted}.",
            allowed="1 to 3 objectives, a population of 10 or more, a budget and predicted of a population or more",
        )
    known = Journal(space, journal, objectives)
    generator = np.random.default_rng(context.seed)
    codes: list[Code] = []
    values = np.zeros((0, objectives))
    history: list[dict[str, Any]] = []
    corner: Array | None = None
    predictors: list[Predictor] = []
    while len(codes) < budget:
        wanted = min(population, budget - len(codes))
        if not codes:
            batch = list(dict.fromkeys(space.canonical(code) for code in start))[:wanted]
        elif len(codes) < LEAST_PREDICTED:
            batch = []  # a tiny space: what is left of it is drawn
        else:
            features = one_hot(space, codes)
            predictors = [fit_predictor(features, values[:, at], seed=context.seed) for at in range(objectives)]
            proposed = genetic_search(
                space, _predicted(space, predictors), objectives=objectives, population=population,
                evaluations=predicted, start=[codes[at] for at in non_dominated(values)],
                seed=int(generator.integers(2**31)),
            )  # fmt: skip
            batch = [code for code in proposed if code not in set(codes)][:wanted]
        batch = filled_up(space, batch, codes, wanted, generator)
        if not batch:
            break  # the space is exhausted
        values = np.concatenate([values, known.evaluated(batch, evaluate, context, len(codes), budget)])
        codes += batch
        if corner is None:
            corner = values.max(axis=0) + 1e-9
        history.append(
            {
                "evaluations": len(codes), "hypervolume": hypervolume(values, corner),
                "predictors": [{"kind": one.kind, "mape": one.mape} for one in predictors],
            }
        )  # fmt: skip
        if context.deadline is not None and time.monotonic() > context.deadline:
            break
    return SearchResult(tuple(codes), values, non_dominated(values), tuple(history))


def _predicted(space: ElasticNetwork, predictors: Sequence[Predictor]) -> Callable[[Sequence[Code]], Array]:
    def evaluate(codes: Sequence[Code]) -> Array:
        features = one_hot(space, codes)
        return np.stack([predictor(features) for predictor in predictors], axis=1)

    return evaluate


def filled_up(
    space: ElasticNetwork, batch: list[Code], known: Sequence[Code], wanted: int, generator: np.random.Generator
) -> list[Code]:
    """The batch, filled with drawn codes that are not known (choice; the published loop re-validates duplicates)."""
    seen = {*known, *batch}
    tries = 0
    while len(batch) < wanted and len(seen) < count(space) and tries < 200 * wanted:
        tries += 1
        code = draw(space, generator)
        if code not in seen:
            seen.add(code)
            batch.append(code)
    return batch


class Journal:
    """Finished evaluations by code, in memory and in a file of JSON lines."""

    def __init__(self, space: ElasticNetwork, path: Path | None, objectives: int) -> None:
        self.path = path
        self.known: dict[Code, list[float]] = {}
        slots = [[slot.name, slot.choices] for slot in space.slots]
        if path is None:
            return
        if path.exists():
            lines = path.read_text().splitlines()
            try:
                head = json.loads(lines[0]) if lines else {}
            except json.JSONDecodeError:
                head = {}
            if head.get("slots") != slots or head.get("objectives") != objectives:
                raise RunError(f"{path} is the journal of another search.", next_step="choose another folder")
            for line in lines[1:]:
                try:
                    entry = json.loads(line)
                    self.known[tuple(entry["code"])] = entry["values"]
                except (json.JSONDecodeError, KeyError):
                    break  # the last line of a killed run may be cut
            # Written anew without a line that was cut.
            self._write([head, *({"code": code, "values": value} for code, value in self.known.items())])
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write([{"slots": slots, "objectives": objectives}])

    def _write(self, rows: Sequence[dict[str, Any]]) -> None:
        from ontarget.plan.run_folder import write_atomic

        assert self.path is not None
        write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def evaluated(
        self,
        batch: Sequence[Code],
        evaluate: Callable[[Sequence[Code]], Array],
        context: Context,
        done: int,
        budget: int,
    ) -> Array:
        """(N, objectives) of the batch: what is known is read, the rest evaluated one by one and kept at once."""
        for at, code in enumerate(batch):
            if context.progress is not None:
                context.progress(done + at, budget, "evaluating networks")
            if code in self.known:
                continue
            row = np.asarray(evaluate([code]), dtype=float).reshape(-1)
            if not np.isfinite(row).all():
                raise SettingError(f"The network {code} has the values {row.tolist()}.", allowed="finite numbers")
            self.known[code] = row.tolist()
            if self.path is not None:
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"code": code, "values": row.tolist()}) + "\n")
        return np.array([self.known[code] for code in batch])
