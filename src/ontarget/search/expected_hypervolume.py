"""The front of error and latency in few evaluations, where a latency table tells the latencies beforehand.

Another way of choosing than ConcurrentNAS's (`concurrent_nas`): expected hypervolume improvement (Emmerich,
Giannakoglou, Naujoks, "Single- and multiobjective evolutionary optimization assisted by Gaussian random field
metamodels", 2006), one network at a time. As latency is told by the table, only the error is uncertain, and the
expectation is a sum of the expected improvements of one objective (Jones, Schonlau, Welch, 1998), one for each step of
the front, exactly. Choices: the error is a Gaussian process on one-hot codes with a linear and a Matern 5/2 part; where
latencies are measured, a second one learns by which factor the table is off.
Left out: more than two objectives.
Checked: tests/search/test_expected_hypervolume.py, benchmarks/concurrent_nas_limits.py.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ontarget.errors import SettingError
from ontarget.search.concurrent_nas import Journal, SearchResult, filled_up
from ontarget.search.genetic import hypervolume, non_dominated
from ontarget.search.space import Code, ElasticNetwork, count, draw, one_hot
from ontarget.values import Array, Context

CANDIDATES = 2000  # networks among which the next is chosen; a space of no more is taken whole (choice)
RETUNED = 1.1  # growth of what is known after which the processes' parameters are fitted again (choice)
EXACT = 1e-6  # relative error of the table's latencies below which nothing is learned about them


def expected_hypervolume(
    space: ElasticNetwork,
    evaluate: Callable[[Sequence[Code]], Array],
    latency: Callable[[Sequence[Code]], Array],
    *,
    budget: int = 60,
    first: int = 10,
    candidates: int = CANDIDATES,
    limit: float | None = None,
    start: Sequence[Code] = (),
    journal: Path | None = None,
    context: Context = Context(),
) -> SearchResult:
    """Search with at most ``budget`` real evaluations; both objectives are minimised.

    evaluate: canonical codes -> (N, 2) errors and latencies above 0; every code is asked for once. latency: codes ->
    (N,), above 0, what a latency table predicts. first: networks before anything is modelled, ``start`` and drawn ones.
    candidates: of each choice, half drawn, half a change away from the front. limit: latency above which networks are
        of no use. journal: as in `concurrent_nas`.
    Raises SettingError for settings out of range.
    """
    if not 4 <= first <= budget or candidates < 10:
        raise SettingError(
            f"first is {first}, candidates {candidates}, budget {budget}.",
            allowed="first from 4 to the budget, 10 or more candidates",
        )
    known, generator = Journal(space, journal, 2), np.random.default_rng(context.seed)
    chosen = list(dict.fromkeys(space.canonical(code) for code in start))[:budget]
    chosen = filled_up(space, chosen, [], max(first, len(chosen)), generator)
    codes: list[Code] = []
    values = np.zeros((0, 2))
    corner: Array | None = None
    history: list[dict[str, Any]] = []
    errors, factors = _Process(), _Process()
    while chosen:
        values = np.concatenate([values, known.evaluated(chosen, evaluate, context, len(codes), budget)])
        codes += chosen
        corner = values.max(0) + 1e-9 if corner is None else corner
        history.append({"evaluations": len(codes), "hypervolume": hypervolume(values, corner), "predictors": []})
        late = context.deadline is not None and time.monotonic() > context.deadline
        pool = [] if late or len(codes) >= budget else _pool(space, codes, values, candidates, generator)
        if not pool:
            break
        features, others, latencies = one_hot(space, codes), one_hot(space, pool), latency(pool)
        off = np.log(values[:, 1] / latency(codes))
        if np.abs(off).max() > EXACT:
            latencies = latencies * np.exp(factors.told(features, off, others)[0])
        mean, deviation = errors.told(features, values[:, 0], others)
        most = np.inf if limit is None else limit
        volumes = expected_volume(mean, deviation, latencies, values[values[:, 1] <= most], values.max(0))
        # Where none is within the limit, the fastest.
        chosen = [pool[int(np.where(latencies <= most, volumes, -latencies).argmax())]]
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


class _Process:
    """A Gaussian process whose parameters are fitted again whenever much more is known."""

    def __init__(self) -> None:
        self.kernel: Any = None
        self.tuned_on = 0

    def told(self, features: Array, values: Array, at: Array) -> tuple[Array, Array]:
        """Mean and standard deviation, (N,) each, of what lies below the noise of measured values."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern, WhiteKernel

        again = len(values) >= RETUNED * self.tuned_on
        if again:  # from the same point each time: few values may lead to a corner that is not left again
            linear = ConstantKernel(1.0) * DotProduct(0.1, sigma_0_bounds="fixed")
            self.kernel = linear + ConstantKernel(1.0) * Matern(2.0, nu=2.5) + WhiteKernel(0.1)
        middle, spread = values.mean(), values.std() + 1e-12
        model = GaussianProcessRegressor(self.kernel, optimizer="fmin_l_bfgs_b" if again else None)
        with warnings.catch_warnings():
            # A part that explains nothing runs to the bound of its scale: that is an answer here.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(features, (values - middle) / spread)
            mean, deviation = model.predict(at, return_std=True)
        if again:
            self.kernel, self.tuned_on = model.kernel_, len(values)
        below = np.sqrt(np.maximum(deviation**2 - model.kernel_.k2.noise_level, 1e-8))
        return middle + spread * mean, spread * below


def expected_volume(mean: Array, deviation: Array, latencies: Array, there: Array, corner: Array) -> Array:
    """(N,): hypervolume up to the corner that each network is expected to add to the points (M, 2) that are there.

    mean, deviation: (N,) of the normal that its error follows. latencies: (N,).
    """
    from scipy.stats import norm

    front = there[non_dominated(there)] if len(there) else there
    front = front[np.argsort(front[:, 1])]  # latency rises, error falls
    edges = np.minimum(np.concatenate([[-np.inf], front[:, 1], [corner[1]]]), corner[1])
    best = np.minimum(np.concatenate([[corner[0]], front[:, 0]]), corner[0])  # error reached from each edge on
    total = np.zeros(len(mean))
    for left, right, error in zip(edges[:-1], edges[1:], best, strict=True):
        lower = (error - mean) / deviation
        improvement = deviation * (lower * norm.cdf(lower) + norm.pdf(lower))
        total += np.clip(right - np.maximum(latencies, left), 0, None) * improvement
    return total
