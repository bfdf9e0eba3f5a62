"""Leave-one-out neighbours against scikit-learn."""

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits
from sklearn.metrics import r2_score
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from ontarget.errors import SettingError
from ontarget.select.nearest_neighbours import nearest_neighbours, nearest_neighbours_rows


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("neighbours", [1, 5])
def test_scikit_learn_classifier(neighbours, metric):
    features, targets = (part[:80] for part in load_digits(n_class=2, return_X_y=True))
    features = features + np.random.default_rng(0).normal(size=features.shape) * 12
    # Two classes and an odd number: no ties, which scikit-learn breaks in another way.
    model = KNeighborsClassifier(neighbours, metric=metric)
    predicted = cross_val_predict(model, features, targets, cv=LeaveOneOut())
    scored = nearest_neighbours_rows(features, targets, neighbours=neighbours, metric=metric)
    np.testing.assert_array_equal(scored.rows, predicted == targets)
    assert 0.6 < scored.value < 1


def test_scikit_learn_regressor():
    features, targets = (part[:100] for part in load_diabetes(return_X_y=True))
    predicted = cross_val_predict(KNeighborsRegressor(5), features, targets, cv=LeaveOneOut())
    assert nearest_neighbours(features, targets, kind="regression") == pytest.approx(r2_score(targets, predicted))


def test_blocks_do_not_matter(monkeypatch):
    features, targets = load_digits(return_X_y=True)
    expected = nearest_neighbours(features, targets)
    monkeypatch.setattr("ontarget.select.nearest_neighbours.BLOCK", 100)
    assert nearest_neighbours(features, targets) == expected


def test_a_tie_goes_to_the_nearest():
    # Row 0's neighbours are 1.0 (class 0) and -1.5 (class 1); row 1's are 0.0 (class 0) and -1.5; row 2's 0.0 and 1.0.
    features, targets = np.array([[0.0], [1.0], [-1.5]]), np.array([0, 0, 1])
    np.testing.assert_array_equal(nearest_neighbours_rows(features, targets, neighbours=2).rows, [1, 1, 0])


def test_large_mean_small_spread():
    random = np.random.default_rng(0)
    targets = np.arange(40) % 2
    features = 1e6 + random.normal(size=(40, 3)) * 0.1 + targets[:, None]
    assert nearest_neighbours(features, targets) == 1.0


def test_more_neighbours_than_rows_and_none():
    assert nearest_neighbours(np.arange(4.0)[:, None], np.array([0, 0, 1, 1]), neighbours=50) == 0.0
    with pytest.raises(SettingError, match="neighbours"):
        nearest_neighbours(np.arange(4.0)[:, None], np.array([0, 0, 1, 1]), neighbours=0)
