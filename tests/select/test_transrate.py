"""TransRate against the published formulas and hand-worked values."""

import numpy as np
import pytest
from scipy.stats import ortho_group
from sklearn.datasets import load_digits, load_wine

from ontarget.errors import SettingError
from ontarget.select.transrate import transrate, transrate_rows


def published(features, targets, eps=1e-4):
    """The code of the paper's appendix, which tllib.ranking.transrate repeats."""

    def rate(rows):
        n, dim = rows.shape
        return 0.5 * np.linalg.slogdet(np.eye(dim) + 1 / (n * eps) * rows.T @ rows)[1]

    centred = features - features.mean(axis=0, keepdims=True)
    classes = range(int(targets.max()) + 1)
    return rate(centred) - sum(rate(centred[targets == label]) for label in classes) / len(classes)


def test_hand_worked():
    # All rows have the square 1, so every rate is log(1 + 1 / eps) / 2, and so is the mean over classes.
    assert transrate(np.array([[1.0], [1.0], [-1.0], [-1.0]]), np.array([0, 0, 1, 1])) == pytest.approx(0.0)
    # Classes on axes of their own: log(1 + 0.5)^2 / 2 for all, log(1 + 1) / 2 for each class; eps = 1.
    rows = np.array([[1.0, 0], [-1.0, 0], [0, 1.0], [0, -1.0]])
    expected = np.log(1.5) - 0.5 * np.log(2)
    assert transrate(rows, np.array([0, 0, 1, 1]), distortion=1.0) == pytest.approx(expected)


@pytest.mark.parametrize("data", [load_digits(return_X_y=True), load_wine(return_X_y=True)])
def test_published_formula(data):
    assert transrate(*data) == pytest.approx(published(*data), rel=1e-9)


def test_more_columns_than_rows():
    random = np.random.default_rng(0)
    features, targets = random.normal(size=(40, 100)), np.arange(40) % 4
    assert transrate(features, targets) == pytest.approx(published(features, targets), rel=1e-9)
    turned = features @ ortho_group.rvs(100, random_state=0) + 3
    assert transrate(turned, targets) == pytest.approx(transrate(features, targets), rel=1e-6)


@pytest.mark.parametrize("shape", [(400, 6), (60, 90)])
def test_influence_is_the_derivative_by_a_rows_weight(shape):
    random = np.random.default_rng(1)
    targets = np.arange(shape[0]) % 3
    features = (
        random.normal(size=shape) * random.gamma(2, size=(shape[0], 1)) + random.normal(size=(3, shape[1]))[targets]
    )
    distortion = 0.5
    found = transrate_rows(features, targets, distortion=distortion)
    rows = [np.delete(np.arange(shape[0]), row) for row in range(40)]
    changes = [
        (shape[0] - 1) * (found.value - transrate(features[kept], targets[kept], distortion=distortion))
        for kept in rows
    ]
    # Leaving a row out is no small step where there are fewer rows than columns.
    assert np.corrcoef(changes, found.rows[:40] - found.value)[0, 1] > (0.95 if shape[0] > shape[1] else 0.85)
    assert found.rows.mean() == pytest.approx(found.value)


def test_distortion_must_be_positive():
    with pytest.raises(SettingError, match="distortion"):
        transrate(np.eye(4), np.array([0, 0, 1, 1]), distortion=0.0)
