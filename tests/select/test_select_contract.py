"""What every score must do with every kind of bad or odd input."""

import numpy as np
import pytest

from ontarget.errors import DataError, SettingError
from ontarget.select import METHODS
from ontarget.select.tmi import tmi_scaled

# Methods that take features and targets alone and give one number.
SCORES = {
    **{method.name: method.load() for method in METHODS if method.needs[0] == "features" and "ranking" in method.gives},
    "tmi_scaled": tmi_scaled,
}
REGRESSION = ("linear_probe", "logme", "nearest_neighbours")
every_score = pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)


def sample():
    random = np.random.default_rng(0)
    targets = np.arange(60) % 3
    return random.normal(size=(60, 10)) + random.normal(size=(3, 10))[targets], targets


def test_methods_are_sorted_and_documented():
    assert [method.name for method in METHODS] == sorted(method.name for method in METHODS)
    assert all(method.load().__doc__ for method in METHODS)


@every_score
def test_gives_a_float_for_any_number_type_and_order(score):
    features, targets = sample()
    expected = score(features, targets)
    assert type(expected) is float
    assert np.isfinite(expected)
    assert score(np.asfortranarray(features), targets.astype(np.uint8)) == pytest.approx(expected, rel=1e-9)
    assert score(features.astype(np.float32), targets) == pytest.approx(expected, rel=1e-4)


@every_score
def test_does_not_write_to_its_input(score):
    features, targets = sample()
    features.flags.writeable = targets.flags.writeable = False
    score(features, targets)


@every_score
def test_rows_in_another_order(score):
    features, targets = sample()
    order = np.random.default_rng(1).permutation(60)
    # The probe deals rows out to other folds, so it may move by a few rows.
    slack = 0.1 if score is SCORES["linear_probe"] else 1e-6
    assert score(features[order], targets[order]) == pytest.approx(score(features, targets), abs=slack)


@every_score
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f, y: (np.where(np.arange(10) == 4, np.nan, f), y), "row 0, column 4"),
        (lambda f, y: (np.where(f == f[5, 5], np.inf, f), y), "row 5, column 5"),
        (lambda f, y: (f[:, 0], y), "shape"),
        (lambda f, y: (f[:, :0], y), "shape"),
        (lambda f, y: (f.astype(str), y), "dtype"),
        (lambda f, y: (f, y[:-1]), "targets have shape"),
        (lambda f, y: (f, y * 0), "all 60 rows are of class 0"),
        (lambda f, y: (f, y - 1), "is -1"),
        (lambda f, y: (f, y + 0.5), "integer"),
    ],
)
def test_bad_input(score, spoil, message):
    with pytest.raises(DataError, match=message):
        score(*spoil(*sample()))


@every_score
def test_constant_columns(score):
    features, targets = sample()
    padded = np.hstack([features, np.zeros((60, 2))])
    if score is SCORES["tmi"] or score in (
        SCORES["h_score"],
        SCORES["parc"],
        tmi_scaled,
    ):  # TMI counts them in D; PARC in a row's mean
        assert np.isfinite(score(padded, targets))
    else:
        assert score(padded, targets) == pytest.approx(score(features, targets), rel=1e-6)
    assert np.isfinite(score(np.ones((60, 3)), targets))


@every_score
def test_gaps_between_classes(score):
    features, targets = sample()
    share = 3 / 5 if "tmi" in score.__name__ else 1  # TMI divides by the highest index + 1, as published
    assert score(features, targets * 2) == pytest.approx(score(features, targets) * share, rel=1e-9)


@pytest.mark.parametrize("name", REGRESSION)
def test_regression_targets(name):
    features, targets = sample()
    assert np.isfinite(SCORES[name](features, features[:, 0], kind="regression"))
    with pytest.raises(DataError, match="row 3"):
        SCORES[name](features, np.where(np.arange(60) == 3, np.nan, 1.0 * targets), kind="regression")
    with pytest.raises(DataError, match="all 60 are 1"):
        SCORES[name](features, np.ones(60), kind="regression")
    with pytest.raises(SettingError, match="kind"):
        SCORES[name](features, targets, kind="ranking")
