"""The H-score against tllib's formulas with scikit-learn's Ledoit-Wolf, hand-worked values and invariances."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group
from sklearn.covariance import LedoitWolf
from sklearn.datasets import load_digits, load_wine

from ontarget.errors import DataError
from ontarget.select.h_score import h_score, h_score_rows, ledoit_wolf


def sample(rows=60, dim=8, classes=3, seed=0):
    random = np.random.default_rng(seed)
    targets = np.arange(rows) % classes
    return random.normal(size=(rows, dim)) + random.normal(size=(classes, dim))[targets], targets


def test_hand_worked():
    # Variance of the class means 1, 1, 5, 5 is 16/3, of the features 20/3.
    assert h_score(np.array([[0.0], [2.0], [4.0], [6.0]]), np.array([0, 0, 1, 1]), shrinkage=False) == pytest.approx(
        0.8
    )


@pytest.mark.parametrize(
    ("data", "plain", "shrunk"),
    [
        # Printed by h_score and regularized_h_score of tllib.ranking.hscore (thuml/Transfer-Learning-Library).
        (load_digits(return_X_y=True), 5.9179093366955255, 5.851432997953621),
        (load_wine(return_X_y=True), 1.7058208021292534, 0.7660975647222699),
    ],
)
def test_tllib(data, plain, shrunk):
    assert h_score(*data, shrinkage=False) == pytest.approx(plain, rel=1e-9)
    assert h_score(*data) == pytest.approx(shrunk, rel=1e-9)


@pytest.mark.parametrize("shape", [(60, 8), (30, 50)])
def test_shrinkage_is_ledoit_and_wolfs(shape):
    features, _ = sample(*shape)
    centred = features - features.mean(axis=0)
    covariance = centred.T @ centred / len(centred)
    expected = LedoitWolf(assume_centered=True).fit(centred).shrinkage_
    assert ledoit_wolf(covariance, (centred**2).sum(axis=1)) == pytest.approx(expected)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.booleans(), st.floats(0.01, 100))
def test_rotation_scale_and_names_of_classes_do_not_matter(seed, shrinkage, factor):
    features, targets = sample(seed=seed)
    rotated = features @ ortho_group.rvs(8, random_state=seed) * factor + 2
    expected = h_score(features, targets, shrinkage=shrinkage)
    assert h_score(rotated, 2 - targets, shrinkage=shrinkage) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shrinkage", [False, True])
def test_influence_is_the_derivative_by_a_rows_weight(shrinkage):
    features, targets = sample(600)
    rows = h_score_rows(features, targets, shrinkage=shrinkage)
    changes = []
    for row in range(30):
        kept = np.delete(np.arange(600), row)
        changes.append(599 * (rows.value - h_score(features[kept], targets[kept], shrinkage=shrinkage)))
    assert np.corrcoef(changes, rows.rows[:30] - rows.value)[0, 1] > 0.99
    assert rows.rows.mean() == pytest.approx(rows.value)


def test_degenerate_features():
    features, targets = sample()
    with_constants = np.hstack([features, np.full((60, 2), 7.0), features[:, :1]])
    assert h_score(with_constants, targets, shrinkage=False) == pytest.approx(
        h_score(features, targets, shrinkage=False)
    )
    assert np.isfinite(h_score(with_constants, targets))
    assert h_score(np.ones((60, 3)), targets) == 0.0
    # As many columns as rows: without shrinkage any features look perfect.
    assert h_score(np.random.default_rng(0).normal(size=(60, 60)), targets, shrinkage=False) == pytest.approx(2)
    with pytest.raises(DataError, match="class"):
        h_score(features, np.zeros(60, dtype=np.int64))
