"""From scored documents to a selection: within bands of length, without duplicates, up to a number or a size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ontarget.errors import SettingError
from ontarget.select.document_scores import DocumentScores
from ontarget.select.length_guard import banded_ranks
from ontarget.values import Array

SPARE = 1.5  # candidates fetched at first for each document wanted, before near-duplicates are dropped (choice)
FETCH_BYTES = 64 << 20  # of candidates' texts that are fetched at once, at most: each fetch is a pass over the pool
SLICE = 512  # of them that are sketched at once
EACH = 4  # kept texts that are looked at for each part of a sketch that they share with a candidate (choice)
CLOSEST = 4  # of these, the most alike by sketch, that are compared exactly (choice)


@dataclass(frozen=True)
class Chosen:
    """positions: (K,) of the chosen documents, best first. texts: theirs. Duplicates: what was passed over for them."""

    positions: Array
    texts: tuple[str, ...]
    exact_duplicates: int
    near_duplicates: int


def order_documents(found: DocumentScores, *, method: str, bands: int, seed: int) -> Array:
    """Positions of all documents with text, best first.

    "zipfit": by rank within the band of length, ties to the higher score. "dsir": drawn in proportion to the weights
    (Gumbel top-K). "random", and "random-by-length", which draws evenly from the bands as "zipfit" does.
    """
    filled = np.flatnonzero(found.bytes > 0)
    scores, lengths = found.score[filled].astype(np.float64), found.bytes[filled]
    generator = np.random.default_rng(seed)
    if method == "dsir":
        keys = scores + generator.gumbel(size=len(filled))
    elif method == "random":
        keys = generator.random(len(filled))
    else:
        ranked = scores if method == "zipfit" else generator.random(len(filled))
        keys = banded_ranks(ranked, lengths, bands=bands)
    ordered: Array = filled[np.lexsort((np.arange(len(filled)), -scores, -keys))]
    return ordered


def choose_documents(
    found: DocumentScores,
    order: Array,
    fetch: Callable[[Array], Mapping[int, str]],
    *,
    count: int | None = None,
    megabytes: float | None = None,
    drop_near: bool = True,
) -> Chosen:
    """The first documents of ``order`` up to ``count``, or up to ``megabytes`` of text.

    fetch: positions -> texts. Equal texts (but for case and white space) count once; with ``drop_near`` so do
    near-duplicates of a better document. Raises SettingError where there are too few, or none fits.
    """
    _, first = np.unique(found.digest[order], return_index=True)
    single = np.zeros(len(order), dtype=bool)
    single[first] = True
    distinct = order[single]
    if count is not None and count > len(distinct):
        raise SettingError(
            f"{count:,} documents are wanted, and the pool has {len(distinct):,} different ones with text.",
            option="--count",
            next_step="lower it",
        )
    allowed = None if megabytes is None else int(megabytes * 2**20)
    wanted = count if count is not None else _fitting(found.bytes[distinct], allowed)
    if drop_near:
        kept, kept_texts = _distinct_enough(found, distinct, fetch, wanted=wanted, allowed=allowed)
    else:
        kept = distinct[:wanted]
        texts = fetch(kept)
        kept_texts = [texts[int(at)] for at in kept]
    kept = kept[:count] if allowed is None else kept[: _fitting(found.bytes[kept], allowed)]
    if count is not None and len(kept) < count:
        raise SettingError(
            f"{count:,} documents are wanted, and {len(kept):,} are no near-duplicates of each other.",
            option="--count, --near-duplicates",
            next_step="lower the number, or keep near-duplicates",
        )
    reached = int(np.flatnonzero(order == kept[-1])[0]) + 1
    passed = order[:reached]
    exact = int((~single[:reached]).sum())
    return Chosen(kept, tuple(kept_texts[: len(kept)]), exact, max(0, len(passed) - exact - len(kept)))


def _distinct_enough(
    found: DocumentScores,
    distinct: Array,
    fetch: Callable[[Array], Mapping[int, str]],
    *,
    wanted: int,
    allowed: int | None,
) -> tuple[Array, list[str]]:
    """Positions and texts of the first of ``distinct`` that are no near-duplicates, until there are enough.

    Memory holds the chosen texts and FETCH_BYTES of candidates, however many near-duplicates there are.
    """
    chosen = NearDuplicates()
    kept: list[int] = []
    kept_texts: list[str] = []

    def enough() -> bool:
        return len(kept) >= wanted if allowed is None else int(found.bytes[kept].sum()) >= allowed

    at, size = 0, int(SPARE * wanted) + 10
    while at < len(distinct):
        block = distinct[at : at + size]
        block = block[: max(1, int(np.searchsorted(np.cumsum(found.bytes[block], dtype=np.int64), FETCH_BYTES)))]
        texts = fetch(block)
        listed = [texts[int(position)] for position in block]
        for start in range(0, len(listed), SLICE):
            for place in chosen.add(listed[start : start + SLICE]):
                kept.append(int(block[start + place]))
                kept_texts.append(listed[start + place])
            if enough():
                return np.array(kept, dtype=np.int64), kept_texts
        at += len(block)
        size *= 2
    return np.array(kept, dtype=np.int64), kept_texts


class NearDuplicates:
    """The texts kept so far, which each further one must not be a near-duplicate of. Its work grows with the texts."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._sketches: list[Array] = []
        self._bands: dict[tuple[int, int], list[int]] = {}

    def add(self, texts: Sequence[str]) -> list[int]:
        """Positions of the texts that are no near-duplicate of one that is kept, nor of an earlier one here."""
        from ontarget.data.near import band_keys, sketches

        listed = [" ".join(text.lower().split()) for text in texts]
        sketch = sketches(listed)
        places = []
        for place, (text, bins, keys) in enumerate(zip(listed, sketch, band_keys(sketch).tolist(), strict=True)):
            bands = list(enumerate(keys))
            if self._known(text, bins, bands):
                continue
            for band in bands:
                same = self._bands.setdefault(band, [])
                if len(same) < EACH:
                    same.append(len(self._texts))
            self._texts.append(text)
            self._sketches.append(bins)
            places.append(place)
        return places

    def _known(self, text: str, bins: Array, bands: Sequence[tuple[int, int]]) -> bool:
        from ontarget.data.near import JACCARD, jaccard

        candidates = sorted({row for band in bands for row in self._bands.get(band, ())})
        if not candidates:
            return False
        agreement = np.mean(np.stack([self._sketches[row] for row in candidates]) == bins, axis=1)
        # The agreement estimates the Jaccard index with a deviation of at most 0.06.
        closest = np.argsort(-agreement, kind="stable")[:CLOSEST]
        close = [candidates[at] for at in closest if agreement[at] >= JACCARD - 0.2]
        return any(jaccard(self._texts[row], text) >= JACCARD for row in close)


def _fitting(sizes: Array, allowed: int | None) -> int:
    """How many of the first documents fit into ``allowed`` bytes together."""
    fits = int(np.searchsorted(np.cumsum(sizes.astype(np.int64)), allowed or 0, side="right"))
    if fits == 0:
        raise SettingError("The selection would hold no document.", option="--megabytes", next_step="allow more")
    return fits
