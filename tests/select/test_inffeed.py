"""InfFeed: influence against retraining and finite differences, planted errors, relabelling."""

import numpy as np
import pytest

from ontarget.adapt.tune.logistic import logistic_path
from ontarget.errors import DataError, SettingError
from ontarget.select.inffeed import ROUNDS, fit_head, harm, inffeed, influence, loss_gradients, recheck


def sample(rows=120, dim=4, classes=3, seed=0):
    """Rows around the same class means for every seed."""
    means = 1.5 * np.random.default_rng(99).normal(size=(classes, dim))
    targets = np.arange(rows) % classes
    return np.random.default_rng(seed).normal(size=(rows, dim)) + means[targets], targets


def losses(weight, features, labels):
    logits = np.hstack([features, np.ones((len(features), 1))]) @ weight.T
    logits -= logits.max(axis=1, keepdims=True)
    return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]


def test_gradients_by_finite_differences():
    features, targets = sample(30)
    head = fit_head(features, targets, l2=1.0)
    found = loss_gradients(head, features, targets)
    for place in range(0, head.weight.size, 4):
        step = np.zeros(head.weight.size)
        step[place] = 1e-5
        change = losses(head.weight + step.reshape(head.weight.shape), features, targets) - losses(
            head.weight - step.reshape(head.weight.shape), features, targets
        )
        assert found[:, place] == pytest.approx(change / 2e-5, abs=1e-6)


def test_influence_predicts_retraining_without_a_row():
    features, targets = sample()
    others, other_targets = sample(seed=1)
    head = fit_head(features, targets, l2=1.0)
    found = influence(head, features, targets, others, other_targets).sum(axis=1)
    before = losses(head.weight, others, other_targets).sum()
    changes = []
    for row in range(40):
        kept = np.delete(np.arange(len(features)), row)
        ((_, weight, bias),) = logistic_path(
            features[kept], targets[kept], outputs=3, l2_grid=(1.0,), tolerance=1e-6, iterations=500
        )
        changes.append(losses(np.hstack([weight, bias[:, None]]), others, other_targets).sum() - before)
    # Without a helpful row (positive influence) the loss rises.
    assert np.corrcoef(found[:40], changes)[0, 1] > 0.98
    assert found[:40] == pytest.approx(np.array(changes), rel=0.35, abs=0.02)


def test_a_copy_of_a_row_helps_it_and_a_mislabelled_copy_harms_it():
    features, targets = sample()
    with_copies = np.concatenate([features, features[:2]])
    labels = np.concatenate([targets, [targets[0], (targets[1] + 1) % 3]])
    head = fit_head(with_copies, labels, l2=1.0)
    found = influence(head, with_copies, labels, features[:2], targets[:2])
    assert found[120, 0] > 0 > found[121, 1]
    relative = influence(head, with_copies, labels, features[:2], targets[:2], relative=True)
    assert np.sign(relative) == pytest.approx(np.sign(found))


def test_planted_errors_are_listed_first():
    features, targets = sample(300)
    others, other_targets = sample(200, seed=1)
    random = np.random.default_rng(2)
    wrong = random.permutation(300)[:30]
    labels = targets.copy()
    labels[wrong] = (labels[wrong] + 1) % 3
    listed = recheck(features, labels, others, other_targets)
    assert sorted(listed) == list(range(300))
    assert np.isin(listed[:30], wrong).mean() > 0.7
    some = recheck(features, labels, others, other_targets, candidates=np.arange(100))
    assert set(some) == set(range(100))
    assert harm(features, labels, others, other_targets)[wrong].mean() > 0


def test_relabelling_mends_more_than_it_breaks():
    features, targets = sample(200)
    others, truth = sample(400, seed=1)
    labels = truth.copy()
    wrong = np.random.default_rng(2).permutation(400)[:100]
    labels[wrong] = (labels[wrong] + 1) % 3
    found = inffeed(features, targets, others, labels)
    assert (found.labels == truth).mean() > (labels == truth).mean() + 0.08
    assert found.changed.tolist() == np.flatnonzero(found.labels != labels).tolist()
    assert len(found.influencers) == len(found.changed)
    assert 1 <= found.rounds <= ROUNDS
    assert (inffeed(features, targets, others, labels, margin=1.0).labels == labels).all()


def test_errors():
    features, targets = sample()
    with pytest.raises(DataError, match="All 120 labels"):
        fit_head(features, np.zeros(120, dtype=int))
    with pytest.raises(DataError, match="NaN"):
        fit_head(np.where(np.arange(4) == 1, np.nan, features), targets, l2=1.0)
    with pytest.raises(SettingError, match="margin"):
        inffeed(features, targets, features, targets, margin=2.0)
    with pytest.raises(SettingError, match="12,003 parameters"):
        fit_head(np.zeros((120, 4000)), targets, l2=1.0)
