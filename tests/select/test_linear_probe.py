"""The closed forms against scikit-learn's Ridge, refitted without each fold."""

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from ontarget.errors import SettingError
from ontarget.select.linear_probe import _folds, _standardised_basis, linear_probe, linear_probe_rows


def refitted(features, outputs, folds, penalty):
    predicted = np.empty_like(outputs)
    features = StandardScaler().fit_transform(features)
    for fold in range(folds.max() + 1):
        model = Ridge(alpha=penalty).fit(features[folds != fold], outputs[folds != fold])
        predicted[folds == fold] = model.predict(features[folds == fold]).reshape(-1, outputs.shape[1])
    return predicted


def penalty_of(features, factor):
    return factor * _standardised_basis(np.asarray(features))[1].mean()


@pytest.mark.parametrize(("rows", "factor"), [(300, 1.0), (300, 1e-3), (40, 0.1)])
def test_accuracy_is_that_of_refitted_ridge(rows, factor):
    features, targets = (part[:rows] for part in load_digits(return_X_y=True))
    features = features[:, features.std(axis=0) > 0]
    outputs, folds = np.eye(10)[targets], _folds(targets, "classification", 5, 0)
    predicted = refitted(features, outputs, folds, penalty_of(features, factor)).argmax(axis=1)
    scored = linear_probe_rows(features, targets, folds=5, penalties=(factor,))
    np.testing.assert_array_equal(scored.rows, predicted == targets)


@pytest.mark.parametrize("columns", [10, 3])
def test_r2_is_that_of_refitted_ridge(columns):
    features, targets = load_diabetes(return_X_y=True)
    features, folds = features[:, :columns], _folds(targets, "regression", 10, 0)
    predicted = refitted(features, targets[:, None], folds, penalty_of(features, 0.1))[:, 0]
    scored = linear_probe_rows(features, targets, kind="regression", penalties=(0.1,))
    assert scored.value == pytest.approx(r2_score(targets, predicted), rel=1e-9)
    assert scored.rows.mean() == pytest.approx(scored.value)


def test_penalty_is_the_one_with_the_least_left_out_error():
    random = np.random.default_rng(0)
    features = random.normal(size=(60, 50))
    targets = features[:, 0] + random.normal(size=60) * 2
    apart = {factor: linear_probe(features, targets, kind="regression", penalties=(factor,)) for factor in (1e-3, 1.0)}
    chosen = linear_probe(features, targets, kind="regression", penalties=(1e-3, 1.0))
    assert chosen == max(apart.values())
    assert min(apart.values()) < max(apart.values()) - 0.1


def test_uninformative_features_are_at_chance():
    random = np.random.default_rng(0)
    scores = [linear_probe(random.normal(size=(100, 30)), np.arange(100) % 2) for _ in range(40)]
    assert np.mean(scores) == pytest.approx(0.5, abs=0.03)


def test_units_and_constant_columns_do_not_matter():
    features, targets = (part[:200] for part in load_digits(return_X_y=True))
    units = 10.0 ** np.random.default_rng(0).integers(-3, 4, 64)
    padded = np.hstack([features * units, np.full((200, 3), 1e5)])
    assert linear_probe(padded, targets) == linear_probe(features, targets)
    # Nothing but constants: the majority's share.
    assert linear_probe(np.ones((10, 2)), np.array([0] * 7 + [1] * 3)) == 0.7


def test_few_labels_and_a_class_with_one_row():
    features, targets = load_digits(return_X_y=True)
    rows = np.concatenate([np.flatnonzero(targets == label)[:2] for label in range(3)])
    assert 0 <= linear_probe(features[rows], targets[rows]) <= 1
    lonely = np.append(rows, np.flatnonzero(targets == 5)[0])
    assert linear_probe_rows(features[lonely], targets[lonely]).rows[-1] == 0
    with pytest.raises(SettingError, match="folds"):
        linear_probe(features, targets, folds=1)
