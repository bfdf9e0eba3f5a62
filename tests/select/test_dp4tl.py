"""DP4TL: hand-worked votes, ties, brute-force nearest centroids, retention."""

import numpy as np
import pytest

from ontarget.errors import DataError, SettingError
from ontarget.select.dp4tl import centroid_votes, dp4tl, feature_mapping


def test_votes_and_ties():
    shares = np.array([[0.6, 0.1, 0.3, 0.0], [0.2, 0.5, 0.3, 0.0], [0.3, 0.2, 0.4, 0.1], [0.7, 0.1, 0.1, 0.1]])
    found = dp4tl(shares)
    assert found.votes.tolist() == [2, 1, 1, 0]
    assert found.order.tolist() == [0, 2, 1, 3]  # the tie of 1 and 2 goes to the higher summed probability
    assert found.support == pytest.approx(shares.sum(axis=0))
    assert found.kept(2).tolist() == [0, 2]
    assert found.rows(np.array([3, 2, 1, 0, 2]), 2).tolist() == [1, 3, 4]


def test_logits_give_the_same_votes():
    logits = np.random.default_rng(0).normal(size=(50, 6)) * 3
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert dp4tl(logits).order.tolist() == dp4tl(shares).order.tolist()
    assert dp4tl(logits).support == pytest.approx(dp4tl(shares).support)


def test_centroids_by_brute_force():
    random = np.random.default_rng(0)
    target, centroids = random.normal(size=(40, 5)), random.normal(size=(7, 5))
    nearest = [int(np.argmin([np.linalg.norm(row - centroid) for centroid in centroids])) for row in target]
    assert centroid_votes(target, centroids).votes.tolist() == np.bincount(nearest, minlength=7).tolist()


def test_feature_mapping_finds_the_clusters_that_the_target_lies_in():
    random = np.random.default_rng(0)
    centres = 20 * random.normal(size=(6, 4))
    classes = np.repeat(np.arange(6), 30)
    source = centres[classes] + random.normal(size=(180, 4))
    target = centres[[1, 4]].repeat(20, axis=0) + random.normal(size=(40, 4))
    ranking, labels = feature_mapping(target, source, clusters=6)
    assert set(classes[ranking.rows(labels, 2)]) == {1, 4}
    assert ranking.votes.sum() == 40
    again, _ = feature_mapping(target, source, clusters=500)  # no more clusters than rows
    assert len(again.order) == 180


def test_retention():
    found = dp4tl(np.eye(4)[[0, 0, 0, 1]] * 0.97 + 0.0075)
    table = found.retention(np.array([0, 1, 2, 3]), shares=(0.25, 0.5, 1.0))
    assert [row["classes"] for row in table] == [1, 2, 4]
    assert [row["votes"] for row in table] == [0.75, 1.0, 1.0]
    assert [row["rows"] for row in table] == [0.25, 0.5, 1.0]


def test_errors():
    with pytest.raises(DataError, match="row 1, column 0"):
        dp4tl(np.array([[0.5, 0.5], [np.nan, 1.0]]))
    with pytest.raises(DataError, match="shape"):
        dp4tl(np.ones((3, 1)))
    with pytest.raises(DataError, match="columns"):
        feature_mapping(np.ones((3, 2)), np.ones((5, 3)))
    with pytest.raises(SettingError, match="count"):
        dp4tl(np.eye(3)).kept(4)
