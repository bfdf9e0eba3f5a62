"""What ConcurrentNAS could save at most on the tabulated space of claim 31, and what other ways of choosing save.

Target of the search: 95% of the true front's hypervolume in at most half the real evaluations of the best other search
(medians over seeds; the others are those of `claims/31_concurrent_nas.py`, whose table is used). Ways:

- as published, a population of 20: what the claim runs;
- a population of 10: predictors are fitted twice as often;
- Thompson: Gaussian processes (Matern 5/2 on one-hot codes) of both objectives; each of 10 networks a round is the best
  of one draw from them for a weighting that is drawn too;
- expected hypervolume: `ontarget.search.expected_hypervolume`, which takes the latencies from a latency table of this
  device (made by timing operators and a few networks, no evaluation of a network's error), learns from what it measures
  how the table is off, and evaluates one network at a time;
- all known: ConcurrentNAS's own predictors, fitted on the whole table before the search begins; networks are evaluated
  from the front that they predict outwards: about what a choice by such predictors needs at least.

Also: the smallest set of networks that has 95% of the hypervolume (greedy), and how much of the variance of error and
latency the predictors explain at all (cross-validated on the whole table).

    python benchmarks/concurrent_nas_limits.py        # about 95 minutes, most for the table, which is kept
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from ontarget.latency_table import Setting, profile
from ontarget.search.genetic import hypervolume, non_dominated
from ontarget.search.predictor import fit_predictor
from ontarget.search.space import Code, one_hot
from ontarget.values import Context
from record import record

SEEDS = 10


def the_claim() -> Any:
    path = Path(__file__).parents[1] / "claims" / "31_concurrent_nas.py"
    spec = importlib.util.spec_from_file_location("claim_31", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def with_population(claim: Any, space: Any, size: int, seed: int) -> Callable[[Any], Any]:
    from ontarget.search.concurrent_nas import concurrent_nas

    return lambda asked: concurrent_nas(
        space, asked, budget=claim.MOST + size, population=size, context=Context(seed=seed)
    )


def thompson(space: Any, codes: list[Code], seed: int, size: int = 10) -> Callable[[Any], Any]:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    features = one_hot(space, codes)

    def search(asked: Any) -> None:
        generator = np.random.default_rng(seed)
        chosen = generator.permutation(len(codes))[:20].tolist()
        values = asked([codes[at] for at in chosen])
        while True:
            draws = []
            for column in range(2):
                middle, spread = values[:, column].mean(), values[:, column].std() + 1e-12
                kernel = ConstantKernel(1.0) * Matern(2.0, nu=2.5) + WhiteKernel(0.1)
                model = GaussianProcessRegressor(kernel, random_state=seed)
                model.fit(features[chosen], (values[:, column] - middle) / spread)
                mean, covariance = model.predict(features, return_cov=True)
                noise = model.kernel_.k2.noise_level
                covariance[np.diag_indices_from(covariance)] -= noise - 1e-6
                draws.append(generator.multivariate_normal(mean, covariance, size=size, method="eigh"))
            batch: list[int] = []
            for error, ms in zip(*draws, strict=True):
                low = np.stack([error, ms], 1)
                scaled = (low - low.min(0)) / (np.ptp(low, 0) + 1e-12)
                weight = generator.random()
                order = np.argsort(np.maximum(weight * scaled[:, 0], (1 - weight) * scaled[:, 1]))
                batch.append(next(int(at) for at in order if int(at) not in chosen and int(at) not in batch))
            values = np.concatenate([values, asked([codes[at] for at in batch])])
            chosen += batch

    return search


def expected(space: Any, latency: Callable[[Any], Any], seed: int) -> Callable[[Any], Any]:
    from ontarget.search.expected_hypervolume import expected_hypervolume

    return lambda asked: expected_hypervolume(space, asked, latency, budget=500, context=Context(seed=seed))


def all_known(space: Any, claim: Any) -> tuple[Callable[[Any], Any], dict[str, float]]:
    from sklearn.model_selection import KFold

    codes = list(claim.tabulated())
    features, table = one_hot(space, codes), np.array([row[:2] for row in claim.tabulated().values()])
    predicted = np.stack([fit_predictor(features, table[:, at])(features) for at in range(2)], 1)
    explained = {}
    for at, name in enumerate(("error", "latency")):
        found = np.zeros(len(codes))
        for train, test in KFold(5, shuffle=True, random_state=0).split(features):
            found[test] = fit_predictor(features[train], table[train, at])(features[test])
        explained[name] = float(1 - ((found - table[:, at]) ** 2).mean() / table[:, at].var())

    def search(asked: Any) -> None:
        left = np.arange(len(codes))
        while len(left):
            front = left[non_dominated(predicted[left])]
            # Spread over the front first, about eight of it, then those between.
            order = front[np.argsort(predicted[front, 1])]
            step = max(1, len(order) // 8)
            for at in [at for offset in range(step) for at in range(offset, len(order), step)]:
                asked([codes[int(order[at])]])
            left = np.setdiff1d(left, front)

    return search, explained


def smallest(claim: Any) -> int:
    """Networks of the greedily chosen set that has enough of the hypervolume."""
    table = np.array([row[:2] for row in claim.tabulated().values()])
    front = table[non_dominated(table)]
    corner = table.max(0)
    whole = hypervolume(front, corner)
    kept: list[int] = []
    while True:
        gains = [hypervolume(front[[*kept, at]], corner) for at in range(len(front))]
        kept.append(int(np.argmax(gains)))
        if max(gains) >= claim.ENOUGH * whole:
            return len(kept)


def main() -> None:
    claim = the_claim()
    space, codes = claim.space_of(), claim.every_code()
    best, explained = all_known(space, claim)
    table = profile(space.eval(), Setting(threads=1))

    def latency(asked: Any) -> Any:
        return np.array([table.predict(space.operators(code)) for code in asked])

    true_ms = np.array([row[1] for row in claim.tabulated().values()])
    told_ms = latency(codes)
    agreement = {
        "kendall": float(kendalltau(told_ms, true_ms).statistic),
        "median_error": float(np.median(abs(told_ms - true_ms) / true_ms)),
    }
    print("latency table against the tabulated latencies:", agreement, flush=True)
    ways: dict[str, Callable[[int], Callable[[Any], Any]]] = {
        "a population of 20": lambda seed: with_population(claim, space, 20, seed),
        "a population of 10": lambda seed: with_population(claim, space, 10, seed),
        "Thompson": lambda seed: thompson(space, codes, seed),
        "expected hypervolume": lambda seed: expected(space, latency, seed),
        "regularised evolution": lambda seed: claim.evolution(space, seed),
        "NSGA-II, Optuna": lambda seed: claim.optuna_search(space, seed),
        "NSGA-II, pymoo": lambda seed: claim.pymoo_search(space, seed),
        "random": lambda seed: claim.random_search(space, seed),
    }
    needed: dict[str, list[int]] = {}
    shares: dict[str, list[float]] = {}
    for name, way in ways.items():
        found = [claim.searched(way(seed)) for seed in range(SEEDS)]
        needed[name] = [one.until_enough for one in found]
        shares[name] = [one.shares[claim.BUDGET_EVALUATIONS - 1] for one in found]
        print(name, np.median(needed[name]), needed[name], f"{np.mean(shares[name]):.3f}", flush=True)
    known = claim.searched(best).until_enough
    own = ("a population of 20", "a population of 10", "Thompson", "expected hypervolume")
    others = {name: float(np.median(needed[name])) for name in ways if name not in own}
    fewest = min(others.values())
    ours = {name: float(np.median(needed[name])) for name in own}
    least = min(ours, key=lambda name: ours[name])
    record(
        "concurrent_nas_limits",
        headline=f"evaluations until 95% of the hypervolume (medians of {SEEDS} seeds): {ours['a population of 20']:g} "
        f"as published, {ours[least]:g} at best ({least}), {fewest:g} by the best other search; with predictors that "
        f"know the whole table {known}, with the front itself {smallest(claim)}; predictors explain "
        f"{explained['error']:.0%} of the errors' variance and {explained['latency']:.0%} of the latencies'",
        passed=ours[least] <= fewest / 2, target=fewest / 2, needed=needed, shares_at_60=shares,
        all_known=known, front=smallest(claim), explained=explained, latency_table=agreement,
    )  # fmt: skip


if __name__ == "__main__":
    main()
