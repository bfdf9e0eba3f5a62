"""TMI against values worked by hand, the official code's numbers, and the properties that its formula has."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.special import digamma
from sklearn.datasets import load_digits, load_wine

from ontarget.errors import DataError, SettingError
from ontarget.select.tmi import find_neighbours, floored_share, tmi, tmi_rows, tmi_scaled


def by_definition(features, targets, neighbours=3, floor=1.0):
    total = 0.0
    for label in range(targets.max() + 1):
        rows = features[targets == label]
        distances = np.sort(cdist(rows, rows, "chebyshev"), axis=1)[:, neighbours]
        entropy = digamma(len(rows)) - digamma(neighbours)
        entropy += features.shape[1] * np.mean(np.log(2 * np.maximum(distances, floor)))
        total += len(rows) / len(features) * entropy
    return total / (targets.max() + 1)


def sample(rows=90, dim=60, classes=3, seed=0):
    random = np.random.RandomState(seed)
    return random.randn(rows, dim) * 3, np.arange(rows) % classes


def test_hand_worked():
    # psi(2) - psi(1) = 1; class 0: log(2 * 2) twice, class 1: log(2 * 4) twice; halves of both, over two classes.
    features, targets = np.array([[0.0], [2.0], [10.0], [14.0]]), np.array([0, 0, 1, 1])
    assert tmi(features, targets, neighbours=1) == pytest.approx((1 + (np.log(4) + np.log(8)) / 2) / 2)


@pytest.mark.parametrize(
    ("features", "targets", "expected"),
    [
        (*load_digits(return_X_y=True), 18.019952428386336),
        (*load_wine(return_X_y=True), 16.741976308475845),
        (*sample(), 58.13770173481959),
        (sample()[0] / 20, sample()[1], 14.68349487706125),  # every distance floored
    ],
)
def test_official_code(features, targets, expected):
    # Numbers printed by TMI() of github.com/snudatalab/TMI, src/trf_measurement.py, its defaults.
    assert tmi(features, targets) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("dim", [1, 5, 12, 13, 80])
def test_every_search_gives_the_definition(dim):
    features, targets = sample(dim=dim)
    assert tmi(features, targets, neighbours=2) == pytest.approx(by_definition(features, targets, 2), rel=1e-6)


def test_large_class_in_blocks(monkeypatch):
    monkeypatch.setattr("ontarget.select.tmi.PAIRS_AT_ONCE", 16)
    features, targets = sample()
    assert tmi(features, targets) == pytest.approx(by_definition(features, targets), rel=1e-6)


def test_copies_are_neighbours_at_distance_zero():
    for dim in (2, 30):
        features = np.repeat(np.random.default_rng(0).normal(size=(6, dim)), 5, axis=0)
        assert np.all(find_neighbours(features, np.arange(30) // 15).distances == 0)
        assert floored_share(features, np.arange(30) // 15) == 1.0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(2.0, 50.0))
def test_scale(seed, factor):
    features, targets = sample(30, 20, 2, seed)
    # Above the floor, scaling adds D log(factor) / C; the scaled variant does not move, nor does it with a shift.
    shift = tmi(features * factor, targets, min_distance=1e-9) - tmi(features, targets, min_distance=1e-9)
    assert shift == pytest.approx(20 * np.log(factor) / 2, rel=1e-4)
    assert tmi_scaled(features * factor + 3, targets) == pytest.approx(tmi_scaled(features, targets), abs=1e-5)


def test_renamed_classes_and_shuffled_columns():
    features, targets = sample()
    assert tmi(features[:, ::-1], 2 - targets) == pytest.approx(tmi(features, targets))


def test_floored_share_is_said():
    features, targets = sample()
    assert floored_share(features, targets) == 0
    assert not tmi_rows(features, targets).notes
    assert "100%" in tmi_rows(features / 100, targets).notes[0]


def test_a_class_without_rows_counts_zero_as_published():
    features, targets = sample()
    moved = np.where(targets == 2, 3, targets)
    assert tmi(features, moved) == pytest.approx(tmi(features, targets) * 3 / 4)


def test_too_few_rows_and_bad_settings():
    features, targets = sample(20, 4, 2)
    targets[:2] = 2
    with pytest.raises(DataError, match="class 2 has 2 rows"):
        tmi(features, targets)
    with pytest.raises(SettingError, match="neighbours is 0"):
        tmi(features, targets, neighbours=0)
    with pytest.raises(SettingError, match="min_distance"):
        tmi(features, targets % 2, min_distance=0.0)
