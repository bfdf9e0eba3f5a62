"""ZIP-FIT's scores estimated from shared pieces of text, calibrated on documents that are scored exactly.

This project's own (choice), for pools on which the exact scores of `zipfit` would take too long; what it approximates
is arXiv 2410.18194. Broder's resemblance by shingles (1997) is the idea behind the features.
Left out: other compressors' scores (calibration would do for them too).
Checked in tests/select/test_fast_zipfit.py; its agreement and speed are measured by benchmarks/data_selection.py, and
every call says its own agreement.

Where x + t compresses to C(x) + C(t) - s(x, t), the score is the mean over targets of s(x, t) / max(C(x), C(t)). The
saving s grows with the n-grams of x that t has too, and with how alike their bytes are distributed. So the features
of a document are: for n in SHINGLES the sum, over its distinct n-grams, of the number of targets that have it, and the
number of these n-grams; entropies and cross-entropies of its bytes and the targets'. C(x) and the score are ridge
regressions on these, fitted to CALIBRATION documents with exact scores; the agreement is that of predictions for
documents left out of the fit.

Needs the extra ``select`` (Numba).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numba import njit

from ontarget.errors import DataError, SettingError
from ontarget.select.zipfit import Targets, compress_targets, encoded, zipfit_pairs
from ontarget.values import Array

SHINGLES = (4, 6, 10)  # bytes (choice)
BUCKETS_LOG2 = 16  # of the hashed n-grams
CALIBRATION = 40  # documents that are scored exactly (choice)
FOLDS = 4  # of them, for the agreement
UNSEEN = 0.05  # added to counts of bytes, of which some do not occur (choice)
RIDGE = 1.0  # penalty on standardised features (choice)
FEWEST = 20  # documents to calibrate on, at least


@dataclass(frozen=True)
class FastScores:
    """scores: (N,) float64 estimates. agreement: Spearman with exact scores, on documents left out of the fit."""

    scores: Array
    agreement: float


@dataclass(frozen=True)
class FastZipfit:
    """A calibrated estimator; call it with texts. tables: (S, 2**BUCKETS_LOG2) uint8, how many targets have an n-gram.

    bytes_of_targets: (256,) shares. sizes: (T,) compressed lengths. size_model, score_model: ridge regressions.
    """

    tables: Array
    bytes_of_targets: Array
    sizes: Array
    size_model: Ridge
    score_model: Ridge
    agreement: float

    def __call__(self, texts: Sequence[str]) -> Array:
        features, inverse = self._features(texts)
        return self.score_model.predict(_of_score(features, inverse))

    def _features(self, texts: Sequence[str]) -> tuple[Array, Array]:
        features = text_features([encoded(text) for text in texts], self.tables, self.bytes_of_targets)
        return features, _inverse_size(self.size_model.predict(features), self.sizes)


@dataclass(frozen=True)
class Ridge:
    """y = (x - mean) / spread @ weight + middle."""

    mean: Array
    spread: Array
    weight: Array
    middle: float

    @classmethod
    def fit(cls, features: Array, values: Array) -> Ridge:
        mean, spread = features.mean(axis=0), features.std(axis=0)
        spread = np.where(spread > 1e-12, spread, 1.0)
        design, middle = (features - mean) / spread, float(values.mean())
        gram = design.T @ design + RIDGE * np.eye(design.shape[1])
        return cls(mean, spread, np.linalg.solve(gram, design.T @ (values - middle)), middle)

    def predict(self, features: Array) -> Array:
        found: Array = (features - self.mean) / self.spread @ self.weight + self.middle
        return found


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

    documents, targets, compressor, level: as for `zipfit`. calibration: documents that are scored exactly, drawn by
    seed. Raises DataError: fewer than FEWEST documents with text (score them exactly); as `zipfit`.
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
    tables, bytes_of_targets = _tables(targets.texts)
    exact = zipfit_pairs(documents, targets).mean(axis=1)
    alone = compress_targets(documents, compressor=targets.compressor, level=targets.level).sizes.astype(np.float64)
    features = text_features([encoded(text) for text in documents], tables, bytes_of_targets)
    held = np.empty(len(documents))
    folds = np.arange(len(documents)) % FOLDS
    for fold in range(FOLDS):
        inside, others = folds == fold, folds != fold
        size_model, score_model = _fitted(features[others], alone[others], exact[others], targets.sizes)
        inverse = _inverse_size(size_model.predict(features[inside]), targets.sizes)
        held[inside] = score_model.predict(_of_score(features[inside], inverse))
    agreement = float(spearmanr(held, exact).statistic) if np.ptp(exact) > 0 else 0.0
    return FastZipfit(
        tables, bytes_of_targets, targets.sizes, *_fitted(features, alone, exact, targets.sizes), agreement
    )


def _fitted(features: Array, alone: Array, exact: Array, sizes: Array) -> tuple[Ridge, Ridge]:
    size_model = Ridge.fit(features, alone)
    inverse = _inverse_size(size_model.predict(features), sizes)
    return size_model, Ridge.fit(_of_score(features, inverse), exact)


def _inverse_size(own: Array, sizes: Array) -> Array:
    """(N,) mean over targets of 1 / max(C(x), C(t))."""
    found: Array = (1 / np.maximum(np.maximum(own, 20.0)[:, None], sizes[None, :])).mean(axis=1)
    return found


def _of_score(features: Array, inverse: Array) -> Array:
    """What a score is linear in: savings over the size, and how alike the bytes are."""
    counts, shapes = features[:, : 2 * len(SHINGLES) + 1], features[:, 2 * len(SHINGLES) + 1 :]
    scaled = np.concatenate([counts, shapes, np.ones((len(features), 1))], axis=1) * inverse[:, None]
    return np.concatenate([scaled, shapes, np.log1p(features[:, : len(SHINGLES)])], axis=1)


def text_features(texts: Sequence[bytes], tables: Array, bytes_of_targets: Array) -> Array:
    """(N, 2 S + 6) float64: shared and distinct n-grams for each of SHINGLES, bytes; entropy of the bytes, and their
    cross-entropies with the targets' both ways (bits); how many different ones there are; log of the size."""
    joined = np.frombuffer(b"".join(texts) or b"\0", dtype=np.uint8)
    starts = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
    longest = int(np.diff(starts).max()) if len(texts) else 0
    # Logarithms of all counts that can occur, so that none is taken for a single byte.
    logs = np.log2(np.arange(longest + 1) + UNSEEN)
    found: Array = _features(joined, starts, tables, bytes_of_targets, np.log2(bytes_of_targets), logs)
    return found


def _tables(texts: Sequence[bytes]) -> tuple[Array, Array]:
    joined = np.frombuffer(b"".join(texts) or b"\0", dtype=np.uint8)
    starts = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
    counts = np.bincount(joined, minlength=256) + 0.5
    return _counts_of_texts(joined, starts), counts / counts.sum()


@njit(cache=True)  # type: ignore[untyped-decorator]
def _counts_of_texts(joined: Any, starts: Any) -> Any:
    """(S, 2**BUCKETS_LOG2) how many texts, 255 at most, have an n-gram of each bucket."""
    found = np.zeros((len(SHINGLES), 1 << BUCKETS_LOG2), np.uint8)
    last = np.full((len(SHINGLES), 1 << BUCKETS_LOG2), -1, np.int32)
    for text in range(len(starts) - 1):
        value, before = np.uint64(0), np.uint64(0)
        for at in range(starts[text], starts[text + 1]):
            before = (before << np.uint64(8)) | (value >> np.uint64(56))
            value = (value << np.uint64(8)) | np.uint64(joined[at])
            have = at - starts[text] + 1
            for kind in range(len(SHINGLES)):
                if have >= SHINGLES[kind]:
                    bucket = _bucket(value, before, SHINGLES[kind])
                    if last[kind, bucket] != text:
                        last[kind, bucket] = text
                        found[kind, bucket] = min(255, int(found[kind, bucket]) + 1)
    return found


@njit(cache=True)  # type: ignore[untyped-decorator]
def _features(joined: Any, starts: Any, tables: Any, shares: Any, target_logs: Any, logs: Any) -> Any:
    """See `text_features`."""
    texts, kinds = len(starts) - 1, len(SHINGLES)
    found = np.zeros((texts, 2 * kinds + 6))
    seen = np.zeros((kinds, (1 << BUCKETS_LOG2) >> 6), np.uint64)
    histogram = np.zeros(256, np.int64)
    for text in range(texts):
        first, size = starts[text], starts[text + 1] - starts[text]
        seen[:] = 0
        histogram[:] = 0
        value, before = np.uint64(0), np.uint64(0)
        totals, distinct = np.zeros(kinds, np.int64), np.zeros(kinds, np.int64)
        for place in range(size):
            letter = joined[first + place]
            histogram[letter] += 1
            before = (before << np.uint64(8)) | (value >> np.uint64(56))
            value = (value << np.uint64(8)) | np.uint64(letter)
            for kind in range(kinds):
                if place + 1 >= SHINGLES[kind]:
                    bucket = _bucket(value, before, SHINGLES[kind])
                    word, bit = bucket >> 6, np.uint64(1) << np.uint64(bucket & 63)
                    fresh = int((seen[kind, word] & bit) == 0)  # multiplied, not branched on
                    seen[kind, word] |= bit
                    totals[kind] += fresh * int(tables[kind, bucket])
                    distinct[kind] += fresh
        total_log, cross, kinds_of_bytes = 0.0, 0.0, 0
        reverse = 0.0
        for letter in range(256):
            count = histogram[letter]
            log = logs[count]
            total_log += count * log
            cross += count * target_logs[letter]
            reverse += shares[letter] * log
            kinds_of_bytes += int(count > 0)
        whole = max(size, 1)
        log_size = np.log2(whole + 256 * UNSEEN)
        for kind in range(kinds):
            found[text, kind], found[text, kinds + kind] = totals[kind], distinct[kind]
        found[text, 2 * kinds] = size
        found[text, 2 * kinds + 1] = log_size - total_log / whole
        found[text, 2 * kinds + 2] = -cross / whole
        found[text, 2 * kinds + 3] = log_size - reverse
        found[text, 2 * kinds + 4] = kinds_of_bytes
        found[text, 2 * kinds + 5] = np.log(whole)
    return found


@njit(cache=True)  # type: ignore[untyped-decorator]
def _bucket(value: Any, before: Any, size: int) -> int:
    """A hash of the last ``size`` bytes, 16 at most, of which ``value`` holds the last eight."""
    if size < 8:
        value = value & ((np.uint64(1) << np.uint64(8 * size)) - np.uint64(1))
    elif size > 8:
        value = value ^ (
            (before & ((np.uint64(1) << np.uint64(8 * (size - 8))) - np.uint64(1))) * np.uint64(0xD6E8FEB86659FD93)
        )
    return int((value * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - BUCKETS_LOG2))
