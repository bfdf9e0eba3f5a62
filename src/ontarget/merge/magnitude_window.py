"""Which entries of a tensor have a magnitude within a window of ranks, told part by part.

Magnitudes are compared by their bits, which order floating-point numbers as their values do: a histogram of 2**15 bins
finds a threshold in one pass for 16-bit types and in two for float32. No part needs the others, nothing is sorted.
Entries of equal magnitude at a threshold are taken in their order, so that exactly the window's entries are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from ontarget.values import Array

BINS = 1 << 15


def magnitude_bits(values: Tensor) -> Tensor:
    """int32, ordered as |values|; float16 and bfloat16 below 2**15, float32 below 2**31."""
    if values.dtype in (torch.float16, torch.bfloat16):
        return values.view(torch.int16).to(torch.int32) & 0x7FFF
    return values.to(torch.float32).view(torch.int32) & 0x7FFFFFFF


class MagnitudeWindow:
    """Keeps the entries of ascending rank ``first`` to ``last`` - 1; call it with one part after the other.

    parts: gives the whole tensor's values (float32, or 16 bits) in parts, as often as it is called. earlier_first: of
    equal entries at a threshold the earlier ones count as larger (as a stable descending sort has it), or as smaller.
    """

    def __init__(
        self, parts: Callable[[], Iterable[Tensor]], count: int, first: int, last: int, *, earlier_first: bool
    ) -> None:
        self.first, self.last, self.count = max(0, first), min(count, last), count
        self.earlier_first = earlier_first
        self.empty = self.first >= self.last
        self.below = self._threshold(parts, self.first) if self.first > 0 and not self.empty else None
        self.above = self._threshold(parts, self.last) if self.last < count and not self.empty else None
        self.seen = [0, 0]

    def __call__(self, values: Tensor) -> Tensor:
        """Mask of the next part."""
        bits = magnitude_bits(values)
        kept = torch.full((len(bits),), not self.empty)
        for at, (threshold, rank) in enumerate(((self.below, self.first), (self.above, self.last))):
            if threshold is None:
                continue
            pattern, smaller, equal = threshold
            # Of the equal ones, `split` lie below the rank and the others at it or above.
            split = rank - smaller
            ties = bits == pattern
            number = torch.cumsum(ties, 0) + (self.seen[at] - 1)
            self.seen[at] += int(ties.sum())
            below = ties & (number >= equal - split if self.earlier_first else number < split) | (bits < pattern)
            kept &= ~below if at == 0 else below
        return kept

    @staticmethod
    def _threshold(parts: Callable[[], Iterable[Tensor]], rank: int) -> tuple[int, int, int]:
        """(bits of the entry of that rank, entries with smaller ones, entries with equal ones)."""
        counts: Array = np.zeros(BINS, dtype=np.int64)
        wide = False
        for part in parts():
            wide = wide or part.dtype not in (torch.float16, torch.bfloat16)
            bits = magnitude_bits(part)
            counts += torch.bincount(bits >> 16 if wide else bits, minlength=BINS).numpy()
        pattern, smaller = _bin_of(counts, rank)
        if not wide:
            return pattern, smaller, int(counts[pattern])
        fine: Array = np.zeros(1 << 16, dtype=np.int64)
        for part in parts():
            bits = magnitude_bits(part)
            fine += torch.bincount(bits[bits >> 16 == pattern] & 0xFFFF, minlength=1 << 16).numpy()
        low, more = _bin_of(fine, rank - smaller)
        return (pattern << 16) | low, smaller + more, int(fine[low])


def _bin_of(counts: Array, rank: int) -> tuple[int, int]:
    """(bin that holds the entry of a rank, entries in smaller bins)."""
    ends = np.cumsum(counts)
    found = int(np.searchsorted(ends, rank, side="right"))
    return found, int(ends[found] - counts[found])
