"""DSIR: resample a raw text pool so that its n-grams are distributed like the target's.

Sang Michael Xie, Shibani Santurkar, Tengyu Ma, Percy Liang, "Data Selection for Language Models via Importance
Resampling", NeurIPS 2023, arXiv 2302.03169. Official code: github.com/p-lambda/dsir (package data-selection).
Claim: language models trained on the selection do better downstream than on random or heuristically filtered text.
Here as the baseline of `zipfit`.
Left out: n-grams beyond two words; the quality filters of the official repository.
Checked in tests/select/test_dsir.py (the official formulas) and timed by benchmarks/data_selection.py.

With buckets b of hashed words and word pairs, their shares p(b) in the target and q(b) in the pool, counts n_b(x):

    log weight(x) = sum_b n_b(x) log((p(b) + 1e-8) / (q(b) + 1e-8))

and K documents are drawn without replacement in proportion to the weights (Gumbel top-K).

>>> found = fit_dsir(["red green", "one two"], ["one two three"])
>>> bool(dsir_weights(["one two"], found)[0] > dsir_weights(["red green"], found)[0])
True
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import regex

from ontarget.errors import DataError, SettingError
from ontarget.values import Array

BUCKETS = 10_000
FLOOR = 1e-8  # added to shares, as in the official code
REMEMBERED = 1_000_000  # n-grams whose buckets are kept in memory, some 150 MB (choice)
# NLTK's WordPunctTokenizer: since NLTK 3.10 by `regex`, where combining marks belong to their words.
_WORDS = regex.compile(r"\w+|[^\w\s]+")
_hashed: dict[int, dict[str, int]] = {}  # buckets -> n-gram -> its bucket


@dataclass(frozen=True)
class Dsir:
    """What the weights need: (B,) float64 log ratio of a bucket's share in the target to that in the pool."""

    log_ratio: Array


def dsir(
    pool: Sequence[str], target: Sequence[str], *, count: int, buckets: int = BUCKETS, seed: int = 0, top: bool = False
) -> Array:
    """Positions (K,) of ``count`` documents of ``pool``, drawn by importance; the best weights first where ``top``.

    Raises DataError: an empty pool or target, a target without a word; SettingError: more than there are.
    Source: arXiv 2302.03169, algorithm 1.
    """
    if not 1 <= count <= len(pool):
        raise SettingError(f"count is {count}.", allowed=f"1 to {len(pool)}", option="count")
    return resample(dsir_weights(pool, fit_dsir(pool, target, buckets=buckets)), count, seed=seed, top=top)


def fit_dsir(pool: Iterable[str], target: Iterable[str], *, buckets: int = BUCKETS) -> Dsir:
    """The log ratios. Both may be iterators: one document is held at a time."""
    return dsir_of_counts(bucket_counts(pool, buckets), bucket_counts(target, buckets))


def dsir_of_counts(pool: Array, target: Array) -> Dsir:
    """The log ratios from `bucket_counts`, which add up over parts of a pool."""
    for name, counts in (("pool", pool), ("target", target)):
        if counts.sum() == 0:
            raise DataError(f"The {name} has no word.", next_step="give documents with text")
    return Dsir(np.log(target / target.sum() + FLOOR) - np.log(pool / pool.sum() + FLOOR))


def dsir_weights(texts: Iterable[str], found: Dsir) -> Array:
    """(N,) float64 log importance weights. An empty text weighs 0: nothing is known of it."""
    ratio, buckets = found.log_ratio, len(found.log_ratio)
    return np.array([ratio[bucketed(text, buckets)].sum() for text in texts], dtype=np.float64)


def resample(log_weights: Array, count: int, *, seed: int = 0, top: bool = False) -> Array:
    """Positions (count,) drawn without replacement in proportion to exp(log_weights), first drawn first."""
    keys = np.asarray(log_weights, dtype=np.float64)
    if not top:
        keys = keys + np.random.default_rng(seed).gumbel(size=len(keys))
    return np.argsort(-keys, kind="stable")[:count]


def bucket_counts(texts: Iterable[str], buckets: int = BUCKETS) -> Array:
    """(B,) int64: how often each bucket's words and word pairs occur."""
    counts = np.zeros(buckets, dtype=np.int64)
    for text in texts:
        counts += np.bincount(bucketed(text, buckets), minlength=buckets)
    return counts


def bucketed(text: str, buckets: int = BUCKETS) -> list[int]:
    """Buckets of all words, then of all pairs of neighbouring words, in lower case."""
    words = _WORDS.findall(text.lower())
    grams = [*words, *map(" ".join, pairwise(words))]
    known = _hashed.setdefault(buckets, {})
    found = list(map(known.get, grams))
    if None in found:
        if len(known) > REMEMBERED:
            known.clear()
        for at, bucket in enumerate(found):
            if bucket is None:
                gram = grams[at]
                digest = hashlib.sha256(gram.encode("utf-8", "surrogatepass")).hexdigest()
                known[gram] = found[at] = int(digest, 16) % buckets
    return found  # type: ignore[return-value]
