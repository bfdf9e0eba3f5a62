"""LogME against the official code's numbers, the marginal likelihood written out, and invariances."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import multivariate_normal, ortho_group
from sklearn.datasets import load_diabetes, load_digits, load_wine

from ontarget.select.logme import logme, logme_rows


def sample(rows, dim, classes=3, seed=0):
    random = np.random.default_rng(seed)
    targets = np.arange(rows) % classes
    return random.normal(size=(rows, dim)) + random.normal(size=(classes, dim))[targets] / 2, targets


@pytest.mark.parametrize(
    ("features", "targets", "kind", "expected"),
    [
        # Printed by LogME().fit of github.com/thuml/LogME (fixed-point iteration).
        (*load_digits(return_X_y=True), "classification", 0.27027745546535487),
        (*load_wine(return_X_y=True), "classification", -0.00446101810041973),
        (*load_diabetes(return_X_y=True), "regression", -6.523563962282061),
    ],
)
def test_official_code(features, targets, kind, expected):
    assert logme(features, targets, kind=kind) == pytest.approx(expected, rel=1e-8)


def test_official_code_with_fewer_rows_than_columns():
    features, targets = (part[:40] for part in load_digits(return_X_y=True))
    assert logme(features, targets, published_code=True) == pytest.approx(2.8630099975788363, rel=1e-9)
    # The authors' earlier code (_fit_icml, which stops iterating sooner) gives -0.01915.
    assert logme(features, targets) == pytest.approx(-0.0172, abs=1e-4)


@pytest.mark.parametrize(("rows", "dim"), [(60, 8), (40, 60)])
def test_is_the_maximum_of_the_marginal_likelihood(rows, dim):
    random = np.random.default_rng(0)
    features = random.normal(size=(rows, dim)) * np.arange(1, dim + 1) ** -1.0  # a spectrum with which 11 steps suffice
    targets = features @ random.normal(size=dim) + random.normal(size=rows) * 0.3

    def negative_evidence(logs):
        alpha, beta = np.exp(logs)
        covariance = features @ features.T / alpha + np.eye(rows) / beta
        return -multivariate_normal(np.zeros(rows), covariance).logpdf(targets) / rows

    best = -minimize(negative_evidence, [0.0, 0.0], method="Nelder-Mead").fun
    assert logme(features, targets, kind="regression") == pytest.approx(best, abs=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([(40, 12), (12, 40), (20, 20)]))
def test_rotation_and_names_of_classes_do_not_matter(seed, shape):
    features, targets = sample(*shape, seed=seed)
    rotated = features @ ortho_group.rvs(shape[1], random_state=seed)
    assert logme(rotated, targets) == pytest.approx(logme(features, targets), rel=1e-8)
    assert logme(features, (targets + 1) % 3 * 5) == pytest.approx(logme(features, targets), rel=1e-9)


@pytest.mark.parametrize("shape", [(60, 20), (20, 60), (30, 1), (25, 25)])
def test_both_ways_agree(shape):
    features, targets = sample(*shape)
    rows = logme_rows(features, targets)
    assert rows.value == pytest.approx(logme(features, targets), rel=1e-9)
    assert rows.rows.mean() == pytest.approx(rows.value)


def test_influence_is_the_derivative_by_a_rows_weight():
    # A row twice in 500 changes N LogME by about its expected log likelihood.
    features = np.random.default_rng(0).normal(size=(500, 3))
    targets = features @ [1.0, 2.0, 0.0] + np.random.default_rng(1).normal(size=500)
    rows = logme_rows(features, targets, kind="regression")
    changes = []
    for row in range(20):
        again = np.append(np.arange(500), row)
        changes.append(501 * logme(features[again], targets[again], kind="regression") - 500 * rows.value)
    assert np.corrcoef(changes, rows.rows[:20])[0, 1] > 0.999
    assert np.std(changes) == pytest.approx(np.std(rows.rows[:20]), rel=0.05)


def test_degenerate_features():
    features, targets = sample(50, 10)
    dead = np.hstack([features, np.zeros((50, 3)), features[:, :2]])
    assert np.isfinite(logme(dead, targets))
    # Columns of zeros leave the evidence as it is.
    assert logme(dead[:, :13], targets) == pytest.approx(logme(features, targets), rel=1e-9)
    assert np.isfinite(logme(np.zeros((50, 4)), targets))
    assert np.isfinite(logme(np.eye(50)[targets], targets))  # separable without error
    assert np.isfinite(logme(features * 1e-6, targets))
    assert np.isfinite(logme(features * 1e6, targets))
