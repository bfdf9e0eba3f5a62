"""ZIP-FIT's scores estimated from shared pieces of text, calibrated on documents that are scored exactly.

This project's own (choice), for pools on which the exact scores of `zipfit` would take too long; what it approximates
is arXiv 2410.18194. Broder's resemblance by shingles (1997) is the idea behind the features.
Left out: other compressors' scores (calibration would do for them too).
Checked in tests/select/test_fast_zipfit.py; its agreement and speed are measured by benchmarks/data_selection.py, and
every call says its own agreement.

Where x + t compresses to C(x) + C(t) - s(x, t), the score is the mean over targets of s(x, t) / max(C(x), C(t)). The
saving s grows with the n-grams of x that t has too, and with how alike their bytes are distributed. So the features
of a document are: for n in SHINGLES the sum, over its distinct n-grams, of the share of targets that have it, and the
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

SHINGLES = (3, 4, 6, 10)  # bytes (choice)
BUCKETS_LOG2 = 16  # of the hashed n-grams
CALIBRATION = 48  # documents that are scored exactly (choice)
FOLDS = 4  # of them, for the agreement
RIDGE = 1.0  # penalty on standardised features (choice)
FEWEST = 20  # documents to calibrate on, at least


@dataclass(frozen=True)
class FastScores:
    """scores: (N,) float64 estimates. agreement: Spearman with exact scores, on documents left out of the fit."""

    scores: Array
    agreement: float


@dataclass(frozen=True)
class FastZipfit:
    """A calibrated estimator; call it with texts. tables: (S, 2**BUCKETS_LOG2) float32 shares of the targets.

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
    """(N, 2 S + 7) float64: shared n-grams, distinct n-grams, bytes; entropies and distances of the bytes' shares."""
    joined = np.frombuffer(b"".join(texts) or b"\0", dtype=np.uint8)
    starts = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
    shared, histogram = _shared(joined, starts, tables, np.array(SHINGLES, dtype=np.int64))
    sizes = np.maximum(np.diff(starts), 1).astype(np.float64)
    shares = (histogram + 0.05) / (histogram.sum(axis=1, keepdims=True) + 0.05 * 256)
    logs, target_logs = np.log2(shares), np.log2(bytes_of_targets)
    frequencies = histogram / sizes[:, None]
    middle = 0.5 * (shares + bytes_of_targets)
    shapes = np.stack([
        -(frequencies * logs).sum(axis=1),
        -(frequencies @ target_logs),
        -(logs @ bytes_of_targets),
        -(middle * np.log2(middle)).sum(axis=1)
        + 0.5 * ((shares * logs).sum(axis=1) + float(bytes_of_targets @ target_logs)),
        (histogram > 0).sum(axis=1),
        np.log(sizes),
    ], axis=1)  # fmt: skip
    return np.concatenate([shared, sizes[:, None], shapes], axis=1)


def _tables(texts: Sequence[bytes]) -> tuple[Array, Array]:
    joined = np.frombuffer(b"".join(texts) or b"\0", dtype=np.uint8)
    starts = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
    tables = np.stack([_share_of_texts(joined, starts, size) for size in SHINGLES])
    counts = np.bincount(joined, minlength=256) + 0.5
    return tables, counts / counts.sum()


@njit(cache=True)  # type: ignore[untyped-decorator]
def _share_of_texts(joined: Any, starts: Any, size: int) -> Any:
    """(2**BUCKETS_LOG2,) share of the texts that have an n-gram of each bucket."""
    found = np.zeros(1 << BUCKETS_LOG2, np.float32)
    last = np.full(1 << BUCKETS_LOG2, -1, np.int32)
    texts = len(starts) - 1
    for text in range(texts):
        for at in range(starts[text], starts[text + 1] - size + 1):
            bucket = _bucket(joined, at, size)
            if last[bucket] != text:
                last[bucket] = text
                found[bucket] += 1.0 / texts
    return found


@njit(cache=True)  # type: ignore[untyped-decorator]
def _shared(joined: Any, starts: Any, tables: Any, sizes: Any) -> Any:
    """(N, 2 S) shares of targets summed over distinct n-grams, and how many there are; (N, 256) counts of bytes."""
    texts, kinds = len(starts) - 1, len(sizes)
    found, histogram = np.zeros((texts, 2 * kinds)), np.zeros((texts, 256))
    last = np.full(1 << BUCKETS_LOG2, -1, np.int32)
    for text in range(texts):
        first, end = starts[text], starts[text + 1]
        for at in range(first, end):
            histogram[text, joined[at]] += 1
        for kind in range(kinds):
            size, total, distinct = sizes[kind], 0.0, 0
            table, mark = tables[kind], text * kinds + kind
            for at in range(first, end - size + 1):
                bucket = _bucket(joined, at, size)
                if last[bucket] != mark:
                    last[bucket] = mark
                    total += table[bucket]
                    distinct += 1
            found[text, kind], found[text, kinds + kind] = total, distinct
    return found, histogram


@njit(cache=True)  # type: ignore[untyped-decorator]
def _bucket(joined: Any, at: int, size: int) -> int:
    """A hash of ``size`` bytes: the first eight and the last two as one number, spread by a multiplication."""
    value = np.uint64(0)
    for step in range(min(size, 8)):
        value = (value << np.uint64(8)) | np.uint64(joined[at + step])
    for step in range(8, size):
        value = value * np.uint64(0x100000001B3) ^ np.uint64(joined[at + step])
    return int((value * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - BUCKETS_LOG2))
