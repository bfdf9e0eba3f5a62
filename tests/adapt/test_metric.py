"""Metrics against scikit-learn and SciPy; their row-wise shares against the metrics."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from ontarget.adapt.metric import metric_value, row_scores
from ontarget.errors import DataError, SettingError
from ontarget.task import CLASSIFICATION_METRICS, REGRESSION_METRICS

REFERENCE = {
    "accuracy": metrics.accuracy_score,
    "balanced_accuracy": metrics.balanced_accuracy_score,
    "macro_f1": lambda targets, predicted: metrics.f1_score(targets, predicted, average="macro"),
    "r2": metrics.r2_score,
    "neg_mae": lambda targets, predicted: -metrics.mean_absolute_error(targets, predicted),
    "neg_rmse": lambda targets, predicted: -np.sqrt(metrics.mean_squared_error(targets, predicted)),
    "spearman": lambda targets, predicted: stats.spearmanr(targets, predicted).statistic,
}


def test_worked_values() -> None:
    scores = np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [0.0, 9.0]])
    targets = np.array([0, 1, 1, 1])  # predicted 0, 1, 0, 1
    assert metric_value("accuracy", scores, targets) == 0.75
    assert metric_value("balanced_accuracy", scores, targets) == pytest.approx((1 + 2 / 3) / 2)
    assert metric_value("macro_f1", scores, targets) == pytest.approx((2 / 3 + 4 / 5) / 2)
    np.testing.assert_allclose(row_scores("balanced_accuracy", scores, targets), [2, 2 / 3, 0, 2 / 3])
    values, wanted = np.array([[1.0], [2.0], [4.0]]), np.array([1.0, 2.0, 3.0])
    assert metric_value("r2", values, wanted) == pytest.approx(0.5)
    assert metric_value("neg_mae", values, wanted) == pytest.approx(-1 / 3)
    assert metric_value("spearman", values, wanted) == pytest.approx(1.0)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(2, 40), st.sampled_from(CLASSIFICATION_METRICS))
def test_classification_equals_sklearn(seed: int, classes: int, rows: int, name: str) -> None:
    rng = np.random.default_rng(seed)
    scores, targets = rng.normal(size=(rows, classes)), rng.integers(0, classes, rows)
    with np.errstate(all="ignore"):
        expected = REFERENCE[name](targets, scores.argmax(1))
    assert metric_value(name, scores, targets) == pytest.approx(expected)
    mean = row_scores(name, scores, targets).mean()
    other = metrics.balanced_accuracy_score(targets, scores.argmax(1)) if name == "macro_f1" else expected
    assert mean == pytest.approx(other)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 40), st.sampled_from(REGRESSION_METRICS))
def test_regression_equals_reference(seed: int, rows: int, name: str) -> None:
    rng = np.random.default_rng(seed)
    values, targets = rng.integers(0, 9, rows).astype(float), rng.integers(0, 9, rows).astype(float)
    values[0], targets[0] = 20.0, 30.0  # never constant; many ties
    expected = REFERENCE[name](targets, values)
    assert metric_value(name, values[:, None], targets) == pytest.approx(expected)
    mean = row_scores(name, values, targets).mean()
    assert mean == pytest.approx(-(expected**2) if name == "neg_rmse" else expected)


def test_constant_columns_stay_finite() -> None:
    ones = np.ones(4)
    assert metric_value("r2", ones, ones) == 1.0
    assert metric_value("r2", np.arange(4.0), ones) == 0.0
    assert metric_value("spearman", ones, np.arange(4.0)) == 0.0


def test_bad_input() -> None:
    with pytest.raises(SettingError, match="did you mean 'accuracy'"):
        metric_value("acuracy", np.zeros((1, 2)), np.zeros(1))
    with pytest.raises(DataError, match="row 1 is not finite"):
        metric_value("accuracy", np.array([[0.0, 1], [np.nan, 0]]), np.array([0, 1]))
    with pytest.raises(DataError, match="as many scores"):
        metric_value("r2", np.zeros(3), np.zeros(2))
    with pytest.raises(DataError, match=r"classes 0\.\.2"):
        metric_value("accuracy", np.zeros((2, 2)), np.array([0, 2]))
