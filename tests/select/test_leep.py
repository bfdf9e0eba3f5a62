"""LEEP and N-LEEP against tllib's formula, scikit-learn's mixture and hand-worked values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_wine

from ontarget.errors import DataError, SettingError
from ontarget.select.leep import leep, leep_rows
from ontarget.select.nleep import nleep


def sample(rows=80, source_classes=5, classes=3, seed=0):
    random = np.random.default_rng(seed)
    targets = np.arange(rows) % classes
    logits = random.normal(size=(rows, source_classes)) + 2 * random.normal(size=(classes, source_classes))[targets]
    shares = np.exp(logits)
    return shares / shares.sum(axis=1, keepdims=True), targets


def tllib(predictions, targets):
    """The steps of tllib.ranking.leep.log_expected_empirical_prediction."""
    joint = np.stack([(predictions / len(targets))[targets == label].sum(axis=0) for label in range(targets.max() + 1)])
    empirical = predictions @ (joint / joint.sum(axis=0, keepdims=True)).T
    return np.mean(np.log(empirical[np.arange(len(targets)), targets]))


def test_hand_worked():
    # A source that cannot tell the rows apart leaves the classes' shares: log 1/2.
    assert leep(np.full((4, 2), 0.5), np.array([0, 0, 1, 1])) == pytest.approx(np.log(0.5))
    assert leep(np.eye(2)[[0, 0, 1, 1]], np.array([1, 1, 0, 0])) == 0.0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_tllib(seed):
    predictions, targets = sample(seed=seed)
    assert leep(predictions, targets) == pytest.approx(tllib(predictions, targets), rel=1e-9)


def test_influence_is_the_derivative_by_a_rows_weight():
    predictions, targets = sample(400)
    found = leep_rows(predictions, targets)
    rows = [np.delete(np.arange(400), row) for row in range(40)]
    changes = [399 * (found.value - leep(predictions[kept], targets[kept])) for kept in rows]
    assert np.corrcoef(changes, found.rows[:40] - found.value)[0, 1] > 0.99
    assert found.rows.mean() == pytest.approx(found.value)


def test_a_source_class_that_no_row_has():
    predictions, targets = sample()
    padded = np.hstack([predictions, np.zeros((80, 1))])
    assert leep(padded, targets) == pytest.approx(leep(predictions, targets))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(lambda p: p * 2, "sums to 2"), (lambda p: p - 0.5, "negative"), (lambda p: p * np.nan, "NaN")],
)
def test_bad_probabilities(spoil, message):
    predictions, targets = sample()
    with pytest.raises(DataError, match=message):
        leep(spoil(predictions), targets)


def test_nleep_is_leep_of_a_mixtures_posteriors():
    from sklearn.mixture import GaussianMixture

    random = np.random.default_rng(0)
    targets = np.repeat([0, 1, 2], 40)
    rows = 6 * np.eye(3)[targets] + random.normal(size=(120, 3))
    centred = rows - rows.mean(axis=0)
    mixture = GaussianMixture(3, covariance_type="diag", random_state=0).fit(centred)
    expected = leep(mixture.predict_proba(centred), targets)
    # Well separated: any start finds the three clusters, in any rotation.
    assert nleep(rows, targets, energy=1.0, components=1) == pytest.approx(expected, abs=0.02)
    assert nleep(random.normal(size=(120, 3)), targets) < nleep(rows, targets)


def test_nleep_does_not_depend_on_order_or_signs():
    features, targets = load_wine(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(targets))
    expected = nleep(features, targets)
    assert nleep(features[order], targets[order]) == pytest.approx(expected, rel=1e-6)
    assert nleep(-features, targets) == pytest.approx(expected, rel=1e-6)
    assert np.isfinite(nleep(np.ones((30, 3)), np.arange(30) % 3))


@pytest.mark.parametrize("setting", [{"energy": 0.0}, {"energy": 1.5}, {"components": 0}])
def test_nleep_settings(setting):
    with pytest.raises(SettingError, match=next(iter(setting))):
        nleep(*load_wine(return_X_y=True), **setting)
