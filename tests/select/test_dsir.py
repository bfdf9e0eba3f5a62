"""DSIR against the official steps, written out with the package's own hashing."""

import hashlib
from itertools import pairwise

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from ontarget.errors import DataError, SettingError
from ontarget.select.dsir import bucket_counts, dsir, dsir_weights, fit_dsir, resample

POOL = [
    "\u0d2a\u0d4d\u0d30\u0d35\u0d40 marks belong to words",
    "The red house, by the sea.",
    "def f(x): return x + 1",
    "Red wine by the sea",
    "x = f(x) + 1  # again",
    "1 2 3",
]
TARGET = ["return f(x)", "def g(x): return x"]


def counts(text, buckets=10_000):
    """get_ngram_counts of data_selection.hashed_ngram_dsir with NLTK's WordPunctTokenizer."""
    words = regex.findall(r"\w+|[^\w\s]+", text.lower())
    found = np.zeros(buckets, dtype=int)
    for gram in [*words, *(" ".join(pair) for pair in pairwise(words))]:
        found[int(hashlib.sha256(gram.encode("utf-8")).hexdigest(), 16) % buckets] += 1
    return found


def test_official_weights():
    pool, target = (sum(counts(text) for text in texts) for texts in (POOL, TARGET))
    ratio = np.log(target / target.sum() + 1e-8) - np.log(pool / pool.sum() + 1e-8)
    found = fit_dsir(POOL, TARGET)
    assert found.log_ratio == pytest.approx(ratio, abs=1e-12)
    assert dsir_weights(POOL, found) == pytest.approx([counts(text) @ ratio for text in POOL], abs=1e-9)
    assert dsir_weights(POOL, found)[2] > dsir_weights(POOL, found)[1]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=60), max_size=5))
def test_counts_add_up(texts):
    assert (bucket_counts(texts, 64) == sum((counts(text, 64) for text in texts), np.zeros(64, dtype=int))).all()


def test_drawn_in_proportion_to_the_weights():
    log_weights = np.log([1.0, 2.0, 3.0, 4.0])
    first = [resample(log_weights, 1, seed=seed)[0] for seed in range(4000)]
    assert np.bincount(first, minlength=4) / 4000 == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.03)
    assert resample(log_weights, 2, top=True).tolist() == [3, 2]
    assert sorted(resample(log_weights, 4)) == [0, 1, 2, 3]


def test_errors():
    with pytest.raises(DataError, match="target has no word"):
        fit_dsir(POOL, ["", "  "])
    with pytest.raises(DataError, match="pool has no word"):
        fit_dsir([], TARGET)
    with pytest.raises(SettingError, match="count is 9"):
        dsir(POOL, TARGET, count=9)
    assert len(dsir(POOL, TARGET, count=2)) == 2
