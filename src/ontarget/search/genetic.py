"""Genetic search over integer codes by pymoo: NSGA-II for two objectives, U-NSGA-III for three, a GA for one.

Settings of arXiv 2202.12954 and its code: simulated binary crossover 0.9, eta 15; polynomial mutation of each integer
with probability 1 / population, eta 20; rounding; duplicates, by canonical form, are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ontarget.errors import SettingError, require_extra
from ontarget.search.space import Code, ElasticNetwork, draw
from ontarget.values import Array


def genetic_search(
    space: ElasticNetwork,
    evaluate: Callable[[Sequence[Code]], Array],
    *,
    objectives: int,
    population: int = 50,
    evaluations: int = 10_000,
    start: Sequence[Code] = (),
    seed: int = 0,
) -> list[Code]:
    """The final population, canonical and different, of a search that minimises ``evaluate``'s (N, objectives).

    start: codes of the first population; drawn ones fill it up. Raises MissingExtra without pymoo, SettingError for
    an even smaller population than 4 or no objective.
    """
    require_extra("pymoo", "search", "genetic search")
    if population < 4 or objectives < 1:
        raise SettingError(f"population is {population} and objectives {objectives}.", allowed="4 or more, 1 or more")
    from pymoo.optimize import minimize

    problem = _problem(space, evaluate, objectives)
    first = np.array(_filled(space, start, population, seed))
    algorithm = _algorithm(objectives, population, first, space)
    generations = max(1, evaluations // population)
    result = minimize(problem, algorithm, ("n_gen", generations), seed=seed, verbose=False)
    codes = [tuple(int(value) for value in np.round(row)) for row in np.atleast_2d(result.pop.get("X"))]
    return list(dict.fromkeys(space.canonical(code) for code in codes))


def _problem(space: ElasticNetwork, evaluate: Callable[[Sequence[Code]], Array], objectives: int) -> Any:
    from pymoo.core.problem import Problem

    upper = np.array([slot.choices - 1 for slot in space.slots])

    class Codes(Problem):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(n_var=len(upper), n_obj=objectives, xl=np.zeros(len(upper)), xu=upper.astype(float))

        def _evaluate(self, x: Array, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            codes = [space.canonical(tuple(row)) for row in np.round(x).astype(int).tolist()]
            out["F"] = np.asarray(evaluate(codes), dtype=float).reshape(len(codes), objectives)

    return Codes()


def _algorithm(objectives: int, population: int, first: Array, space: ElasticNetwork) -> Any:
    from pymoo.core.duplicate import DuplicateElimination
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair

    class Same(DuplicateElimination):  # type: ignore[misc]
        """By canonical form, hashed: comparing all pairs would take most of the search."""

        def _do(self, pop: Any, other: Any, is_duplicate: Array) -> Array:
            seen = set() if other is None else {named(one) for one in other}
            for at, one in enumerate(pop):
                code = named(one)
                is_duplicate[at] = code in seen
                if other is None:
                    seen.add(code)
            return is_duplicate

    def named(one: Any) -> Code:
        return space.canonical(tuple(np.round(one.X).astype(int).tolist()))

    shared: dict[str, Any] = {
        "pop_size": population,
        "sampling": first.astype(float),
        "crossover": SBX(prob=0.9, eta=15, repair=RoundingRepair()),
        "mutation": PM(prob=1.0, prob_var=1 / population, eta=20, repair=RoundingRepair()),
        "eliminate_duplicates": Same(),
    }
    if objectives == 1:
        from pymoo.algorithms.soo.nonconvex.ga import GA

        return GA(**shared)
    if objectives == 2:
        from pymoo.algorithms.moo.nsga2 import NSGA2

        return NSGA2(**shared)
    from pymoo.algorithms.moo.unsga3 import UNSGA3
    from pymoo.util.ref_dirs import get_reference_directions

    directions = get_reference_directions("energy", objectives, population, seed=1)
    return UNSGA3(directions, **shared)


def _filled(space: ElasticNetwork, start: Sequence[Code], population: int, seed: int) -> list[Code]:
    generator = np.random.default_rng(seed)
    found = dict.fromkeys(space.canonical(code) for code in start[:population])
    for _ in range(50 * population):
        if len(found) >= population:
            break
        found.setdefault(draw(space, generator))
    return list(found)


def non_dominated(values: Array) -> Array:
    """Positions of the rows of (N, objectives), minimised, that no other row is at least as good as everywhere.

    Of equal rows the first counts.
    """
    values = np.asarray(values, dtype=float)
    order = np.lexsort(values.T[::-1])
    kept: list[int] = []
    for at in order:
        if not any((values[other] <= values[at]).all() for other in kept):
            kept.append(int(at))
    return np.array(sorted(kept), dtype=np.int64)


def hypervolume(values: Array, reference: Array) -> float:
    """Volume between the rows of (N, objectives), minimised, and the reference point; rows beyond it add nothing."""
    require_extra("pymoo", "search", "hypervolume")
    from pymoo.indicators.hv import HV

    return float(HV(ref_point=np.asarray(reference, dtype=float))(np.asarray(values, dtype=float)))
