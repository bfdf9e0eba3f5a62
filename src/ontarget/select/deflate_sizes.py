"""The exact lengths of many gzip files that begin alike, without writing them.

Peter Deutsch, "DEFLATE Compressed Data Format Specification version 1.3", RFC 1951, 1996; Jean-loup Gailly, Mark
Adler, zlib (lazy matching of levels 4 to 9, `deflate_slow`, and block sizes, `trees.c`), whose decisions are followed
one by one, so that lengths are the same to the byte.
Here for compression distances, which need the length of prefix + text for many prefixes and the same texts. What is
saved: a prefix is matched once; the matches of a text with itself are found once, so that with each prefix only the
prefix's matches are looked for; tables of zlib's size are neither allocated nor copied; no code is written.
Left out: levels 1 to 3; more than LONGEST bytes (zlib's first block could end there). `gzip_sizes` gives those to zlib.
Checked in tests/select/test_deflate_sizes.py against zlib on real, random and degenerate text.

Needs the extra ``select`` (Numba); the first call of a new installation compiles for some seconds, then it is cached.

>>> import gzip
>>> gzip_sizes(b"to be or not", [b" to be", b""]) == [len(gzip.compress(b"to be or not" + end)) for end in (b" to be", b"")]
True
"""  # noqa: E501

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit  # type: ignore[import-untyped]

from ontarget.values import Array

LONGEST = 16382  # bytes: symbols of zlib's first block at its memory level 8, which gzip uses
LAZY_LEVELS = range(4, 10)
HEADER_AND_TRAILER = 18  # bytes of a gzip file around its deflate stream
# zlib's configuration_table: good_length, max_lazy, nice_length, max_chain.
_SETTINGS = {4: (4, 4, 16, 16), 5: (8, 16, 32, 32), 6: (8, 16, 128, 128), 7: (8, 32, 128, 256), 8: (32, 128, 258, 1024),
             9: (32, 258, 258, 4096)}  # fmt: skip
_LITERALS, _DISTANCES, _CODE_LENGTHS, _NODES = 286, 30, 19, 573
FARTHEST_OF_THREE = 4096  # zlib's TOO_FAR: a match of three bytes from further back is not worth it


@dataclass(frozen=True)
class Texts:
    """Texts ready to be put behind prefixes. joined: uint8, all behind one another; starts: (T + 1,) where each begins.

    before: for every byte, the nearest earlier position in its text with the same hash, else -1. packed: for every byte
    in one number, to be read at once: its hash with the next two (15 bits; one bit says that there are two); the
    length of the longest match with an earlier position of its text (9 bits, 0 below three bytes); how many earlier
    positions have the same hash (14); where the match begins (14). Positions count from their text's beginning.
    """

    joined: Array
    starts: Array
    before: Array
    packed: Array

    @property
    def longest(self) -> int:
        """Bytes of the longest text."""
        return int(np.diff(self.starts).max()) if len(self.starts) > 1 else 0


def gzip_sizes(prefix: bytes, texts: Sequence[bytes], *, level: int = 6) -> list[int]:
    """``len(gzip.compress(prefix + text, level))`` for every text. Texts that are too long go to zlib itself."""
    short = [at for at, text in enumerate(texts) if 0 < len(prefix) + len(text) <= LONGEST]
    sizes = [0] * len(texts)
    if level in LAZY_LEVELS and short:
        for at, size in zip(
            short, sizes_after(prefix, prepared([texts[at] for at in short]), level=level), strict=True
        ):
            sizes[at] = int(size)
    else:
        short = []
    for at in sorted(set(range(len(texts))) - set(short)):
        sizes[at] = len(zlib.compress(prefix + texts[at], level, 31))
    return sizes


def parsed(texts: Sequence[bytes], *, level: int = 6) -> tuple[Array, Array]:
    """What each text's deflate stream consists of, by itself: (N, 316) int64 counts of the 286 literals and lengths
    (without the end of the block) and the 30 distances, and (N,) int64 lengths as `gzip_sizes` gives them.

    Of a text of more than LONGEST bytes the first LONGEST are parsed, and counts and lengths grown to the whole.
    """
    cut = [text[:LONGEST] for text in texts]
    starts = np.concatenate([[0], np.cumsum([len(text) for text in cut])]).astype(np.int64)
    joined = np.frombuffer(b"".join(cut) or b"\0", dtype=np.uint8)
    symbols, sizes = _parsed(joined, starts, np.array(_SETTINGS[level], dtype=np.int64))
    for at, text in enumerate(texts):
        if len(text) > LONGEST:
            symbols[at] = symbols[at] * len(text) // LONGEST
            sizes[at] = sizes[at] * len(text) // LONGEST
    return symbols, sizes + HEADER_AND_TRAILER


def prepared(texts: Sequence[bytes]) -> Texts:
    """`Texts` of these byte strings, each of LONGEST bytes at most."""
    starts = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
    joined = np.frombuffer(b"".join(texts) or b"\0", dtype=np.uint8)
    return Texts(joined, starts, *_own_matches(joined, starts))


def sizes_after(prefix: bytes, texts: Texts, *, level: int) -> Array:
    """(T,) int64 lengths of prefix + text, gzip's header and trailer included, where that is LONGEST bytes at most."""
    first = np.frombuffer(prefix or b"\0", dtype=np.uint8)
    sizes: Array = _sizes(
        first, len(prefix), texts.joined, texts.starts, texts.before, texts.packed,
        np.array(_SETTINGS[level], dtype=np.int64),
    )  # fmt: skip
    return sizes + HEADER_AND_TRAILER


def _length_codes() -> tuple[Array, Array]:
    """Match length - 3 -> its symbol, and symbol - 257 -> its extra bits (RFC 1951, section 3.2.5)."""
    extra = np.array([0] * 8 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4 + [5] * 4 + [0], dtype=np.int64)
    symbols = np.repeat(np.arange(28), 1 << extra[:28])[:256]
    symbols[255] = 28  # length 258 has a symbol of its own
    return (symbols + 257).astype(np.int16), extra


def _distance_codes() -> tuple[Array, Array]:
    """Distance - 1 -> its symbol, and symbol -> its extra bits."""
    extra = np.maximum(np.arange(30) // 2 - 1, 0).astype(np.int64)
    return np.repeat(np.arange(30), 1 << extra)[:LONGEST].astype(np.uint8), extra


_LENGTH_SYMBOL, _LENGTH_EXTRA = _length_codes()
_DISTANCE_SYMBOL, _DISTANCE_EXTRA = _distance_codes()
_STATIC_LITERALS = np.array([8] * 144 + [9] * 112 + [7] * 24 + [8] * 8, dtype=np.int64)
_STATIC_DISTANCES = np.full(30, 5, dtype=np.int64)
_CODE_LENGTH_EXTRA = np.array([0] * 16 + [2, 3, 7], dtype=np.int64)
_CODE_LENGTH_ORDER = np.array([16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15], dtype=np.int64)
_HEAVIEST = 1 << 62


def _costs(extra: Array, extra_from: int, static: Array) -> Array:
    """(2, _NODES + 1): each symbol's extra bits, and its bits with the static code; zeros for what is no symbol."""
    found = np.zeros((2, _NODES + 1), dtype=np.int64)
    found[:, extra_from : extra_from + len(extra)] = extra
    found[1, : len(static)] += static
    return found


def _runs() -> Array:
    """(2, 321, 4): of a run of zeros, or of another code length, by its size: how many symbols 16, 17, 18, and of the
    length itself (RFC 1951, section 3.2.7, as zlib cuts long runs)."""
    found = np.zeros((2, 321, 4), dtype=np.int64)
    for size in range(1, 321):
        whole, rest = divmod(size, 138)
        found[0, size, 2] = whole + int(rest > 10)
        found[0, size, 1] = int(3 <= rest <= 10)
        found[0, size, 3] = rest if rest < 3 else 0
        if size < 4:
            found[1, size, 3] = size
            continue
        whole, rest = divmod(max(size - 7, 0), 6)
        found[1, size] = 1 + whole + int(rest >= 3), 0, 0, 1 + (rest if rest < 3 else 0)
    packed = found[..., 3] | (found[..., 0] << 8) | (found[..., 1] << 24) | (found[..., 2] << 40)
    return np.pad(packed, ((0, 0), (0, 512 - packed.shape[1]))).ravel()


_LITERAL_COSTS = _costs(_LENGTH_EXTRA, 257, _STATIC_LITERALS)
_DISTANCE_COSTS = _costs(_DISTANCE_EXTRA, 0, _STATIC_DISTANCES)
_CODE_LENGTH_COSTS = _costs(_CODE_LENGTH_EXTRA, 0, np.zeros(0, dtype=np.int64))
_RUNS = _runs()


@njit(cache=True)  # type: ignore[untyped-decorator]
def _key(bytes_: Any, at: int) -> int:
    """zlib's hash of three bytes, at its memory level 8."""
    return ((int(bytes_[at]) << 10) ^ (int(bytes_[at + 1]) << 5) ^ int(bytes_[at + 2])) & 0x7FFF


@njit(cache=True)  # type: ignore[untyped-decorator]
def _own_matches(joined: Any, starts: Any) -> Any:
    """The fields before and packed of `Texts`."""
    before, packed = np.full(len(joined), -1, np.int16), np.zeros(len(joined), np.int64)
    head = np.full(1 << 15, -1, np.int16)
    for text in range(len(starts) - 1):
        first, length = starts[text], starts[text + 1] - starts[text]
        for at in range(length - 2):
            key = _key(joined, first + at)
            candidate = int(head[key])
            before[first + at] = candidate
            head[key] = at
            best, limit, tries, start = 2, min(258, length - at), 0, 0
            while candidate >= 0:
                tries += 1
                if best < limit and joined[first + candidate + best] == joined[first + at + best]:
                    same = 0
                    while same < limit and joined[first + candidate + same] == joined[first + at + same]:
                        same += 1
                    if same > best:
                        best, start = same, candidate
                candidate = int(before[first + candidate])
            own = best if best > 2 else 0
            packed[first + at] = key | (1 << 15) | (own << 16) | (tries << 25) | (start << 39)
        for at in range(length - 2):
            head[packed[first + at] & 0x7FFF] = -1
    return before, packed


@njit(cache=True)  # type: ignore[untyped-decorator]
def _sizes(prefix: Any, known: int, joined: Any, starts: Any, before: Any, packed: Any, settings: Any) -> Any:
    """Deflate stream lengths in bytes of prefix + each text."""
    longest = 0
    for text in range(len(starts) - 1):
        longest = max(longest, starts[text + 1] - starts[text])
    window = np.zeros(known + longest + 1, np.uint8)
    window[:known] = prefix[:known]
    # zlib never matches position 0, which stands for "none": a text without prefix is matched like a prefix.
    reach = known if known > 0 else longest
    head, previous = np.zeros(1 << 15, np.int16), np.zeros(reach + 1, np.int16)
    undo = np.zeros((reach + 1, 2), np.int16)
    counts = np.zeros(_LITERALS + _DISTANCES, np.int64)
    state = np.zeros(4, np.int64)  # position, whether a literal waits, length and start of the last match
    state[2] = 2
    _match_prefix(window, known, known, True, state, head, previous, counts, settings, undo)
    own_counts, own_state = np.zeros_like(counts), np.zeros_like(state)
    work, lengths = np.zeros((4, 1024), np.int64), np.zeros((3, _LITERALS + 2), np.int64)
    sizes = np.zeros(len(starts) - 1, np.int64)
    for text in range(len(starts) - 1):
        first, length = starts[text], starts[text + 1] - starts[text]
        window[known : known + length] = joined[first : first + length]
        own_counts[:] = counts
        own_state[:] = state
        inserted = _match_prefix(
            window, known if known > 0 else length, known + length, False, own_state, head, previous, own_counts,
            settings, undo,
        )  # fmt: skip
        last = first + length
        _match_text(
            window, known, length, own_state, head, previous, own_counts, settings, before[first:last],
            packed[first:last],
        )  # fmt: skip
        for at in range(inserted - 1, -1, -1):
            head[undo[at, 0]] = undo[at, 1]
        sizes[text] = _block_size(own_counts[:_LITERALS], own_counts[_LITERALS:], known + length, work, lengths)
    return sizes


@njit(cache=True)  # type: ignore[untyped-decorator]
def _parsed(joined: Any, starts: Any, settings: Any) -> Any:
    """Symbols and deflate stream lengths of texts by themselves: `_match_prefix` without what is not known yet.

    Positions count from the beginning of ``joined``, so that what an earlier text left in the tables is recognised.
    """
    good, lazy, nice, chain = settings[0], settings[1], settings[2], settings[3]
    head, previous = np.full(1 << 15, -1, np.int32), np.zeros(len(joined), np.int32)
    symbols = np.zeros((len(starts) - 1, _LITERALS + _DISTANCES), np.int64)
    counts, sizes = np.zeros(_LITERALS + _DISTANCES, np.int64), np.zeros(len(starts) - 1, np.int64)
    work, lengths = np.zeros((4, 1024), np.int64), np.zeros((3, _LITERALS + 2), np.int64)
    for text in range(len(starts) - 1):
        base, end = starts[text], starts[text + 1]
        own = symbols[text]
        at, waiting, length, start = base, 0, 2, base
        while at < end:
            last_length, last_start = length, start
            length = 2
            if at <= end - 3:
                key = _key(joined, at)
                found = int(head[key])
                previous[at] = found
                head[key] = at
                if found > base and last_length < lazy:  # the very first byte is never matched
                    best, ahead = last_length, end - at
                    tries = chain >> 2 if last_length >= good else chain
                    enough, limit = min(nice, ahead), min(258, ahead)
                    while best < ahead:
                        if (
                            joined[found + best] == joined[at + best]
                            and joined[found + best - 1] == joined[at + best - 1]
                        ):
                            same = 0
                            while same < limit and joined[found + same] == joined[at + same]:
                                same += 1
                            if same > best:
                                start, best = found, same
                                if same >= enough:
                                    break
                        found = int(previous[found])
                        tries -= 1
                        if found <= base or tries == 0:
                            break
                    length = min(best, ahead)
                    if length == 3 and at - start > FARTHEST_OF_THREE:
                        length = 2
            if last_length >= 3 and length <= last_length:
                own[_LENGTH_SYMBOL[last_length - 3]] += 1
                own[_LITERALS + _DISTANCE_SYMBOL[at - 1 - last_start - 1]] += 1
                for inside in range(at + 1, min(at + last_length - 2, end - 3) + 1):
                    key = _key(joined, inside)
                    previous[inside] = head[key]
                    head[key] = inside
                at += last_length - 2
                waiting, length = 0, 2
            elif waiting:
                own[joined[at - 1]] += 1
            else:
                waiting = 1
            at += 1
        if waiting:
            own[joined[end - 1]] += 1
        counts[:] = own
        sizes[text] = _block_size(counts[:_LITERALS], counts[_LITERALS:], end - base, work, lengths)
    return symbols, sizes


@njit(cache=True)  # type: ignore[untyped-decorator]
def _match_prefix(
    window: Any, known: int, end: int, more: bool, state: Any, head: Any, previous: Any, counts: Any, settings: Any,
    undo: Any,
) -> int:  # fmt: skip
    """Count the symbols that begin before ``known``; returns how many entries of ``head`` were overwritten.

    more: the text that follows is not known yet: stop before the first step that would depend on it.
    """
    good, lazy, nice, chain = settings[0], settings[1], settings[2], settings[3]
    at, waiting, length, start = state[0], state[1], state[2], state[3]
    inserted = 0
    while at < known:
        last_length, last_start = length, start
        ahead = end - at
        found, key = 0, -1
        if ahead >= 3:
            key = _key(window, at)
            found = int(head[key])
        elif more:
            break
        length = 2
        if found != 0 and last_length < lazy:
            best, unknown = last_length, False
            tries = chain >> 2 if last_length >= good else chain
            enough, limit = min(nice, ahead), min(258, ahead)
            candidate = found
            while True:
                if best >= ahead:
                    unknown = True
                    break
                if (
                    window[candidate + best] == window[at + best]
                    and window[candidate + best - 1] == window[at + best - 1]
                ):
                    same = 0
                    while same < limit and window[candidate + same] == window[at + same]:
                        same += 1
                    if same == ahead and ahead < 258:
                        unknown = True
                        if more:
                            break
                    if same > best:
                        start, best = candidate, same
                        if same >= enough:
                            break
                candidate = int(previous[candidate])
                tries -= 1
                if candidate <= 0 or tries == 0:
                    break
            if unknown and more:
                length, start = last_length, last_start
                break
            length = min(best, ahead)
            if length == 3 and at - start > FARTHEST_OF_THREE:
                length = 2
        taken = last_length >= 3 and length <= last_length
        if taken and more and at + last_length - 2 > end - 3:
            length, start = last_length, last_start
            break
        if key >= 0:
            undo[inserted, 0], undo[inserted, 1] = key, head[key]
            inserted += 1
            previous[at] = head[key]
            head[key] = at
        if taken:
            counts[_LENGTH_SYMBOL[last_length - 3]] += 1
            counts[_LITERALS + _DISTANCE_SYMBOL[at - 1 - last_start - 1]] += 1
            for _ in range(last_length - 2):
                at += 1
                if at < known and at <= end - 3:
                    key = _key(window, at)
                    undo[inserted, 0], undo[inserted, 1] = key, head[key]
                    inserted += 1
                    previous[at] = head[key]
                    head[key] = at
            waiting, length = 0, 2
        elif waiting:
            counts[window[at - 1]] += 1
        else:
            waiting = 1
        at += 1
    if waiting and not more and at >= end:
        counts[window[at - 1]] += 1
    state[0], state[1], state[2], state[3] = at, waiting, length, start
    return inserted


@njit(cache=True)  # type: ignore[untyped-decorator]
def _match_text(
    window: Any, known: int, size: int, state: Any, head: Any, previous: Any, counts: Any, settings: Any, before: Any,
    packed: Any,
) -> None:  # fmt: skip
    """Count the symbols of window[state[0] : known + size], all of them in the text.

    Positions are masked where it is hot: it changes none, and tells the compiler that none is negative.
    """
    good, lazy, nice, chain = settings[0], settings[1], settings[2], settings[3]
    place, waiting, length, start = state[0] - known, state[1], state[2], state[3]
    if place >= size:
        return
    while place < size:
        last_length, last_start = length, start
        length = 2
        known_of_it = packed[place & 0x3FFF]
        found = int(head[known_of_it & 0x7FFF])
        own = (known_of_it >> 16) & 0x1FF
        # Most often neither the prefix nor the text before has these three bytes.
        if (found | own) != 0 and known_of_it & 0x8000 and last_length < lazy:
            tries = chain >> 2 if last_length >= good else chain
            ahead = size - place
            enough = min(nice, ahead)
            best = last_length
            at, limit = known + place, min(258, ahead)
            left = tries - ((known_of_it >> 25) & 0x3FFF)
            if left <= 0 or own >= enough:  # zlib does not get to all matches of the text with itself
                candidate, left = int(before[place]), tries
                while candidate >= 0 and left > 0:
                    if best < limit and window[known + candidate + best] == window[at + best]:
                        same = 0
                        while same < limit and window[known + candidate + same] == window[at + same]:
                            same += 1
                        if same > best:
                            start, best = known + candidate, same
                            if same >= enough:
                                left = 0
                                break
                    candidate = int(before[candidate])
                    left -= 1
            elif own > best:
                best, start = own, known + (known_of_it >> 39)
            if found > 0 and left > 0 and best < ahead:
                while True:
                    if (
                        window[(found + best) & 0x7FFF] == window[(at + best) & 0x7FFF]
                        and window[(found + best - 1) & 0x7FFF] == window[(at + best - 1) & 0x7FFF]
                    ):
                        same = 0
                        while same < limit and window[(found + same) & 0x7FFF] == window[(at + same) & 0x7FFF]:
                            same += 1
                        if same > best:
                            start, best = found, same
                            if same >= enough:
                                break
                    found = int(previous[found & 0x7FFF])
                    left -= 1
                    if found <= 0 or left == 0:
                        break
            length = min(best, ahead)
            if length == 3 and known + place - start > FARTHEST_OF_THREE:
                length = 2
        if last_length >= 3 and length <= last_length:
            counts[_LENGTH_SYMBOL[last_length - 3]] += 1
            counts[_LITERALS + _DISTANCE_SYMBOL[known + place - last_start - 2]] += 1
            place += last_length - 2
            waiting, length = 0, 2
        elif waiting:
            counts[window[(known + place - 1) & 0x7FFF]] += 1
        else:
            waiting = 1
        place += 1
    if waiting:
        counts[window[(known + place - 1) & 0x7FFF]] += 1


@njit(cache=True)  # type: ignore[untyped-decorator]
def _block_size(literals: Any, distances: Any, stored: int, work: Any, lengths: Any) -> int:
    """Bytes of one last block with these symbols: fixed codes, codes of its own, or stored, as zlib chooses.

    work: (4, _NODES + 1), lengths: (3, _LITERALS + 1) int64 of any content.
    """
    literals[256] = 1
    counts = np.zeros(_CODE_LENGTHS, np.int64)
    last, own, fixed = _code(literals, 15, _LITERAL_COSTS, lengths[0], work)
    _count_lengths(lengths[0], last, counts)
    last, more_own, more_fixed = _code(distances, 15, _DISTANCE_COSTS, lengths[1], work)
    _count_lengths(lengths[1], last, counts)
    lengths[2, :_CODE_LENGTHS] = 0
    _, lengths_own, _ = _code(counts, 7, _CODE_LENGTH_COSTS, lengths[2], work)
    last = 18
    while last >= 3 and lengths[2, _CODE_LENGTH_ORDER[last]] == 0:
        last -= 1
    own_bytes = (own + more_own + lengths_own + 3 * (last + 1) + 14 + 3 + 7) >> 3
    fixed_bytes = (fixed + more_fixed + 3 + 7) >> 3
    best = min(own_bytes, fixed_bytes)
    return stored + 5 if stored + 4 <= best else best


@njit(cache=True)  # type: ignore[untyped-decorator]
def _count_lengths(lengths: Any, last: int, counts: Any) -> None:
    """Symbols of the run-length code of code lengths (RFC 1951, section 3.2.7), as zlib's scan_tree counts them.

    A run of the same length is looked up in _RUNS; where runs end cannot be predicted, so nothing branches on it.
    """
    lengths[last + 1] = -1
    run, total = 0, 0
    for symbol in range(last + 1):
        length = lengths[symbol]
        run += 1
        ends = int(length != lengths[symbol + 1])
        kind = int(length != 0)
        found = ends * _RUNS[(kind << 9) + run]
        total += found >> 8
        counts[length & 15] += found & 0xFF
        run *= 1 - ends
    counts[16] += total & 0xFFFF
    counts[17] += (total >> 16) & 0xFFFF
    counts[18] += total >> 32


@njit(cache=True)  # type: ignore[untyped-decorator]
def _code(counts: Any, longest: int, costs: Any, lengths: Any, work: Any) -> Any:
    """zlib's build_tree and gen_bitlen: (highest symbol used, bits with own codes, bits with static codes).

    costs: (2, _NODES + 1) a symbol's extra bits, and its bits with the static code and the extra ones. Code lengths go
    to ``lengths``. Ties are broken as zlib breaks them: they change the lengths' own cost. Entries of
    the heap are weight, depth and node in one number, so that they compare as zlib compares nodes.
    """
    heap, parent, weight, bits_of = work[0], work[1], work[2], work[3]
    size, last, own, fixed = 0, -1, 0, 0
    for symbol in range(len(counts)):
        count = counts[symbol]
        heap[size + 1] = (count << 24) | symbol
        weight[symbol] = count
        size += int(count != 0)
    if size > 0:
        last = heap[size] & 0xFFF
    while size < 2:  # a code needs two symbols
        if last < 2:
            last += 1
            symbol = last
        else:
            symbol = 0
        size += 1
        heap[size] = (1 << 24) | symbol
        weight[symbol] = 1
        counts[symbol] = 1
        own -= 1
        fixed -= costs[1, symbol] - costs[0, symbol]
    heap[size + 1] = _HEAVIEST
    for at in range(size >> 1, 0, -1):
        _sift(heap, size, at)
    node, order = len(counts), _NODES
    while size >= 2:
        least = heap[1]
        value = heap[size]
        heap[size] = _HEAVIEST
        size -= 1
        _sift_heavy(heap, size, value)
        second = heap[1]
        depth = max((least >> 12) & 0xFFF, (second >> 12) & 0xFFF) + 1
        total = (least >> 24) + (second >> 24)
        # Freed places at the end of the heap keep the nodes in the order in which they leave it.
        heap[order], heap[order - 1] = least & 0xFFF, second & 0xFFF
        order -= 2
        parent[least & 0xFFF] = parent[second & 0xFFF] = node
        weight[node] = total
        heap[1] = (total << 24) | (depth << 12) | node
        node += 1
        _sift(heap, size, 1)
    deepest = 0
    bits_of[node - 1] = 0
    for at in range(order + 1, _NODES + 1):
        member = heap[at] & 1023
        bits = bits_of[parent[member] & 1023] + 1
        bits_of[member] = bits
        deepest = max(deepest, bits)
        counted = weight[member] * int(member <= last)
        own += counted * (bits + costs[0, member])
        fixed += counted * costs[1, member]
    if deepest > longest:
        own += _shortened(heap, parent, weight, bits_of, order, last, node, longest)
    for symbol in range(last + 1):
        lengths[symbol] = bits_of[symbol] * int(counts[symbol] != 0)
    return last, own, fixed


@njit(cache=True)  # type: ignore[untyped-decorator]
def _shortened(
    heap: Any, parent: Any, weight: Any, bits_of: Any, order: int, last: int, root: int, longest: int
) -> int:
    """Bring codes of more than ``longest`` bits down to it as gen_bitlen does; returns the bits that this adds."""
    of_length = np.zeros(16, np.int64)
    overflow, more = 0, 0
    bits_of[root - 1] = 0
    for at in range(order + 1, _NODES + 1):
        member = heap[at]
        bits = bits_of[parent[member]] + 1
        if member <= last:
            more -= bits_of[member] * weight[member]
        if bits > longest:
            bits = longest
            overflow += 1
        bits_of[member] = bits
        if member <= last:
            more += bits * weight[member]
            of_length[bits] += 1
    while overflow > 0:
        bits = longest - 1
        while of_length[bits] == 0:
            bits -= 1
        of_length[bits] -= 1
        of_length[bits + 1] += 2
        of_length[longest] -= 1
        overflow -= 2
    at = _NODES
    for bits in range(longest, 0, -1):
        left = of_length[bits]
        while left != 0:
            member = heap[at]
            at -= 1
            if member > last:
                continue
            if bits_of[member] != bits:
                more += (bits - bits_of[member]) * weight[member]
                bits_of[member] = bits
            left -= 1
    return more


@njit(cache=True)  # type: ignore[untyped-decorator]
def _sift(heap: Any, size: int, at: int) -> None:
    """Restore the heap (lightest first, then shallowest) from position ``at`` down; heap[size + 1] is the heaviest.

    Positions are masked: it changes none, and tells the compiler that none is negative.
    """
    value = heap[at & 1023]
    below = 2 * at
    while below <= size:
        left, right = heap[below & 1023], heap[(below + 1) & 1023]
        # Added, not branched on: which child is lighter cannot be predicted.
        other = int(right <= (left | 0xFFF))
        child = right if other else left
        if value <= (child | 0xFFF):
            break
        heap[at & 1023] = child
        at = below + other
        below = 2 * at
    heap[at & 1023] = value


@njit(cache=True)  # type: ignore[untyped-decorator]
def _sift_heavy(heap: Any, size: int, value: int) -> None:
    """`_sift` of ``value`` from the top, for one that most often goes far: down first, two levels at once, then up."""
    at, below = 1, 2
    while 2 * below + 2 <= size:
        left, right = heap[below & 1023], heap[(below + 1) & 1023]
        first, second = heap[(2 * below) & 1023], heap[(2 * below + 1) & 1023]
        third, fourth = heap[(2 * below + 2) & 1023], heap[(2 * below + 3) & 1023]
        # Added, not branched on: which child is lighter cannot be predicted.
        other = int(right <= (left | 0xFFF))
        of_left, of_right = int(second <= (first | 0xFFF)), int(fourth <= (third | 0xFFF))
        under_left = second if of_left else first
        under_right = fourth if of_right else third
        heap[at & 1023] = right if other else left
        at = below + other
        heap[at & 1023] = under_right if other else under_left
        at = 2 * at + (of_right if other else of_left)
        below = 2 * at
    while below <= size:
        left, right = heap[below & 1023], heap[(below + 1) & 1023]
        other = int(right <= (left | 0xFFF))
        heap[at & 1023] = right if other else left
        at = below + other
        below = 2 * at
    while at > 1:
        above = heap[(at >> 1) & 1023]
        if value > (above | 0xFFF):
            break
        heap[at & 1023] = above
        at >>= 1
    heap[at & 1023] = value
