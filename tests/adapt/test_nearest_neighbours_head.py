"""Nearest neighbours as a network, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from ontarget.adapt.metric import metric_value
from ontarget.adapt.tune.nearest_neighbours import (
    PSEUDO_COUNT,
    TEMPERATURE,
    nearest_neighbours,
)
from ontarget.errors import SettingError


def rows(count: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, count)
    return (np.eye(8)[targets] + 0.7 * rng.normal(size=(count, 8)) + 3).astype(np.float32), targets


def unit(features: np.ndarray, train: np.ndarray) -> np.ndarray:
    centred = features - train.mean(axis=0, dtype=np.float64)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


def weights(distance: np.ndarray) -> np.ndarray:
    return np.exp((1 - distance**2 / 2) / TEMPERATURE)  # of unit vectors: cosine = 1 - distance^2 / 2


@pytest.mark.parametrize("neighbours", [1, 5, 20])
def test_votes_equal_sklearn(neighbours: int) -> None:
    train, targets = rows(200)
    held, held_targets = rows(50, seed=1)
    ours = nearest_neighbours(
        train,
        targets,
        outputs=3,
        kind="classification",
        neighbours=[neighbours],
        validation=(held, held_targets),
    )
    model = KNeighborsClassifier(neighbours, weights=weights).fit(unit(train, train), targets)
    expected = model.predict_proba(unit(held, train)) * (1 - PSEUDO_COUNT) + PSEUDO_COUNT / 3
    np.testing.assert_allclose(np.exp(ours.scores), expected, atol=1e-4)
    assert ours.value == pytest.approx(metric_value("accuracy", ours.scores, held_targets))


def test_mean_equals_sklearn_for_regression() -> None:
    train, targets = rows(100)
    held, held_targets = rows(30, seed=1)
    ours = nearest_neighbours(
        train,
        targets * 10.0,
        outputs=1,
        kind="regression",
        neighbours=[5],
        validation=(held, held_targets * 10.0),
    )
    model = KNeighborsRegressor(5, weights=weights).fit(unit(train, train), targets * 10.0)
    np.testing.assert_allclose(ours.scores[:, 0], model.predict(unit(held, train)), atol=1e-3)


def test_out_of_fold_leaves_the_row_itself_out() -> None:
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(100, 5)), rng.integers(0, 2, 100)
    ours = nearest_neighbours(features, targets, outputs=2, kind="classification", neighbours=[1])
    assert ours.value < 0.7  # a row that found itself would score 1
    with torch.inference_mode():
        assert (ours.network(torch.from_numpy(features).float()).argmax(1).numpy() == targets).all()


def test_number_of_neighbours_is_chosen_and_rows_are_capped() -> None:
    train, targets = rows(400)
    ours = nearest_neighbours(train, targets, outputs=3, kind="classification", max_rows=90)
    assert ours.network.rows.shape[1] <= 90
    assert ours.neighbours > 1  # noisy rows want more than one
    assert ours.scores.shape == (400, 3)


def test_bad_settings() -> None:
    train, targets = rows(20)
    with pytest.raises(SettingError):
        nearest_neighbours(train, targets, outputs=3, kind="classification", neighbours=[0])
