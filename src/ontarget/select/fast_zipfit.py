"""ZIP-FIT's scores estimated from what two texts' compressed streams have in common, without compressing them together.

This project's own (choice), for pools on which the exact scores of `zipfit` would take too long; what it approximates
is arXiv 2410.18194. Broder's resemblance by shingles (1997) is the idea behind the first features.
Left out: an estimate of the nearest target (`zipfit` has it).
Checked in tests/select/test_fast_zipfit.py; its agreement and speed are measured by benchmarks/data_selection.py, and
every call says its own agreement.

The score is the mean over targets of s(x, t) / max(C(x), C(t)), where s = C(x) + C(t) - C(x + t) is what compressing x
and t together saves. It grows with the runs of bytes that x and t share, and falls with how unlike the symbols are
that their streams consist of, since one Huffman code has to serve both:

    unlikeness = F(n_x + n) - F(n_x) - F(n),     F(n) = N log2 N - sum_s n_s log2 n_s,   N = sum_s n_s

with n_x the counts of literals and match lengths (and of distances) that x is parsed into on its own, and n the mean of
the targets' counts (it foretells the scores better than the mean of their own unlikenesses does, and costs less).
FEATURES lists what a document is described by. A linear model in them (PRIOR), fitted once to pools of four kinds, is
corrected on CALIBRATION documents of the pool, which are scored exactly: its slope, and a ridge regression of what it
leaves. The agreement is that of predictions for calibration documents left out of the correction.

Needs the extra ``select`` (Numba).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numba import njit

from ontarget.errors import DataError, SettingError
from ontarget.select.deflate_sizes import parsed
from ontarget.select.zipfit import Targets, compress_targets, encoded, zipfit_pairs
from ontarget.values import Array

SHINGLE = 6  # bytes (choice)
BUCKETS_LOG2 = 18  # of the hashed shingles
PARSE_LEVEL = 4  # of gzip, for the counts: a tenth faster than level 6, and they hardly differ (choice)
CALIBRATION = 20  # documents that are scored exactly (choice)
FOLDS = 4  # of them, for the agreement
UNSEEN = 0.05  # added to counts of bytes, of which some do not occur (choice)
RIDGE = 30.0  # penalty of the correction, on standardised features (choice)
FEWEST = 20  # documents to calibrate on, at least
LITERALS = 286  # symbols of literals and lengths; those of distances follow

# "a / C" is a times the mean over targets of 1 / max(C(x), C(t)).
FEATURES = (
    "shared shingles / C",  # sum over the document's distinct shingles of the number of targets that have them
    "log of 1 + shared shingles",
    "distinct shingles / C",
    "unlikeness of literals and lengths / C",  # bits
    "unlikeness of distances / C",
    "matches / C",  # in the document's own stream
    "literals / C",
    "other bits / C",  # of the document's own stream: extra bits, the code itself, rounding
    "different symbols / C",
    "C(x) / C",
    "1 / C",
    "cross-entropy with its own bytes",  # smoothed by UNSEEN; bits
    "cross-entropy with the targets' bytes",
    "cross-entropy of the targets' bytes with it",
    "bytes / C",
    "log of bytes",
    "1 / C(x)",
    "matches per literal",
)
# Made by benchmarks/fast_zipfit_prior.py on development pools; in the order of FEATURES.
PRIOR = (
    0.016851,
    0.0039247,
    -0.017227,
    -0.1418,
    -0.037887,
    -0.17217,
    0.0043575,
    0.0345,
    -0.013049,
    -0.023641,
    34.169,
    0.0019908,
    0.0038693,
    0.00011595,
    0.0070644,
    -0.022903,
    -6.8562,
    0.0072155,
)


@dataclass(frozen=True)
class FastScores:
    """scores: (N,) float64 estimates. agreement: Spearman with exact ones, on documents left out of the correction."""

    scores: Array
    agreement: float


@dataclass(frozen=True)
class Profile:
    """What is known of the targets. table: (2**BUCKETS_LOG2,) uint8, how many of them have a shingle.

    bytes: (256,) shares. symbols: (316,) float64, mean counts as `parsed` gives them. sizes: (T,) int64 C.
    """

    table: Array
    bytes: Array
    symbols: Array
    sizes: Array


@dataclass(frozen=True)
class FastZipfit:
    """A calibrated estimator; call it with texts. mean, spread, weight: (D,) of the correction; slope: of PRIOR."""

    profile: Profile
    mean: Array
    spread: Array
    weight: Array
    slope: float
    middle: float
    agreement: float

    def __call__(self, texts: Sequence[str]) -> Array:
        return _predicted(self, text_features([encoded(text) for text in texts], self.profile))


def fast_zipfit(
    documents: Sequence[str],
    targets: Sequence[str],
    *,
    compressor: Literal["gzip", "lz4"] = "gzip",
    level: int | None = None,
    calibration: int = CALIBRATION,
    seed: int = 0,
) -> FastScores:
    """Estimates of ``zipfit(documents, targets)`` and their agreement with it.

    documents, targets, compressor, level: as for `zipfit`; PRIOR was made for gzip, so lz4 wants a larger calibration.
    calibration: documents that are scored exactly, drawn by seed.
    Raises DataError: fewer than FEWEST documents with text (score them exactly); as `zipfit`.
    """
    if calibration < FEWEST:
        raise SettingError(f"calibration is {calibration}.", allowed=f"{FEWEST} or more", option="calibration")
    filled = [at for at, text in enumerate(documents) if text.strip()]
    order = np.random.default_rng(seed).permutation(len(filled))[:calibration]
    chosen = [documents[filled[int(at)]] for at in order]
    model = calibrate(chosen, compress_targets(targets, compressor=compressor, level=level))
    return FastScores(model(documents), model.agreement)


def calibrate(documents: Sequence[str], targets: Targets) -> FastZipfit:
    """An estimator for pools that ``documents`` are a random sample of. Raises DataError: fewer than FEWEST."""
    from scipy.stats import spearmanr

    if len(documents) < FEWEST:
        raise DataError(
            f"{len(documents)} documents are too few to calibrate estimates on.",
            allowed=f"{FEWEST} or more with text",
            next_step="score them exactly (--mode exact)",
        )
    profile = target_profile(targets.texts)
    exact = zipfit_pairs(documents, targets).mean(axis=1)
    features = text_features([encoded(text) for text in documents], profile)
    held = np.empty(len(documents))
    folds = np.arange(len(documents)) % FOLDS
    for fold in range(FOLDS):
        inside, others = folds == fold, folds != fold
        held[inside] = _predicted(_corrected(profile, features[others], exact[others], 0.0), features[inside])
    agreement = float(spearmanr(held, exact).statistic) if np.ptp(exact) > 0 else 0.0
    return _corrected(profile, features, exact, agreement)


def target_profile(texts: Sequence[bytes]) -> Profile:
    """`Profile` of the targets."""
    joined, starts = _joined(texts)
    counts = np.bincount(joined, minlength=256) + 0.5
    symbols, sizes = parsed(texts, level=PARSE_LEVEL)
    return Profile(_counts_of_texts(joined, starts), counts / counts.sum(), symbols.mean(axis=0), sizes)


def text_features(texts: Sequence[bytes], profile: Profile) -> Array:
    """(N, D) float64, FEATURES of each text."""
    joined, starts = _joined(texts)
    symbols, sizes = parsed(texts, level=PARSE_LEVEL)
    longest = int(np.diff(starts).max()) if len(texts) else 0
    numbers = np.arange(int(symbols.sum(axis=1).max(initial=0)) + 1)
    totals = np.array([profile.symbols[:LITERALS].sum(), profile.symbols[LITERALS:].sum()])
    found: Array = _features(
        joined, starts, profile.table, profile.bytes, np.log2(profile.bytes), np.log2(np.arange(longest + 1) + UNSEEN),
        symbols, sizes, profile.symbols, _weighted(profile.symbols), totals, _weighted(totals), profile.sizes,
        _weighted(numbers),
    )  # fmt: skip
    return found


def _corrected(profile: Profile, features: Array, exact: Array, agreement: float) -> FastZipfit:
    """PRIOR's slope, and a ridge regression of the rest."""
    mean, spread, middle = features.mean(axis=0), features.std(axis=0), float(exact.mean())
    spread = np.where(spread > 1e-12, spread, 1.0)
    prior = (features - mean) @ np.array(PRIOR)
    slope = float(prior @ (exact - middle) / max(float(prior @ prior), 1e-300))
    design = (features - mean) / spread
    weight = np.linalg.solve(
        design.T @ design + RIDGE * np.eye(design.shape[1]), design.T @ (exact - middle - slope * prior)
    )
    return FastZipfit(profile, mean, spread, weight, slope, middle, agreement)


def _predicted(model: FastZipfit, features: Array) -> Array:
    centred = features - model.mean
    found: Array = model.middle + model.slope * (centred @ np.array(PRIOR)) + centred / model.spread @ model.weight
    return found


def _weighted(counts: Array) -> Array:
    """n log2 n, 0 for 0."""
    found: Array = counts * np.log2(np.where(counts > 0, counts, 1))
    return found


def _joined(texts: Sequence[bytes]) -> tuple[Array, Array]:
    starts = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
    return np.frombuffer(b"".join(texts) or b"\0", dtype=np.uint8), starts


@njit(cache=True)  # type: ignore[untyped-decorator]
def _counts_of_texts(joined: Any, starts: Any) -> Any:
    """(2**BUCKETS_LOG2,) how many texts, 255 at most, have a shingle of each bucket."""
    found = np.zeros(1 << BUCKETS_LOG2, np.uint8)
    last = np.full(1 << BUCKETS_LOG2, -1, np.int32)
    for text in range(len(starts) - 1):
        value = np.uint64(0)
        for at in range(starts[text], starts[text + 1]):
            value = (value << np.uint64(8)) | np.uint64(joined[at])
            if at - starts[text] + 1 >= SHINGLE:
                bucket = _bucket(value)
                if last[bucket] != text:
                    last[bucket] = text
                    found[bucket] = min(255, int(found[bucket]) + 1)
    return found


@njit(cache=True)  # type: ignore[untyped-decorator]
def _features(
    joined: Any, starts: Any, table: Any, shares: Any, target_logs: Any, logs: Any, symbols: Any, sizes: Any,
    target_symbols: Any, target_weighted: Any, target_totals: Any, target_totals_weighted: Any, target_sizes: Any,
    weighted_logs: Any,
) -> Any:  # fmt: skip
    """See FEATURES. logs: log2(n + UNSEEN), weighted_logs: n log2 n, for all n that occur. target_weighted,
    target_totals_weighted: n log2 n of the targets' mean counts and of their sums."""
    texts, targets = len(starts) - 1, len(target_sizes)
    found = np.zeros((texts, 18))
    seen = np.zeros(1 << 10, np.uint64)  # bits by a part of the hash: a small table stays in the nearest cache
    histogram = np.zeros(256, np.int64)
    used, counts = np.zeros(symbols.shape[1], np.int64), np.zeros(symbols.shape[1], np.int64)
    for text in range(texts):
        first, size = starts[text], starts[text + 1] - starts[text]
        seen[:] = 0
        histogram[:] = 0
        value = np.uint64(0)
        shared, distinct = 0, 0
        for place in range(size):
            letter = joined[first + place]
            histogram[letter] += 1
            value = (value << np.uint64(8)) | np.uint64(letter)
            if place + 1 >= SHINGLE:
                bucket = _bucket(value)
                word, bit = (bucket >> 6) & 0x3FF, np.uint64(1) << np.uint64(bucket & 63)
                fresh = int((seen[word] & bit) == 0)  # multiplied, not branched on
                seen[word] |= bit
                shared += fresh * int(table[bucket])
                distinct += fresh
        total_log, cross, reverse = 0.0, 0.0, 0.0
        for letter in range(256):
            count = histogram[letter]
            total_log += count * logs[count]
            cross += count * target_logs[letter]
            reverse += shares[letter] * logs[count]
        whole = max(size, 1)
        log_size = np.log2(whole + 256 * UNSEEN)

        # The symbols that the document has; others add nothing to an unlikeness.
        kinds, literals, matches, distances = 0, 0, 0, 0
        own_literals, own_distances = 0.0, 0.0
        for symbol in range(LITERALS):
            count = symbols[text, symbol]
            used[kinds], counts[kinds] = symbol, count
            kinds += int(count > 0)
            literals += count * int(symbol < 256)
            matches += count * int(symbol > 256)
            own_literals -= weighted_logs[count]
        different = kinds
        for symbol in range(LITERALS, symbols.shape[1]):
            count = symbols[text, symbol]
            used[kinds], counts[kinds] = symbol, count
            kinds += int(count > 0)
            distances += count
            own_distances -= weighted_logs[count]
        own_literals += weighted_logs[literals + matches]
        own_distances += weighted_logs[distances]
        inverse = 0.0
        for target in range(targets):
            inverse += 1.0 / max(sizes[text], target_sizes[target])
        inverse /= targets
        together, together_distances = 0.0, 0.0  # what the document's symbols change of sum n log n
        for at in range(different):
            count = counts[at] + target_symbols[used[at]]
            together += count * np.log2(count) - target_weighted[used[at]]
        for at in range(different, kinds):
            count = counts[at] + target_symbols[used[at]]
            together_distances += count * np.log2(count) - target_weighted[used[at]]
        total = literals + matches + target_totals[0]
        unlike = total * np.log2(total) - target_totals_weighted[0] - together - own_literals
        total = distances + target_totals[1]
        unlike_distances = -target_totals_weighted[1] - together_distances - own_distances
        if total > 0:
            unlike_distances += total * np.log2(total)
        found[text, 0] = shared * inverse
        found[text, 1] = np.log1p(shared)
        found[text, 2] = distinct * inverse
        found[text, 3] = unlike * inverse
        found[text, 4] = unlike_distances * inverse
        found[text, 5] = matches * inverse
        found[text, 6] = literals * inverse
        found[text, 7] = (8 * sizes[text] - own_literals - own_distances) * inverse
        found[text, 8] = different * inverse
        found[text, 9] = sizes[text] * inverse
        found[text, 10] = inverse
        found[text, 11] = log_size - total_log / whole
        found[text, 12] = -cross / whole
        found[text, 13] = log_size - reverse
        found[text, 14] = size * inverse
        found[text, 15] = np.log(whole)
        found[text, 16] = 1.0 / sizes[text]
        found[text, 17] = matches / max(literals, 1)
    return found


@njit(cache=True)  # type: ignore[untyped-decorator]
def _bucket(value: Any) -> int:
    """A hash of the last SHINGLE bytes of the eight that ``value`` holds."""
    value = value & ((np.uint64(1) << np.uint64(8 * SHINGLE)) - np.uint64(1))
    return int((value * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - BUCKETS_LOG2))
