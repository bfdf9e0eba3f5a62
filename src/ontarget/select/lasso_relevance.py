"""L1-A-MTRL: Lasso-estimated relevance of source tasks decides how many samples each of them gets.

Yiping Wang, Yifang Chen, Kevin Jamieson, Simon Shaolei Du, "Improved Active Multi-Task Representation Learning via
Lasso", ICML 2023, arXiv 2306.02556. Official code: none known.
Claim: at equal budget the target's error is lower with samples in proportion to a sparse relevance (L1) than with the
squares of a least-norm one (L2) or equal shares; L1 never needs more samples than L2.
Left out: representations that are not shared by all tasks.
Checked in tests/select/test_lasso_relevance.py (hand-worked plans, the optimum of the risk bound) and
claims/08_l1_a_mtrl.py.

Source task t has the predictor w_t over a shared representation of k dimensions, the target w_0. The target's risk
has a term that grows as sum_t nu_t^2 / n_t, where sum_t nu_t w_t = w_0; for N samples in all it is least, |nu|_1^2 / N,
at n_t = N |nu_t| / |nu|_1: so the nu of least L1 norm is wanted,

    nu = argmin 1/2 |W nu - w_0|^2 + penalty |nu|_1

and with a price c_t a sample, n_t is in proportion to |nu_t| / sqrt(c_t).

>>> import numpy as np
>>> sampling_plan(np.array([3.0, 0.0, -1.0]), 80, floor=0).tolist()
[60, 0, 20]
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ontarget.errors import DataError, SettingError
from ontarget.values import Array

Strategy = Literal["l1", "l2", "passive"]
EXPLORATION = 0.2  # share of the budget that is drawn in equal shares first (choice)
FLOOR_SHARE = 0.01  # of N / T: the fewest samples of a task in each later stage (choice)
PENALTIES = 30  # of the Lasso's path (choice)


@dataclass(frozen=True)
class Plan:
    """relevance: (T,) nu. samples: (T,) int, in all stages together. history: (stages, T) samples of each stage.

    predictor: what the last fit returned.
    """

    relevance: Array
    samples: Array
    history: Array
    predictor: Any


def lasso_relevance(heads: Array, target: Array, *, penalty: float | None = None, normalise: bool = True) -> Array:
    """(T,) relevance nu of the source tasks for the target, sparse.

    heads: (k, T) float, a source task's predictor in each column; matrices (k * C, T) for C outputs, flattened.
    target: (k,) float. penalty: of the Lasso as above; None chooses it by cross-validation over the k rows.
    normalise: divide each head by its norm first, since a head's length is no relevance (choice).
    Raises DataError: shapes that do not fit, NaN, a head of zeros where ``normalise``.
    Source: arXiv 2306.02556, algorithm 1 (as recalled; no official code to compare with).
    """
    heads, target = _checked(heads, target)
    lengths = np.linalg.norm(heads, axis=0)
    if normalise:
        if not (lengths > 0).all():
            raise DataError(f"heads: column {int(np.argmin(lengths))} is zero.", next_step="leave the task out")
        heads = heads / lengths
    if not target.any():
        return np.zeros(heads.shape[1])
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import Lasso, LassoCV

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if penalty is None:
            folds = min(5, len(target))
            model = (
                LassoCV(fit_intercept=False, cv=folds, alphas=PENALTIES, max_iter=20_000)
                if folds > 1
                else Lasso(alpha=1e-3 * float(np.abs(heads.T @ target).max()), fit_intercept=False)
            )
        else:
            if penalty <= 0:
                raise SettingError(f"penalty is {penalty}.", allowed="more than 0", option="penalty")
            # scikit-learn divides the squared error by the number of rows.
            model = Lasso(alpha=penalty / len(target), fit_intercept=False, max_iter=20_000, tol=1e-8)
        model.fit(heads, target)
    found: Array = np.asarray(model.coef_, dtype=np.float64)
    return found


def least_norm_relevance(heads: Array, target: Array) -> Array:
    """(T,) nu of least L2 norm with heads @ nu nearest to the target: the earlier strategy (arXiv 2202.00911)."""
    heads, target = _checked(heads, target)
    found: Array = np.linalg.lstsq(heads, target, rcond=None)[0]
    return found


def sampling_plan(
    relevance: Array,
    budget: float,
    *,
    strategy: Strategy = "l1",
    floor: int | None = None,
    prices: Array | None = None,
    most_tasks: int | None = None,
) -> Array:
    """(T,) int samples of each source task, whose price is at most ``budget`` and near to it.

    strategy: "l1" in proportion to |nu| (with prices: |nu| / sqrt(price)), "l2" to nu^2, "passive" equal shares.
    floor: the fewest samples a task gets; by default FLOOR_SHARE of an equal share. most_tasks: only that many of the
    most relevant tasks get samples (for a fixed fee by used task). A relevance of zeros gives equal shares.
    Raises DataError: NaN; SettingError: a budget below the floor's price, prices that are not positive.
    """
    relevance = np.asarray(relevance, dtype=np.float64)
    tasks = len(relevance)
    if relevance.ndim != 1 or not tasks or not np.isfinite(relevance).all():
        raise DataError(f"relevance has shape {relevance.shape} or holds NaN.", allowed="(T,) finite numbers")
    price = np.ones(tasks) if prices is None else np.asarray(prices, dtype=np.float64)
    if price.shape != (tasks,) or not (price > 0).all():
        raise SettingError("Prices must be positive, one a task.", option="prices")
    largest = float(np.abs(relevance).max())
    relevance = relevance / largest if largest else relevance  # shares alone count; tiny and huge ones do not overflow
    shares = {"l1": np.abs(relevance) / np.sqrt(price), "l2": relevance**2, "passive": np.ones(tasks)}[strategy]
    if not shares.any():
        shares = np.ones(tasks)
    used = np.ones(tasks, dtype=bool)
    if most_tasks is not None:
        if not 1 <= most_tasks <= tasks:
            raise SettingError(f"most_tasks is {most_tasks}.", allowed=f"1 to {tasks}", option="most_tasks")
        used[np.argsort(-shares, kind="stable")[most_tasks:]] = False
        shares = np.where(used, shares, 0.0)
        shares = shares if shares.any() else used.astype(np.float64)
    fewest = int(FLOOR_SHARE * budget / tasks) if floor is None else floor
    least = np.where(used, fewest, 0)
    if float(least @ price) > budget:
        raise SettingError(
            f"The budget of {budget:g} does not pay for {fewest} samples of each task.",
            allowed=f"{float(least @ price):g} or more",
            option="budget",
        )
    return _whole_samples(shares, least, price, budget)


def _whole_samples(shares: Array, least: Array, price: Array, budget: float) -> Array:
    """Samples in proportion to ``shares``, none below ``least``: what lifting the low ones costs, the others pay."""
    lifted = np.zeros(len(shares), dtype=bool)
    while True:
        free = budget - float((least * price)[lifted].sum())
        weight = float((shares * price)[~lifted].sum())
        ideal = np.where(lifted, least, shares * (free / weight) if weight > 0 else least)
        low = ~lifted & (ideal < least)
        if not low.any():
            break
        lifted |= low
    samples = np.maximum(np.floor(ideal + 1e-9), least).astype(np.int64)
    for task in np.argsort(-(ideal - samples), kind="stable"):
        if shares[task] > 0 and float((samples + (np.arange(len(samples)) == task)) @ price) <= budget + 1e-9:
            samples[task] += 1
    return samples


def active_sampling(
    fit: Callable[[Array], tuple[Array, Array, Any]],
    tasks: int,
    budget: int,
    *,
    strategy: Strategy = "l1",
    stages: int = 3,
    exploration: float = EXPLORATION,
) -> Plan:
    """Spend ``budget`` samples on ``tasks`` source tasks in stages, each planned by the relevance of the one before.

    fit(samples): trains the representation with the first samples[t] rows of each task t (T,), and returns the heads
    (k, T), the target's head (k,) fitted on its own labels, and a predictor to keep. The first stage draws equal shares
    of ``exploration`` of the budget, and counts.
    Source: arXiv 2306.02556, algorithm 1.
    """
    if not 0 < exploration < 1 or stages < 2:
        raise SettingError(
            f"exploration is {exploration}, stages is {stages}.", allowed="between 0 and 1; 2 or more",
            option="exploration, stages",
        )  # fmt: skip
    first = sampling_plan(np.ones(tasks), int(exploration * budget), strategy="passive", floor=0)
    history, samples = [first], first
    relevance = np.ones(tasks)
    for stage in range(1, stages):
        heads, target, _ = fit(samples)
        relevance = _relevance(strategy, heads, target)
        left = budget - int(samples.sum())
        share = left if stage == stages - 1 else left // (stages - stage)
        history.append(sampling_plan(relevance, share, strategy=strategy))
        samples = samples + history[-1]
    heads, target, predictor = fit(samples)
    return Plan(relevance, samples, np.stack(history), predictor)


def _relevance(strategy: Strategy, heads: Array, target: Array) -> Array:
    if strategy == "l1":
        return lasso_relevance(heads, target)
    return least_norm_relevance(heads, target) if strategy == "l2" else np.ones(heads.shape[1])


def relevance_interval(
    heads: Sequence[Array], targets: Sequence[Array], *, confidence: float = 0.95
) -> tuple[Array, Array]:
    """(T,) lower and upper ends of nu over fits to resampled rows: heads and targets of each resample."""
    found = np.stack([lasso_relevance(head, target) for head, target in zip(heads, targets, strict=True)])
    tail = (1 - confidence) / 2
    return np.quantile(found, tail, axis=0), np.quantile(found, 1 - tail, axis=0)


def _checked(heads: Array, target: Array) -> tuple[Array, Array]:
    heads, target = np.asarray(heads, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if heads.ndim != 2 or target.shape != (len(heads),) or not heads.size:
        raise DataError(f"heads have shape {heads.shape}, the target's {target.shape}.", allowed="(k, T) and (k,)")
    if not np.isfinite(heads).all() or not np.isfinite(target).all():
        raise DataError("heads or target hold NaN or infinity.", next_step="check the fits of the source tasks")
    return heads, target
