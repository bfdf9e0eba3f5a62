"""The linear head against scikit-learn's LogisticRegression and Ridge."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from ontarget.adapt.metric import metric_value
from ontarget.adapt.tune.assembled import Assembled
from ontarget.adapt.tune.held_out import make_folds
from ontarget.adapt.tune.linear_head import head_from_state, linear_head
from ontarget.adapt.tune.logistic import ABSENT_MARGIN, logistic_path
from ontarget.adapt.tune.majority import majority
from ontarget.errors import DataError, SettingError


def blobs(rows: int, width: int, classes: int, seed: int = 0, noise: float = 3.0):
    rng = np.random.default_rng(seed)
    targets = rng.permutation(np.arange(rows) % classes)
    mixing = rng.normal(size=(width, width)) * np.exp(-np.arange(width) / 8)
    features = (rng.normal(size=(classes, width))[targets] + noise * rng.normal(size=(rows, width))) @ mixing.T
    return (features + 5).astype(np.float32), targets


@pytest.mark.parametrize("rows", [60, 500, 2500])
@pytest.mark.parametrize("balanced", [True, False])
def test_coefficients_equal_sklearn(rows: int, balanced: bool) -> None:
    features, targets = blobs(rows, 80, 4)
    features = features.astype(np.float64)
    keep = (targets != 3) | (np.arange(rows) % 3 == 0)  # one class is rare
    features, targets = features[keep], targets[keep]
    ours = linear_head(
        features,
        targets,
        outputs=4,
        kind="classification",
        l2_grid=[20.0],
        class_weight="balanced" if balanced else None,
        scaling="standard",
        validation=(features, targets),
        tolerance=1e-4,
    )
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(C=1 / 20, tol=1e-9, max_iter=5000, class_weight="balanced" if balanced else None).fit(
        scaler.transform(features), targets
    )
    np.testing.assert_allclose(ours.weight * scaler.scale_, model.coef_, atol=1e-3 * np.abs(model.coef_).max())
    expected = model.decision_function(scaler.transform(features))
    scores = features @ ours.weight.T + ours.bias
    np.testing.assert_allclose(
        scores - scores.mean(1, keepdims=True), expected - expected.mean(1, keepdims=True), atol=5e-3
    )
    np.testing.assert_allclose(ours.scores, scores, atol=1e-3)


@pytest.mark.parametrize(("rows", "width"), [(200, 30), (20, 50)])
def test_ridge_equals_sklearn(rows: int, width: int) -> None:
    features = blobs(rows, width, 2)[0].astype(np.float64)
    values = 40 * features[:, 0] + 1000.0 + np.random.default_rng(1).normal(size=rows)
    ours = linear_head(
        features,
        values,
        outputs=1,
        kind="regression",
        l2_grid=[3.0],
        scaling="standard",
        validation=(features, values),
    )
    scaler = StandardScaler().fit(features)
    model = Ridge(alpha=3.0).fit(scaler.transform(features), values)
    np.testing.assert_allclose(ours.weight[0] * scaler.scale_, model.coef_, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours.scores[:, 0], model.predict(scaler.transform(features)), rtol=1e-5)


def test_strength_is_chosen_out_of_fold() -> None:
    features, targets = blobs(90, 60, 3, noise=2.0)
    folds = make_folds(targets, kind="classification", count=3)
    grid = (1000.0, 100.0, 10.0)
    ours = linear_head(features, targets, outputs=3, kind="classification", l2_grid=grid, folds=folds)
    values = {}
    for l2 in grid:
        one = linear_head(features, targets, outputs=3, kind="classification", l2_grid=[l2], folds=folds)
        values[l2] = one.value
        if l2 == ours.l2:  # the final head is fitted on all rows
            np.testing.assert_allclose(one.weight, ours.weight, atol=1e-4)
    assert dict(ours.path) == pytest.approx(values)
    assert values[ours.l2] == max(values.values())
    assert ours.value == pytest.approx(metric_value("accuracy", ours.scores, targets))


def test_out_of_fold_scores_have_not_seen_their_rows() -> None:
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(60, 200)).astype(np.float32), rng.integers(0, 2, 60)
    ours = linear_head(features, targets, outputs=2, kind="classification", l2_grid=[1.0])
    assert np.mean((features @ ours.weight.T + ours.bias).argmax(1) == targets) == 1.0  # learnt by heart
    assert np.mean(ours.scores.argmax(1) == targets) < 0.75  # but nothing to be learnt


def test_strong_penalty_with_few_rows_keeps_the_direction() -> None:
    # A fit that stops early is all bias under a strong penalty: every row would get the same class.
    features, targets = blobs(16, 200, 2, noise=0.5)
    ours = linear_head(features, targets, outputs=2, kind="classification", l2_grid=[1e5])
    assert np.mean((features @ ours.weight.T + ours.bias).argmax(1) == targets) == 1.0


def test_balanced_weights_help_the_rare_class() -> None:
    features, targets = blobs(600, 20, 2, noise=4.0)
    rows = np.concatenate([np.flatnonzero(targets == 0), np.flatnonzero(targets == 1)[:30]])
    fit = {"outputs": 2, "kind": "classification", "metric": "balanced_accuracy"}
    plain = linear_head(features[rows], targets[rows], **fit, class_weight=None)
    balanced = linear_head(features[rows], targets[rows], **fit)
    assert balanced.value > plain.value + 0.05


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(-50, 50))
def test_units_do_not_matter(seed: int, factor: float, shift: float) -> None:
    features, targets = blobs(40, 6, 3, seed=seed)
    features = features.astype(np.float64)
    fit = {"outputs": 3, "kind": "classification", "l2_grid": [5.0], "scaling": "standard"}
    one = linear_head(features, targets, **fit)
    scale = np.array([factor, 1, 1, 1 / factor, 1, 1])
    other = linear_head(features * scale + shift, targets, **fit)
    np.testing.assert_allclose(one.scores, other.scores, atol=2e-3)


def test_class_without_rows_scores_lowest() -> None:
    features, targets = blobs(30, 5, 2)
    ((_, weight, bias),) = logistic_path(features, targets * 2, outputs=4, l2_grid=[1.0])
    scores = features @ weight.T + bias
    assert set(scores.argmax(1)) <= {0, 2}
    assert (weight[[1, 3]] == 0).all()
    assert bias[1] == bias.min() == min(bias[0], bias[2]) - ABSENT_MARGIN
    head = linear_head(features, np.zeros(30, dtype=int), outputs=2, kind="classification")
    assert head.value == 1.0


def test_constant_and_repeated_columns() -> None:
    features, targets = blobs(50, 4, 2)
    features = np.concatenate([features, features[:, :1], np.full((50, 1), 7.0)], axis=1)
    head = linear_head(features, targets, outputs=2, kind="classification", l2_grid=[1.0])
    assert np.isfinite(head.weight).all()
    assert (head.weight[:, -1] == 0).all()
    np.testing.assert_allclose(head.weight[:, 0], head.weight[:, 4], atol=1e-5)
    flat = linear_head(np.ones((10, 3)), np.arange(10) % 2, outputs=2, kind="classification")
    assert (flat.weight == 0).all()


def test_folds_are_stratified() -> None:
    targets = np.repeat([0, 1, 2], [50, 23, 7])
    folds = make_folds(targets, kind="classification")
    for fold in range(5):
        counts = np.bincount(targets[folds == fold], minlength=3)
        assert (np.abs(counts - np.array([10, 4.6, 1.4])) <= 1).all()


def test_bad_input() -> None:
    features, targets = blobs(10, 3, 2)
    fit = {"outputs": 2, "kind": "classification"}
    with pytest.raises(DataError, match="row 4 hold NaN"):
        linear_head(np.where(np.arange(10)[:, None] == 4, np.nan, features), targets, **fit)
    with pytest.raises(DataError, match=r"0..1, got 0..2"):
        linear_head(features, np.arange(10) % 3, **fit)
    with pytest.raises(SettingError, match="positive"):
        linear_head(features, targets, **fit, l2_grid=[0.0])
    with pytest.raises(DataError, match="two folds"):
        linear_head(features, targets, **fit, folds=np.zeros(10))
    with pytest.raises(DataError, match="target of row 3"):
        linear_head(features, np.where(np.arange(10) == 3, np.inf, 1.0), outputs=1, kind="regression", l2_grid=[1.0])


def test_module_and_assembled_network() -> None:
    features, targets = blobs(40, 5, 3)
    head = linear_head(features, targets, outputs=3, kind="classification")
    encoder = torch.nn.Linear(2, 5)
    network = Assembled(encoder, head.module()).eval()
    inputs = torch.randn(7, 2)
    expected = encoder(inputs).detach().numpy() @ head.weight.T + head.bias
    np.testing.assert_allclose(network(inputs).detach().numpy(), expected, atol=1e-5)
    state = {"weight": torch.from_numpy(head.weight), "bias": torch.from_numpy(head.bias)}
    assert torch.equal(head_from_state(state)(encoder(inputs)), network(inputs))


def test_majority() -> None:
    network = majority(np.array([0, 2, 2, 2]), outputs=3, kind="classification")
    scores = network(torch.zeros(5, 7))
    assert scores.shape == (5, 3)
    np.testing.assert_allclose(scores[0].exp().tolist(), np.array([1.5, 0.5, 3.5]) / 5.5, atol=1e-6)
    assert majority(np.array([1.0, 4.0]), outputs=1, kind="regression")(torch.zeros(2, 3)).tolist() == [[2.5]] * 2
    with pytest.raises(DataError):
        majority(np.zeros(0), outputs=2, kind="classification")
