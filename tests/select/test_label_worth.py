"""What more labels bring: known power laws are recovered, intervals cover, the shape is right on real digits."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from ontarget.errors import DataError, SettingError
from ontarget.select.label_worth import extrapolate, fit_power_law, label_worth, power_law


def test_exact_power_laws():
    sizes = np.array([20, 40, 80, 160])
    for law in ((0.0, 1.2, 0.5), (0.1, 0.9, 0.3), (0.05, 2.0, 1.0)):
        found = fit_power_law(sizes, power_law(law, sizes), np.ones(4))
        assert power_law(found, np.array([1000])) == pytest.approx(power_law(law, np.array([1000])), rel=0.05)


def test_intervals_cover():
    sizes, law = [25, 50, 100, 200], (0.08, 1.0, 0.5)
    covered = []
    for seed in range(16):
        random = np.random.default_rng(seed)
        errors = power_law(law, np.array(sizes))[:, None] + 0.02 * random.normal(size=(4, 8))
        found = extrapolate(sizes, errors, [400], seed=seed)[0]
        covered.append(found.low <= power_law(law, np.array([400]))[0] <= found.high)
    assert np.mean(covered) >= 0.75


def test_digits():
    features, targets = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(targets))
    found = label_worth(features[order[:200]], targets[order[:200]], outputs=10, repeats=4)
    assert found.metric == "accuracy"
    assert found.values.shape == (4, 4)
    assert (np.diff(found.values.mean(axis=1)) > 0).all()
    assert found.now.value < found.after[10].value + 1e-9 < found.after[100].value < found.after[1000].value <= 1.0
    assert all(score.low <= score.value <= score.high for score in found.after.values())
    assert found.after[1000].value > 0.9  # a linear model of 1,200 of these digits has 0.95


def test_regression_and_errors():
    random = np.random.default_rng(0)
    features = random.normal(size=(80, 5))
    found = label_worth(
        features, features[:, 0] + 0.5 * random.normal(size=80), outputs=1, kind="regression", repeats=3
    )
    assert found.metric == "r2"
    assert 0.5 < found.after[1000].value <= 1.0
    with pytest.raises(DataError, match="too few"):
        label_worth(features[:9], np.arange(9) % 2, outputs=2)
    with pytest.raises(SettingError, match="neg_mae"):
        label_worth(features, features[:, 0], outputs=1, kind="regression", metric="neg_mae")
    with pytest.raises(DataError, match="sizes"):
        extrapolate([1, 2], [[0.1]], [5])
