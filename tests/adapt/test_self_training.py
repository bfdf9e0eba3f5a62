"""Self-training: guesses help where they can, held-out scores never see their row, bad input is refused."""

import numpy as np
import pytest

from ontarget.adapt.shift.self_training import self_training
from ontarget.adapt.tune.linear_head import fit_weighted, linear_head
from ontarget.errors import DataError


def sample(rows, seed, dim=20, classes=3):
    means = 0.9 * np.random.default_rng(99).normal(size=(classes, dim))
    targets = np.arange(rows) % classes
    return np.random.default_rng(seed).normal(size=(rows, dim)) + means[targets], targets


def accuracy(head, features, targets):
    return float(((features @ head.weight.T + head.bias).argmax(axis=1) == targets).mean())


def test_unlabelled_rows_help_with_few_labels():
    test, truth = sample(3000, 1)
    unlabelled, _ = sample(900, 2)
    plain, trained = [], []
    for seed in range(10, 20):
        features, targets = sample(12, seed)
        shared = {"outputs": 3, "l2_grid": (10.0,)}
        plain.append(accuracy(linear_head(features, targets, kind="classification", **shared), test, truth))
        trained.append(accuracy(self_training(features, targets, unlabelled, **shared), test, truth))
    assert np.mean(trained) > np.mean(plain) + 0.02


def test_scores_are_held_out():
    features, targets = sample(60, 3)
    unlabelled, _ = sample(200, 4)
    folds = np.arange(60) % 5
    found = self_training(features, targets, unlabelled, outputs=3, folds=folds)
    assert found.scores.shape == (60, 3)
    assert found.value == pytest.approx((found.scores.argmax(axis=1) == targets).mean())
    # A row's own label must not move its own score.
    changed = targets.copy()
    changed[folds == 0] = (changed[folds == 0] + 1) % 3
    again = self_training(features, changed, unlabelled, outputs=3, folds=folds, l2_grid=(found.l2,))
    same = self_training(features, targets, unlabelled, outputs=3, folds=folds, l2_grid=(found.l2,))
    assert again.scores[folds == 0] == pytest.approx(same.scores[folds == 0])
    held, held_targets = sample(50, 5)
    judged = self_training(features, targets, unlabelled, outputs=3, validation=(held, held_targets))
    assert judged.scores == pytest.approx(held @ judged.weight.T + judged.bias, abs=1e-4)


def test_weightless_guesses_change_nothing():
    features, targets = sample(60, 3)
    unlabelled, _ = sample(200, 4)
    found = self_training(features, targets, unlabelled, outputs=3, weight=1e-9, l2_grid=(10.0,), rounds=1)
    alone = fit_weighted(features, targets, np.ones(60), outputs=3, l2=10.0)
    # Scaling is that of all rows, so the heads agree in what they say, not in their numbers.
    assert (
        (unlabelled @ found.weight.T + found.bias).argmax(1) == (unlabelled @ alone[0].T + alone[1]).argmax(1)
    ).mean() > 0.97


def test_a_class_that_is_never_guessed():
    features, targets = sample(30, 3)
    unlabelled = sample(90, 4)[0][sample(90, 4)[1] == 0]  # rows of one class alone
    found = self_training(features, targets, unlabelled, outputs=4)
    assert np.isfinite(found.weight).all()
    assert found.scores.argmax(axis=1).max() < 3


@pytest.mark.parametrize(
    ("unlabelled", "message"),
    [(np.ones((5, 7)), "shape"), (np.ones((0, 20)), "shape"), (np.full((4, 20), np.nan), "NaN")],
)
def test_errors(unlabelled, message):
    features, targets = sample(30, 3)
    with pytest.raises(DataError, match=message):
        self_training(features, targets, unlabelled, outputs=3)
