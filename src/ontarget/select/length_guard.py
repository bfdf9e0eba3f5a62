"""Do scores measure likeness, or only length?

A compressor that does not compress (gzip level 0) makes ZIP-FIT a function of length alone, though it prints plausible
values; short documents are favoured by any compressor. Two remedies: `length_share` finds scores that say nothing
else, and `banded_ranks` compares documents with those of like length only. Both are this project's (choice).
Checked in tests/select/test_length_guard.py, with gzip level 0 itself.
"""

from __future__ import annotations

import numpy as np

from ontarget.errors import DataError
from ontarget.values import Array

ONLY_LENGTH = 0.98  # share of the scores' variance from which on they are refused (choice)
NEIGHBOURS = 20  # documents on each side, in the order of length, that predict a score (choice)
BANDS = 8


def length_share(scores: Array, lengths: Array) -> float:
    """0 to 1: share of the variance of the scores' ranks that the documents of the nearest lengths explain.

    scores: (N,) float. lengths: (N,) bytes. Each rank is predicted by the mean of its 2 x NEIGHBOURS neighbours in the
    order of length, without itself. Fewer than 100 documents, or equal lengths throughout: 0, nothing can be told.
    """
    scores, lengths = np.asarray(scores, dtype=np.float64), np.asarray(lengths)
    if len(scores) < 100 or lengths.min() == lengths.max():
        return 0.0
    from scipy.stats import rankdata

    order = np.argsort(lengths, kind="stable")
    ranks = rankdata(scores)[order]
    if ranks.min() == ranks.max():
        return 0.0
    window = 2 * NEIGHBOURS + 1
    sums = np.convolve(np.pad(ranks, NEIGHBOURS, mode="reflect"), np.ones(window), mode="valid")
    predicted = (sums - ranks) / (window - 1)
    # The ends have neighbours on one side only: a rank that follows length is off there, so they are left out.
    inner = slice(NEIGHBOURS, len(ranks) - NEIGHBOURS)
    unexplained = float(np.mean((ranks[inner] - predicted[inner]) ** 2))
    return float(np.clip(1 - unexplained / np.var(ranks[inner]), 0.0, 1.0))


def refuse_length_scores(scores: Array, lengths: Array, *, what: str = "the scores") -> float:
    """`length_share`, or DataError where it is ONLY_LENGTH or more: a ranking by them would be one by length."""
    share = length_share(scores, lengths)
    if share >= ONLY_LENGTH:
        raise DataError(
            f"{share:.1%} of what tells the documents apart in {what} is their length: nothing of the content is left.",
            next_step="use a compressor level of 1 or more, more target examples, or documents of like length",
        )
    return share


def banded_ranks(scores: Array, lengths: Array, *, bands: int = BANDS) -> Array:
    """(N,) float64 in [0, 1): each document's rank among those of its band of lengths, highest best.

    bands: quantiles of the length; 1 compares all documents. Equal lengths fall into the same band. Ties take the mean
    rank.
    """
    from scipy.stats import rankdata

    scores, lengths = np.asarray(scores, dtype=np.float64), np.asarray(lengths)
    edges = np.quantile(lengths, np.linspace(0, 1, max(1, bands) + 1)[1:-1]) if bands > 1 else np.zeros(0)
    band = np.searchsorted(edges, lengths, side="left")
    ranks = np.zeros(len(scores))
    for number in np.unique(band):
        members = np.flatnonzero(band == number)
        ranks[members] = (rankdata(scores[members]) - 0.5) / len(members)
    return ranks
