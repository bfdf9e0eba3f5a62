"""Near-duplicates between two sets of rows, in time that grows with N log N.

Texts: minwise hashing of 5-byte shingles by one permutation, Broder 1997 with the densification of Shrivastava and
Li, "Densifying One Permutation Hashing via Rotation for Fast Near Neighbor Search" (ICML 2014); candidates share a
band of the sketch, and are confirmed by the exact Jaccard index. Images: difference hash, sorted neighbourhood over
four rotations of its bits, confirmed on thumbnails. Thresholds are ours (choice). Checked in tests/data/test_near.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ontarget.data.images import Looks
from ontarget.values import Array

SHINGLE = 5  # bytes
BINS = 64  # of a sketch
BAND = 4  # bins that must agree for a candidate
JACCARD = 0.8  # of two near-duplicate texts, at least
HAMMING = 6  # of the 64 bits of two near-duplicate images, at most
CORRELATION = 0.98  # of their thumbnails, at least
GREY = 8.0  # mean absolute difference of their thumbnails, at most, of 255
_CHUNK = 1 << 18  # bytes of text that are hashed at once: keeps the arrays in the processor's cache
_EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)


def near_texts(texts: Sequence[str], sketch: Array, left: Array, right: Array) -> list[tuple[int, int]]:
    """(left row, right row): for each right row its most similar left row, where it is similar enough.

    texts: N texts, normalised as they shall be compared. sketch: (N, 64), their `sketches`. left, right: positions.
    Texts of fewer than 5 bytes have no near-duplicates.
    """
    pairs = _candidates(sketch, left, right)
    agreement = np.zeros(len(pairs))
    for start in range(0, len(pairs), 1 << 17):
        part = pairs[start : start + (1 << 17)]
        agreement[start : start + len(part)] = (sketch[part[:, 0]] == sketch[part[:, 1]]).mean(axis=1)
    # The agreement estimates the Jaccard index with a deviation of at most 0.06.
    best = _best(pairs, np.where(agreement >= JACCARD - 0.2, agreement, 0.0))
    return [(at, to) for at, to in best if jaccard(texts[at], texts[to]) >= JACCARD]


def _best(pairs: Array, likeness: Array) -> list[tuple[int, int]]:
    """Of each right row's pairs the one of the greatest likeness above 0."""
    order = np.lexsort((pairs[:, 0], -likeness, pairs[:, 1]))
    order = order[likeness[order] > 0]
    first = np.unique(pairs[order, 1], return_index=True)[1]
    return [(int(at), int(to)) for at, to in pairs[order[first]]]


def jaccard(first: str, second: str) -> float:
    """Exact Jaccard index of two texts' sets of 5-byte shingles; 0 where both have none."""
    contents = [text.encode("utf-8", "surrogatepass") for text in (first, second)]
    if len(contents[0]) + len(contents[1]) < 1000:  # sets are faster for short texts, arrays for long ones
        few = [{content[at : at + SHINGLE] for at in range(len(content) - SHINGLE + 1)} for content in contents]
        shared, union = len(few[0] & few[1]), len(few[0] | few[1])
    else:
        one, other = (np.unique(_shingles(content)) for content in contents)
        shared = len(np.intersect1d(one, other, assume_unique=True))
        union = len(one) + len(other) - shared
    return shared / union if union else 0.0


def _shingles(content: bytes) -> Array:
    """(bytes - 4,) uint64: each run of 5 bytes as one number."""
    letters = np.frombuffer(content, dtype=np.uint8)
    count = max(0, len(letters) - SHINGLE + 1)
    shingles = np.zeros(count, dtype=np.uint64)
    for at in range(SHINGLE):
        shingles = (shingles << np.uint64(8)) | letters[at : at + count]
    return shingles


def sketches(texts: Sequence[str]) -> Array:
    """(N, 64) uint64. Two rows agree in a bin with a probability that is the Jaccard index of their shingles."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    sizes = np.array([len(content) for content in encoded], dtype=np.int64)
    sketch = np.full((len(texts), BINS), _EMPTY, dtype=np.uint64)
    ends = np.cumsum(sizes)
    start = 0
    while start < len(texts):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _CHUNK, side="right")))
        _fill(sketch[start:stop], b"".join(encoded[start:stop]), sizes[start:stop])
        start = stop
    return _densified(sketch)


def _fill(sketch: Array, content: bytes, sizes: Array) -> None:
    shingles = _shingles(content)
    count = len(shingles)
    if not count:
        return
    row = np.repeat(np.arange(len(sizes)), sizes)
    inside = row[:count] == row[SHINGLE - 1 :]  # shingles that do not run into the next text
    hashed = _mix(shingles[inside])
    cells = row[:count][inside] * BINS + (hashed >> np.uint64(58)).astype(np.int64)
    np.minimum.at(sketch.reshape(-1), cells, hashed & np.uint64((1 << 58) - 1))


def _densified(sketch: Array) -> Array:
    """Empty bins take the value of the next full one to the right (cyclic), marked with its distance."""
    positions = np.arange(2 * BINS, dtype=np.int16)
    full = sketch != _EMPTY
    following = np.where(np.concatenate([full, full], axis=1), positions, np.int16(2 * BINS))
    following = np.minimum.accumulate(following[:, ::-1], axis=1)[:, ::-1][:, :BINS]
    distance = (following - positions[:BINS]).astype(np.uint64)
    values = np.take_along_axis(sketch, (following % BINS).astype(np.int64), axis=1)
    return np.where(full.any(axis=1, keepdims=True), values + (distance << np.uint64(58)), _EMPTY)


def band_keys(sketch: Array) -> Array:
    """(N, BINS / BAND) uint64: near-duplicates share at least one of these, but for 1 in 5,000 at an index of 0.8.

    A text of fewer than 5 bytes shares all of them with every other such text.
    """
    return np.stack([_band_key(sketch[:, start : start + BAND]) for start in range(0, BINS, BAND)], axis=1)


def _candidates(sketch: Array, left: Array, right: Array, each: int = 4) -> Array:
    """(P, 2) pairs of rows that share a band; per right row and band at most ``each`` left rows."""
    left, right = left[sketch[left, 0] != _EMPTY], right[sketch[right, 0] != _EMPTY]
    found = [np.zeros((0, 2), dtype=np.int64)]
    for keys in band_keys(sketch).T if len(left) and len(right) else ():
        order = left[np.argsort(keys[left], kind="stable")]
        ordered, wanted = keys[order], keys[right]
        first = np.searchsorted(ordered, wanted)
        for at in range(each):
            position = first + at
            fits = np.flatnonzero(position < len(ordered))
            fits = fits[ordered[position[fits]] == wanted[fits]]
            found.append(np.stack([order[position[fits]], right[fits]], axis=1))
    pairs = np.concatenate(found)
    codes = np.unique(pairs[:, 1] * np.int64(len(sketch)) + pairs[:, 0])
    return np.stack([codes % len(sketch), codes // len(sketch)], axis=1)


def _band_key(bins: Array) -> Array:
    key = np.zeros(len(bins), dtype=np.uint64)
    for column in bins.T:
        key = _mix(key ^ column)
    return key


def _mix(values: Array) -> Array:
    """The finaliser of splitmix64: a bijection that spreads every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = values ^ (values >> np.uint64(31))
    return mixed


def near_images(looks: Looks, left: Array, right: Array, *, window: int = 8) -> list[tuple[int, int]]:
    """(left row, right row): for each right image the most similar left one, where it is similar enough.

    left, right: positions in ``looks``. window: neighbours on each side that are compared in the order of hashes.
    """
    hashes, thumbnails = looks.hashes, looks.thumbnails
    found = [np.zeros((0, 2), dtype=np.int64)]
    for shift in (0, 16, 32, 48):
        keys = (hashes << np.uint64(shift)) | (hashes >> np.uint64((64 - shift) % 64))
        order = left[np.argsort(keys[left], kind="stable")]
        first = np.searchsorted(keys[order], keys[right])
        for step in range(-window, window):
            position = first + step
            fits = np.flatnonzero((position >= 0) & (position < len(order)))
            candidates, held = order[position[fits]], right[fits]
            close = _different_bits(hashes[candidates], hashes[held]) <= HAMMING
            found.append(np.stack([candidates[close], held[close]], axis=1))
    pairs = np.unique(np.concatenate(found), axis=0)
    likeness = np.zeros(len(pairs))
    for start in range(0, len(pairs), 1 << 16):
        part = pairs[start : start + (1 << 16)]
        greys = (thumbnails[part[:, side]].astype(np.float32) for side in (0, 1))
        likeness[start : start + len(part)] = _likeness(*greys)
    return _best(pairs, likeness)


def _different_bits(first: Array, second: Array) -> Array:
    bits = np.unpackbits(np.bitwise_xor(first, second).view(np.uint8).reshape(-1, 8), axis=1)
    counted: Array = bits.sum(axis=1)
    return counted


def _likeness(first: Array, second: Array) -> Array:
    """(P,) correlation of thumbnails (P, 256), 0 where they are no near-duplicates.

    Images of one grey have no correlation: for them the difference alone decides.
    """
    grey = np.abs(first - second).mean(axis=1)
    a, b = first - first.mean(axis=1, keepdims=True), second - second.mean(axis=1, keepdims=True)
    spread = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    flat = (np.abs(a).max(axis=1) < 2) & (np.abs(b).max(axis=1) < 2)
    correlation = np.where(flat, 1.0, (a * b).sum(axis=1) / np.maximum(spread, 1e-6))
    likeness: Array = np.where((grey <= GREY) & (correlation >= CORRELATION), correlation, 0.0)
    return likeness
