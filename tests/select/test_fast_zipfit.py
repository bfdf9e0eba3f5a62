"""Fast scores: how well they agree with exact ones, that they say so truly, and what they refuse."""

import inspect
import random
import re
import zlib

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

pytest.importorskip("numba")

from ontarget.errors import DataError, SettingError
from ontarget.select.deflate_sizes import parsed
from ontarget.select.fast_zipfit import FEATURES, PARSE_LEVEL, PRIOR, fast_zipfit, target_profile, text_features
from ontarget.select.select_data import select_data
from ontarget.select.zipfit import zipfit

CODE = inspect.getsource(random) + inspect.getsource(re) + inspect.getsource(inspect)
WORDS = [
    "the",
    "town",
    "river",
    "market",
    "bridge",
    "old",
    "built",
    "travellers",
    "hill",
    "coast",
    "rest",
    "way",
    "saturday",
    "held",
    "below",
    "its",
    "there",
    "since",
]


def documents(count, seed):
    """Code, prose, and halves of both, 300 to 1,500 letters."""
    generator = random.Random(seed)
    found = []
    for number in range(count):
        size = generator.randrange(300, 1500)
        start = generator.randrange(len(CODE) - size)
        prose = " ".join(generator.choice(WORDS) for _ in range(size // 5))
        found.append(
            [CODE[start : start + size], prose[:size], CODE[start : start + size // 2] + prose[: size // 2]][number % 3]
        )
    return found


def test_agreement_is_high_and_truly_said():
    pool, targets = documents(600, 0), documents(60, 1)[::3]
    found = fast_zipfit(pool, targets)
    exact = zipfit(pool, targets)
    real = float(spearmanr(found.scores, exact).statistic)
    assert real > 0.95
    assert abs(found.agreement - real) < 0.06
    assert np.corrcoef(found.scores, exact)[0, 1] > 0.95  # estimates of the score itself, not only of its rank
    again = fast_zipfit(pool, targets)
    assert (again.scores == found.scores).all()


def bits(counts):
    """F of the module: bits of symbols with these counts at their entropy."""
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def test_features_by_definition():
    texts, targets = [b"abcabcdefabcdef", b"no"], [b"abcabcd", b"xbcabcd abcabcd"]
    profile = target_profile(targets)
    found = dict(zip(FEATURES, text_features(texts, profile).T, strict=True))
    symbols, sizes = parsed(texts, level=PARSE_LEVEL)
    size = [len(zlib.compress(text, PARSE_LEVEL, 31)) for text in texts]
    assert sizes.tolist() == size
    over = 1 / np.maximum(np.array(size)[:, None], [len(zlib.compress(target, PARSE_LEVEL, 31)) for target in targets])
    inverse = over.mean(axis=1)
    # Distinct 6-grams of the first text: abcabc bcabcd cabcde abcdef bcdefa cdefab defabc efabcd fabcde.
    assert found["distinct shingles / C"] == pytest.approx([9 * inverse[0], 0])
    # abcabc and bcabcd are in both targets.
    assert found["shared shingles / C"] == pytest.approx([4 * inverse[0], 0])
    assert found["log of 1 + shared shingles"] == pytest.approx([np.log(5), 0])
    # The first text is a, b, c, a, b, c, d, e, f, and a match of 6: zlib matches nothing with the very first byte.
    assert symbols[0, [97, 98, 99, 100, 101, 102]].tolist() == [2, 2, 2, 1, 1, 1]
    assert symbols[0, 257:286].sum() == symbols[0, 286:].sum() == symbols[0, 260] == 1
    assert found["matches / C"] == pytest.approx([inverse[0], 0])
    assert found["literals / C"] == pytest.approx([9 * inverse[0], 2 * inverse[1]])
    assert found["matches per literal"] == pytest.approx([1 / 9, 0])
    for name, part in (("literals and lengths", slice(0, 286)), ("distances", slice(286, 316))):
        mean = parsed(targets, level=PARSE_LEVEL)[0].mean(axis=0)[part]
        expected = [
            over * (bits(own[part] + mean) - bits(own[part]) - bits(mean))
            for over, own in zip(inverse, symbols, strict=True)
        ]
        assert found[f"unlikeness of {name} / C"] == pytest.approx(expected, abs=1e-12)
    counts = np.zeros(256)
    np.add.at(counts, list(texts[0]), 1)
    smoothed = (counts + 0.05) / (15 + 256 * 0.05)
    own, theirs, back = (
        found[f"cross-entropy {name}"][0] for name in ("with its own bytes", "with the targets' bytes",
                                                       "of the targets' bytes with it")
    )  # fmt: skip
    assert own == pytest.approx(-(counts / 15 * np.log2(smoothed)).sum())
    assert theirs == pytest.approx(-(counts / 15 * np.log2(profile.bytes)).sum())
    assert back == pytest.approx(-(profile.bytes * np.log2(smoothed)).sum())
    assert found["C(x) / C"] == pytest.approx(np.array(size) * inverse)
    assert len(PRIOR) == len(FEATURES)


def test_empty_and_long_texts():
    profile = target_profile([b"to be or not to be"])
    assert np.isfinite(text_features([b"", b"a", b"ab" * 40_000], profile)).all()
    assert text_features([], profile).shape == (0, len(FEATURES))
    long = CODE.encode()[:40_000]
    symbols, sizes = parsed([long])
    assert symbols.sum() * 0.7 < parsed([long[:16_000]])[0].sum() * 2.5 < symbols.sum() * 1.4
    assert sizes[0] == pytest.approx(len(zlib.compress(long, 6, 31)), rel=0.3)


def test_in_a_selection(tmp_path):
    pool, targets = documents(300, 2), documents(30, 3)[::3]
    pd.DataFrame({"text": [*pool, ""]}).to_parquet(tmp_path / "pool.parquet")
    found = select_data(tmp_path / "pool.parquet", targets, output=tmp_path / "out", count=60, mode="fast", processes=1)
    assert found.agreement is not None
    assert found.agreement > 0.8
    chosen = pd.read_parquet(tmp_path / "out" / "selected.parquet")
    best = np.argsort(-zipfit(pool, targets))[:100]
    assert chosen["row"].isin(best).mean() > 0.6
    assert "rank agreement" in (tmp_path / "out" / "selection.html").read_text()


def test_too_few_documents():
    with pytest.raises(DataError, match="too few"):
        fast_zipfit(documents(12, 0), documents(3, 1))
    with pytest.raises(SettingError, match="calibration"):
        fast_zipfit(documents(40, 0), documents(3, 1), calibration=3)
