"""Which entries of a tensor have a magnitude within a window of ranks, told part by part.

Magnitudes are compared by their bits, which order floating-point numbers as their values do: a histogram of 2**15 bins
finds a threshold in one pass for 16-bit types and in two for float32. No part needs the others, nothing is sorted.
Entries of equal magnitude at a threshold are taken in their order, so that exactly the window's entries are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from ontarget.values import Array

BINS = 1 << 15


class MagnitudeWindow:
    """Keeps the entries of ascending rank ``first`` to ``last`` - 1; call it with one part after the other.

    parts: gives the bits (`number_types.magnitude_bits`) of the whole tensor in parts, as often as it is called.
    earlier_first: of equal entries at a threshold the earlier ones count as larger (as a stable descending sort has
    it), or as smaller.
    """

    def __init__(
        self, parts: Callable[[], Iterable[Array]], count: int, first: int, last: int, *, earlier_first: bool
    ) -> None:
        first, last = max(0, first), min(count, last)
        self.empty = first >= last
        self.earlier_first = earlier_first
        ranks = [] if self.empty else [rank for rank in (first, last) if 0 < rank < count]
        found = dict(zip(ranks, _thresholds(parts, ranks), strict=True)) if ranks else {}
        self.below = _Split(*found[first], first) if first in found and not self.empty else None
        self.above = _Split(*found[last], last) if last in found and not self.empty else None

    def __call__(self, bits: Array) -> Array:
        """Mask of the next part."""
        if self.empty:
            return np.zeros(len(bits), dtype=bool)
        kept: Array = np.ones(len(bits), dtype=bool) if self.below is None else ~self.below(bits, self.earlier_first)
        if self.above is not None:
            kept &= self.above(bits, self.earlier_first)
        return kept


class _Split:
    """Which entries lie below a rank: smaller ones than the threshold, and so many of those that are equal to it."""

    def __init__(self, pattern: int, smaller: int, equal: int, rank: int) -> None:
        self.pattern, self.equal, self.lower, self.seen = pattern, equal, rank - smaller, 0

    def __call__(self, bits: Array, earlier_first: bool) -> Array:
        below: Array = bits < self.pattern
        if not self.lower:
            return below
        at = np.flatnonzero(bits == self.pattern)
        number = np.arange(self.seen, self.seen + len(at))
        self.seen += len(at)
        below[at] = number >= self.equal - self.lower if earlier_first else number < self.lower
        return below


def _thresholds(parts: Callable[[], Iterable[Array]], ranks: list[int]) -> list[tuple[int, int, int]]:
    """For each rank: (bits of its entry, entries with smaller ones, entries with equal ones)."""
    counts: Array = np.zeros(BINS, dtype=np.int64)
    wide = False
    for bits in parts():
        wide = bits.dtype == np.uint32
        counts += np.bincount(bits >> 16 if wide else bits, minlength=BINS)
    coarse = [_bin_of(counts, rank) for rank in ranks]
    if not wide:
        return [(pattern, smaller, int(counts[pattern])) for pattern, smaller in coarse]
    fine: dict[int, Array] = {pattern: np.zeros(1 << 16, dtype=np.int64) for pattern, _ in coarse}
    for bits in parts():
        for pattern, inside in fine.items():
            inside += np.bincount(bits[bits >> 16 == pattern] & 0xFFFF, minlength=1 << 16)
    found = []
    for rank, (pattern, smaller) in zip(ranks, coarse, strict=True):
        low, more = _bin_of(fine[pattern], rank - smaller)
        found.append(((pattern << 16) | low, smaller + more, int(fine[pattern][low])))
    return found


def _bin_of(counts: Array, rank: int) -> tuple[int, int]:
    """(bin that holds the entry of a rank, entries in smaller bins)."""
    ends = np.cumsum(counts)
    found = int(np.searchsorted(ends, rank, side="right"))
    return found, int(ends[found] - counts[found])
