"""PARC against the official formulas and hand-worked values."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.datasets import load_digits, load_wine
from sklearn.preprocessing import StandardScaler

from ontarget.errors import SettingError
from ontarget.select.parc import PROBE_ROWS, parc, parc_rows


def published(features, targets):
    """The steps of dbolya/parc's PARC.get_parc_correlation, without its factor 100."""
    upper = np.triu_indices(len(targets), 1)
    distances = 1 - np.corrcoef(StandardScaler().fit_transform(features))
    labels = 1 - np.corrcoef(np.eye(targets.max() + 1)[targets])
    return spearmanr(np.round(distances[upper], 12), np.round(labels[upper], 12)).statistic


def test_hand_worked():
    # Ranks of the six distances are 1.5, 1.5 for the two pairs of one class and 4.5 for the four others:
    # the labels' ranks are the same.
    assert parc(np.array([[0.0, 1], [0, 2], [1, 0], [2, 0]]), np.array([0, 0, 1, 1])) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "data", [load_wine(return_X_y=True), tuple(part[:400] for part in load_digits(return_X_y=True))]
)
def test_official_formula(data):
    assert parc(*data) == pytest.approx(published(*data), rel=1e-6)


def test_informative_features_score_higher_than_noise():
    random = np.random.default_rng(0)
    targets = np.arange(120) % 4
    noise = random.normal(size=(120, 16))
    assert abs(parc(noise, targets)) < 0.05
    assert parc(noise + 2 * random.normal(size=(4, 16))[targets], targets) > 0.4


def test_influence_is_the_derivative_by_a_rows_weight():
    random = np.random.default_rng(0)
    targets = np.arange(300) % 3
    features = random.normal(size=(300, 8)) + random.normal(size=(3, 8))[targets]
    found = parc_rows(features, targets)
    kept = [np.delete(np.arange(300), row) for row in range(40)]
    changes = [299 * (found.value - parc(features[rows], targets[rows])) for rows in kept]
    assert np.corrcoef(changes, found.rows[:40] - found.value)[0, 1] > 0.9
    assert found.rows.mean() == pytest.approx(found.value)


def test_many_rows_are_sampled_by_class():
    random = np.random.default_rng(0)
    targets = np.repeat([0, 1, 2], [1200, 600, 200])
    features = random.normal(size=(2000, 6)) + random.normal(size=(3, 6))[targets]
    found = parc_rows(features, targets)
    assert np.count_nonzero(found.rows != found.rows[np.argmin(np.abs(found.rows - found.value))]) <= PROBE_ROWS + 1
    assert found.value == pytest.approx(published(features, targets), abs=0.05)
    assert parc(features, targets) == parc(features, targets)


def test_principal_components_and_degenerate_features():
    features, targets = load_wine(return_X_y=True)
    assert parc(features, targets, dimensions=500) == parc(features, targets)
    assert np.isfinite(parc(features, targets, dimensions=4))
    assert parc(np.ones((9, 4)), np.arange(9) % 3) == 0.0
    assert parc(np.arange(9.0)[:, None], np.arange(9) % 3) == 0.0
    with pytest.raises(SettingError, match="dimensions"):
        parc(features, targets, dimensions=1)
