"""ZIP-FIT against its definition, and the guard against scores that measure length."""

import gzip
import random
from pathlib import Path

import numpy as np
import pytest

from ontarget.errors import DataError, SettingError
from ontarget.select.length_guard import banded_ranks, length_share, refuse_length_scores
from ontarget.select.zipfit import compress_targets, zipfit, zipfit_pairs

CODE = Path(random.__file__).read_text()


def documents(count, low=300, high=1500, seed=0):
    generator = random.Random(seed)
    starts = [generator.randrange(len(CODE) - high) for _ in range(count)]
    return [CODE[start : start + generator.randrange(low, high)] for start in starts]


def by_definition(texts, targets, compress):
    def size(text):
        return len(compress(text.encode()))

    return [
        np.mean([1 - (size(x + t) - min(size(x), size(t))) / max(size(x), size(t)) for t in targets]) for x in texts
    ]


def test_definition_with_gzip():
    texts, targets = [*documents(8), "", "é" * 40, "a"], documents(5, seed=1)
    for level in (1, 6, 9):
        expected = by_definition(texts, targets, lambda content, level=level: gzip.compress(content, level))
        assert zipfit(texts, targets, level=level) == pytest.approx(expected, abs=1e-12)
    assert zipfit(texts, targets) == pytest.approx(zipfit(texts, targets, level=6))


def test_definition_with_lz4():
    frame = pytest.importorskip("lz4.frame")
    texts, targets = documents(6), documents(3, seed=1)
    assert zipfit(texts, targets, compressor="lz4") == pytest.approx(by_definition(texts, targets, frame.compress))


def test_long_documents():
    texts, targets = [CODE[:20000], CODE[:300]], [CODE[5000:6000], CODE[:17000]]
    assert zipfit(texts, targets) == pytest.approx(by_definition(texts, targets, lambda text: gzip.compress(text, 6)))


def test_target_of_one_and_pairs():
    texts, targets = documents(4), documents(2, seed=1)
    pairs = zipfit_pairs(texts, compress_targets(targets))
    assert pairs.shape == (4, 2)
    assert zipfit(texts, targets[:1]) == pytest.approx(pairs[:, 0])
    assert zipfit(texts, targets) == pytest.approx(pairs.mean(axis=1))


def test_nearest_finds_relatives_of_single_targets():
    targets = documents(12, seed=1)
    copy = targets[7].replace("self", "that")
    texts = [*documents(10, seed=2), copy]
    pairs = zipfit_pairs(texts, compress_targets(targets))
    nearest = zipfit(texts, targets, aggregate="nearest")
    assert nearest == pytest.approx(pairs.max(axis=1))
    assert nearest.argmax() == 10
    with pytest.raises(SettingError, match="mean, nearest"):
        zipfit(texts, targets, aggregate="median")


def test_like_text_scores_higher():
    prose = ["In the beginning the river ran clear and the town slept below the hill. " * 8] * 3
    scores = zipfit([*documents(3), *prose], documents(6, seed=1))
    assert scores[:3].min() > scores[3:].max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"level": 0}, "stores the text"), ({"level": 12}, "Level 12"), ({"compressor": "zip"}, "no compressor 'zip'")],
)
def test_refused_settings(arguments, message):
    with pytest.raises(SettingError, match=message):
        zipfit(["a"], ["b"], **arguments)


def test_no_target():
    with pytest.raises(DataError, match="no target"):
        zipfit(["a"], [])


# --- length --------------------------------------------------------------------------------------------------


def test_gzip_level_0_measures_length_and_is_refused():
    texts, targets = documents(400), documents(4, seed=1)
    lengths = np.array([len(text.encode()) for text in texts])
    stored = np.array(by_definition(texts, targets, lambda content: gzip.compress(content, 0)))
    assert length_share(stored, lengths) > 0.98
    with pytest.raises(DataError, match="their length"):
        refuse_length_scores(stored, lengths)
    assert refuse_length_scores(zipfit(texts, targets), lengths) < 0.98


def test_length_share_of_known_scores():
    generator = np.random.default_rng(0)
    lengths, noise = generator.integers(100, 1000, 2000), generator.normal(size=2000)
    assert length_share(noise, lengths) < 0.05
    assert length_share((lengths - 500.0) ** 2, lengths) > 0.98  # not monotone, and still nothing but length
    half = length_share(np.argsort(np.argsort(lengths)) / 2000 * 12**0.5 + noise, lengths)
    assert 0.3 < half < 0.7
    assert length_share(noise, np.full(2000, 7)) == 0.0
    assert length_share(noise[:50], lengths[:50]) == 0.0


def test_banded_ranks():
    lengths = np.array([1, 1, 1, 100, 100, 100])
    scores = np.array([0.9, 0.8, 0.7, 0.3, 0.2, 0.1])
    assert banded_ranks(scores, lengths, bands=2) == pytest.approx([5 / 6, 0.5, 1 / 6] * 2)
    assert banded_ranks(scores, lengths, bands=1) == pytest.approx((np.arange(6)[::-1] + 0.5) / 6)
    assert banded_ranks(np.ones(6), np.ones(6), bands=4) == pytest.approx(np.full(6, 0.5))
