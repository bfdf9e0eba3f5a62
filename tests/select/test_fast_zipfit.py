"""Fast scores: how well they agree with exact ones, that they say so truly, and what they refuse."""

import inspect
import random
import re

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

pytest.importorskip("numba")

from ontarget.errors import DataError, SettingError
from ontarget.select.fast_zipfit import _tables, fast_zipfit, text_features
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


def test_features_by_hand():
    tables, shares = _tables([b"abcabcd", b"xbcabc"])
    found = text_features([b"abcabc", b""], tables, shares)
    # Distinct 4-, 6- and 10-grams of abcabc: abca, bcab, cabc; itself; none.
    assert found[0, 3:6].tolist() == [3, 1, 0]
    # Targets that have them: abca one, bcab two, cabc two; abcabc one.
    assert found[0, :3].tolist() == [5, 1, 0]
    assert found[0, 6] == 6
    assert found[0, 10] == 3
    counts = np.zeros(256)
    counts[[97, 98, 99]] = 2
    smoothed = (counts + 0.05) / (6 + 256 * 0.05)
    assert found[0, 7] == pytest.approx(-(counts / 6 * np.log2(smoothed)).sum())
    assert found[0, 8] == pytest.approx(-(counts / 6 * np.log2(shares)).sum())
    assert found[0, 9] == pytest.approx(-(shares * np.log2(smoothed)).sum())
    assert found[1, :7].tolist() == [0] * 7
    assert np.isfinite(found).all()


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
