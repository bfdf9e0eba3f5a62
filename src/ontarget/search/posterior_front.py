"""The front of error and latency where latency is known beforehand: drawn from a posterior, by the volume that it adds.

Another way of choosing than ConcurrentNAS's (`concurrent_nas`), for few real evaluations (choice; no published method
of its own): Thompson sampling (Thompson, 1933; Bradford, Schweidtmann, Lapkin, "Efficient multiobjective optimization
employing Gaussian processes, spectral sampling and a genetic algorithm", 2018, for several objectives). The latency
table gives the latency of every network for nothing, so that only the error is modelled: a Gaussian process on one-hot
codes with a linear and a Matern 5/2 part. Each function that is drawn from it names the network that adds most
hypervolume to what is known.
Left out: more than two objectives.
Checked: tests/search/test_posterior_front.py, benchmarks/concurrent_nas_limits.py.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ontarget.errors import SettingError
from ontarget.search.concurrent_nas import Journal, SearchResult, filled_up
from ontarget.search.genetic import hypervolume, non_dominated
from ontarget.search.space import Code, ElasticNetwork, count, draw, one_hot
from ontarget.values import Array, Context

CANDIDATES = 2000  # networks that a draw of the posterior is over; a space of no more is taken whole (choice)


def posterior_front(
    space: ElasticNetwork,
    evaluate: Callable[[Sequence[Code]], Array],
    latency: Callable[[Sequence[Code]], Array],
    *,
    budget: int = 120,
    first: int = 10,
    batch: int = 5,
    candidates: int = CANDIDATES,
    start: Sequence[Code] = (),
    journal: Path | None = None,
    context: Context = Context(),
) -> SearchResult:
    """Search with at most ``budget`` real evaluations; both objectives are minimised.

    evaluate: canonical codes -> (N, 2) errors and latencies; every code is asked for once. latency: codes -> (N,), what
    a latency table predicts, in the same unit. first: drawn networks before anything is modelled, with ``start`` among
    them. batch: networks between two fits. candidates: of a round, half drawn, half a change away from the front.
    journal: as in `concurrent_nas`. Raises SettingError for settings out of range.
    """
    if not 4 <= first <= budget or batch < 1 or candidates < 10 * batch:
        raise SettingError(
            f"first is {first}, batch {batch}, candidates {candidates}, budget {budget}.",
            allowed="first from 4 to the budget, 1 or more a batch, ten candidates for each of it",
        )
    known, generator = Journal(space, journal, 2), np.random.default_rng(context.seed)
    chosen = list(dict.fromkeys(space.canonical(code) for code in start))[:budget]
    chosen = filled_up(space, chosen, [], max(first, len(chosen)), generator)
    codes: list[Code] = []
    values = np.zeros((0, 2))
    corner: Array | None = None
    history = []
    while chosen:
        values = np.concatenate([values, known.evaluated(chosen, evaluate, context, len(codes), budget)])
        codes += chosen
        corner = values.max(0) + 1e-9 if corner is None else corner
        history.append({"evaluations": len(codes), "hypervolume": hypervolume(values, corner), "predictors": []})
        late = context.deadline is not None and time.monotonic() > context.deadline
        wanted = min(batch, budget - len(codes))
        if late or wanted < 1:
            break
        pool = _pool(space, codes, values, candidates, generator)
        chosen = _proposed(space, codes, values, pool, latency(pool), wanted, generator) if pool else []
    return SearchResult(tuple(codes), values, non_dominated(values), tuple(history))


def _pool(
    space: ElasticNetwork, codes: Sequence[Code], values: Array, most: int, generator: np.random.Generator
) -> list[Code]:
    """Networks that are not known: all of a small space, else changes of one slot of the front's and drawn ones."""
    known = set(codes)
    if count(space) <= most:
        whole = (space.canonical(code) for code in np.ndindex(*(slot.choices for slot in space.slots)))
        return [code for code in dict.fromkeys(whole) if code not in known]
    near = [
        space.canonical((*codes[at][:slot], choice, *codes[at][slot + 1 :]))
        for at in non_dominated(values)
        for slot in range(len(space.slots))
        for choice in range(space.slots[slot].choices)
    ]
    near = [near[int(at)] for at in generator.permutation(len(near))[: most // 2]]
    drawn = [draw(space, generator) for _ in range(most - len(near))]
    return [code for code in dict.fromkeys([*near, *drawn]) if code not in known]


def _proposed(
    space: ElasticNetwork,
    codes: Sequence[Code],
    values: Array,
    pool: list[Code],
    latencies: Array,
    wanted: int,
    generator: np.random.Generator,
) -> list[Code]:
    """One network for each function that is drawn from the posterior of the errors."""
    drawn = _posterior(one_hot(space, codes), values[:, 0], one_hot(space, pool), min(wanted, len(pool)), generator)
    taken: list[int] = []
    for errors in drawn:
        points = np.stack([errors, latencies], 1)
        there = np.concatenate([values, points[taken]])
        gains = volume_added(points, there, there.max(0))
        gains[taken] = -1.0
        taken.append(int(gains.argmax()))
    return [pool[at] for at in taken]


def _posterior(features: Array, errors: Array, at: Array, draws: int, generator: np.random.Generator) -> Array:
    """(draws, N) errors, drawn jointly from the process fitted to what is known."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern, WhiteKernel

    middle, spread = errors.mean(), errors.std() + 1e-12
    linear = ConstantKernel(1.0) * DotProduct(0.1, sigma_0_bounds="fixed")
    model = GaussianProcessRegressor(linear + ConstantKernel(1.0) * Matern(2.0, nu=2.5) + WhiteKernel(0.1))
    with warnings.catch_warnings():
        # A part that explains nothing runs to the bound of its scale: that is an answer here.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, (errors - middle) / spread)
        mean, covariance = model.predict(at, return_cov=True)
    # Errors without the noise of their measurement.
    covariance[np.diag_indices_from(covariance)] -= model.kernel_.k2.noise_level - 1e-6
    found: Array = middle + spread * generator.multivariate_normal(mean, covariance, size=draws, method="eigh")
    return found


def volume_added(points: Array, there: Array, corner: Array) -> Array:
    """(N,): hypervolume up to the corner that each of the points (N, 2) would add by itself to those that are there."""
    front = there[non_dominated(there)]
    front = front[np.argsort(front[:, 0])]
    edges = np.concatenate([[-np.inf], np.minimum(front[:, 0], corner[0]), [corner[0]]])
    levels = np.minimum(np.concatenate([[corner[1]], front[:, 1]]), corner[1])
    total = np.zeros(len(points))
    for left, right, level in zip(edges[:-1], edges[1:], levels, strict=True):
        width = np.clip(right - np.maximum(points[:, 0], left), 0, None)
        total += width * np.clip(level - points[:, 1], 0, None)
    return total
