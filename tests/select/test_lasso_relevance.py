"""L1-A-MTRL: hand-worked plans, the optimum of the risk bound, sparse recovery, the staged budget."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Lasso

from ontarget.errors import DataError, SettingError
from ontarget.select.lasso_relevance import (
    active_sampling,
    lasso_relevance,
    least_norm_relevance,
    relevance_interval,
    sampling_plan,
)


def sparse_problem(seed=0, dim=5, tasks=20):
    random = np.random.default_rng(seed)
    heads = random.normal(size=(dim, tasks))
    heads /= np.linalg.norm(heads, axis=0)
    relevance = np.zeros(tasks)
    relevance[[2, 7]] = [1.0, -0.5]
    return heads, relevance, heads @ relevance


def test_relevance_is_the_lasso():
    heads, _, target = sparse_problem()
    expected = Lasso(alpha=0.02 / 5, fit_intercept=False, tol=1e-8).fit(heads, target).coef_
    assert lasso_relevance(heads, target, penalty=0.02) == pytest.approx(expected, abs=1e-6)


def test_sparse_relevance_is_recovered_where_the_least_norm_is_not():
    heads, relevance, target = sparse_problem(dim=12, tasks=40)
    found = lasso_relevance(heads, target, penalty=1e-3)
    assert set(np.flatnonzero(np.abs(found) > 0.05)) == {2, 7}
    least = least_norm_relevance(heads, target)
    assert heads @ least == pytest.approx(target)
    assert np.linalg.norm(least) < np.linalg.norm(relevance)
    assert np.abs(found).sum() < np.abs(least).sum()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=8).filter(lambda values: max(map(abs, values)) > 0.1))
def test_l1_plan_minimises_the_risk_term(values):
    relevance = np.array(values)
    used = np.abs(relevance) > 1e-9

    def risk(samples):
        return np.sum(relevance[used] ** 2 / samples[used]) if (samples[used] > 0).all() else np.inf

    plan = sampling_plan(relevance, 100_000, floor=1).astype(float)
    assert risk(plan) <= np.abs(relevance).sum() ** 2 / 100_000 * 1.01 + 1e-9
    for strategy in ("l2", "passive"):
        assert risk(plan) <= risk(sampling_plan(relevance, 100_000, floor=1, strategy=strategy).astype(float)) * 1.001


def test_hand_worked_plans():
    relevance = np.array([3.0, 0.0, -1.0])
    assert sampling_plan(relevance, 80, floor=0).tolist() == [60, 0, 20]
    assert sampling_plan(relevance, 80, floor=0, strategy="l2").tolist() == [72, 0, 8]
    assert sampling_plan(relevance, 81, floor=0, strategy="passive").tolist() == [27, 27, 27]
    assert sampling_plan(relevance, 80, floor=8).tolist() == [54, 8, 18]
    assert sampling_plan(relevance, 80, floor=0, most_tasks=1).tolist() == [80, 0, 0]
    # Prices 1, 1, 4: shares 3 : 0 : 1/2 cost 3 : 0 : 2, so 80 buys 48 and 8.
    assert sampling_plan(relevance, 80, floor=0, prices=np.array([1.0, 1, 4])).tolist() == [48, 0, 8]
    assert sampling_plan(np.zeros(4), 80).tolist() == [20, 20, 20, 20]
    for factor in (1e-300, 1e300):
        assert sampling_plan(factor * relevance, 80, floor=0, strategy="l2").tolist() == [72, 0, 8]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 5), min_size=1, max_size=9), st.integers(20, 999), st.integers(0, 2), st.booleans())
@example([2.3e-308], 20, 0, False)
@example([5e-324, 1.0], 20, 0, True)
def test_budget_is_kept_and_used(values, budget, floor, priced):
    prices = np.arange(1.0, len(values) + 1) if priced else np.ones(len(values))
    if floor * prices.sum() > budget:
        return
    plan = sampling_plan(np.array(values), budget, floor=floor, prices=prices)
    assert (plan >= floor).all()
    assert plan @ prices <= budget + 1e-9
    assert budget - plan @ prices <= prices.max() * len(values)


def test_errors():
    heads, _, target = sparse_problem()
    with pytest.raises(DataError, match="shape"):
        lasso_relevance(heads, target[:-1])
    with pytest.raises(DataError, match="column 3 is zero"):
        lasso_relevance(np.where(np.arange(20) == 3, 0.0, heads), target)
    with pytest.raises(SettingError, match="budget"):
        sampling_plan(np.ones(4), 10, floor=5)
    with pytest.raises(SettingError, match="Prices"):
        sampling_plan(np.ones(2), 10, prices=np.array([1.0, 0.0]))
    with pytest.raises(SettingError, match="most_tasks"):
        sampling_plan(np.ones(2), 10, most_tasks=3)
    assert lasso_relevance(heads, np.zeros(5)).tolist() == [0.0] * 20


@pytest.mark.parametrize("strategy", ["l1", "l2", "passive"])
def test_stages_spend_the_budget(strategy):
    heads, relevance, target = sparse_problem(dim=12, tasks=10)
    random = np.random.default_rng(0)
    asked = []

    def fit(samples):
        asked.append(samples.copy())
        noise = random.normal(size=heads.shape) / np.sqrt(np.maximum(samples, 1))
        return heads + 0.01 * noise, target, "predictor"

    plan = active_sampling(fit, 10, 1000, strategy=strategy)
    assert plan.samples.sum() == pytest.approx(1000, abs=3)
    assert plan.history.shape == (3, 10)
    assert plan.history[0].tolist() == [20] * 10
    assert (np.diff(np.stack(asked), axis=0) >= 0).all()
    assert plan.predictor == "predictor"
    if strategy == "l1":
        assert set(np.argsort(-plan.samples)[:2]) == set(np.argsort(-np.abs(relevance))[:2])


def test_interval_covers():
    heads, _, target = sparse_problem(dim=12, tasks=10)
    random = np.random.default_rng(0)
    draws = [heads + 0.02 * random.normal(size=heads.shape) for _ in range(10)]
    low, high = relevance_interval(draws, [target] * 10)
    assert (low <= high).all()
    assert low[2] > 0.5 > high[0]
