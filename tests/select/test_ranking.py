"""The ranking: order, ties, what is left out and said, and bad input."""

import time

import numpy as np
import pytest

from ontarget.errors import DataError, SettingError
from ontarget.select.ranking import SCORES, _sample, rank_features
from ontarget.values import Context


def pool(rows=300, classes=3, seed=0):
    random = np.random.default_rng(seed)
    targets = np.arange(rows) % classes
    noise = random.normal(size=(rows, 30)).astype(np.float32)
    good = noise.copy()
    good[:, :classes] += 3 * np.eye(classes, dtype=np.float32)[targets]
    twin = good + random.normal(size=good.shape).astype(np.float32) * 0.02
    return {"file:noise": noise, "file:good": good, "file:twin": twin[:, :25]}, targets


def test_order_intervals_and_ties():
    assert rank_features(*pool()).decided_by == "parc"
    ranking = rank_features(*pool(), features_s={"file:good": 2.5}, decided_by="linear_probe")
    assert ranking.entries[-1].source == "file:noise"
    best, second, last = ranking.entries
    assert not best.too_close
    assert second.too_close
    assert not last.too_close
    assert {entry.source: entry.features_s for entry in ranking.entries}["file:good"] == 2.5
    assert {entry.source: entry.dim for entry in ranking.entries} == {
        "file:noise": 30,
        "file:good": 30,
        "file:twin": 25,
    }
    for entry in ranking.entries:
        assert set(entry.scores) == set(SCORES)
        for score in entry.scores.values():
            assert score.low <= score.value <= score.high
            assert score.seconds > 0


@pytest.mark.parametrize("decided_by", ["linear_probe", "logme", "h_score", "knn", "parc"])
def test_any_discriminative_score_can_decide(decided_by):
    ranking = rank_features(*pool(), scores=(), decided_by=decided_by)
    assert list(ranking.entries[0].scores) == [decided_by]
    assert ranking.entries[-1].source == "file:noise"


def test_same_seed_same_ranking():
    first, second = (rank_features(*pool(), context=Context(seed=3)) for _ in range(2))
    for one, other in zip(first.entries, second.entries):
        assert one.source == other.source
        assert {k: (v.value, v.low) for k, v in one.scores.items()} == {
            k: (v.value, v.low) for k, v in other.scores.items()
        }


def test_regression():
    features, _ = pool()
    random = np.random.default_rng(1)
    targets = features["file:noise"][:, 5] + random.normal(size=300) * 0.1
    features["file:other"] = random.normal(size=(300, 8))
    ranking = rank_features(features, targets, kind="regression")
    assert ranking.decided_by == "linear_probe" and ranking.entries[-1].source == "file:other"
    assert set(ranking.entries[0].scores) == {"linear_probe", "logme", "knn"}
    assert any("tmi is left out" in note for note in ranking.entries[0].notes)
    with pytest.raises(SettingError, match="cannot decide"):
        rank_features(features, targets, kind="regression", decided_by="tmi")


def test_few_labels():
    features, targets = pool(6)
    ranking = rank_features(features, targets)
    assert "tmi" not in ranking.entries[0].scores
    assert any("4 rows" in note for note in ranking.entries[0].notes)
    assert len(ranking.entries) == 3


def test_rows_are_capped_and_said():
    features, targets = pool(900)
    entry = rank_features(features, targets, max_rows=200).entries[0]
    assert "scored on 200 of 900 rows" in entry.notes


def test_sample_is_stratified():
    targets = np.repeat([0, 1, 2], [9000, 995, 5])
    rows = _sample(targets, "classification", 2000, 0)
    sizes = np.bincount(targets[rows])
    assert len(rows) == len(set(rows)) == 2000
    assert np.all(np.diff(rows) > 0)
    assert sizes[2] >= 4
    assert abs(sizes[1] / 2000 - 0.0995) < 0.005
    with pytest.raises(SettingError, match="max_rows"):
        _sample(np.repeat(np.arange(100), 5), "classification", 150, 0)


def test_deadline_keeps_the_deciding_score():
    ranking = rank_features(*pool(), context=Context(deadline=time.monotonic() - 1))
    for entry in ranking.entries:
        assert list(entry.scores) == ["parc"]
        assert any("out of time" in note for note in entry.notes)


def test_progress_is_reported():
    seen = []
    rank_features(*pool(), context=Context(progress=lambda done, total, what: seen.append((done, total))))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_bad_input_names_the_source():
    features, targets = pool()
    broken = {**features, "zoo:broken": features["file:good"].copy()}
    broken["zoo:broken"][7, 3] = np.nan
    with pytest.raises(DataError, match=r"zoo:broken.*row 7, column 3"):
        rank_features(broken, targets)
    with pytest.raises(DataError, match="zoo:short"):
        rank_features({**features, "zoo:short": features["file:good"][:10]}, targets)
    with pytest.raises(DataError, match="no source"):
        rank_features({}, targets)
    with pytest.raises(SettingError, match="did you mean 'logme'"):
        rank_features(features, targets, scores=("lgme",))
