"""From scored documents to a selection: within bands of length, without duplicates, up to a number or a size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ontarget.errors import SettingError
from ontarget.select.document_scores import DocumentScores
from ontarget.select.length_guard import banded_ranks
from ontarget.values import Array

SPARE = 1.5  # candidates looked at for each document wanted, before near-duplicates are dropped (choice)
BLOCK = 512  # candidates that are compared with the chosen ones at once


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
    limit = min(len(distinct), int(SPARE * wanted) + 10) if drop_near else wanted
    while True:
        texts = fetch(distinct[:limit])
        if not drop_near:
            kept = distinct[:wanted]
            break
        kept = distinct[without_near_duplicates([texts[int(at)] for at in distinct[:limit]])]
        enough = len(kept) >= wanted if allowed is None else int(found.bytes[kept].sum()) >= allowed
        if enough or limit == len(distinct):
            break
        limit = min(len(distinct), 2 * limit)
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
    return Chosen(kept, tuple(texts[int(at)] for at in kept), exact, max(0, len(passed) - exact - len(kept)))


def without_near_duplicates(texts: Sequence[str]) -> Array:
    """Positions of the texts that are no near-duplicate of an earlier one that is kept."""
    from ontarget.data.near import JACCARD, jaccard, near_texts, sketches

    listed = [" ".join(text.lower().split()) for text in texts]
    sketch = sketches(listed)
    kept: list[int] = []
    for start in range(0, len(listed), BLOCK):
        fresh = np.arange(start, min(start + BLOCK, len(listed)))
        before = np.array(kept, dtype=np.int64)
        known = {row for _, row in near_texts(listed, sketch, before, fresh)} if kept else set()
        block: list[int] = []
        for row in (int(row) for row in fresh):
            if row in known:
                continue
            agreement = (sketch[block] == sketch[row]).mean(axis=1) if block else np.zeros(0)
            close = np.flatnonzero(agreement >= JACCARD - 0.2)
            if not any(jaccard(listed[block[at]], listed[row]) >= JACCARD for at in close):
                block.append(row)
        kept += block
    return np.array(kept, dtype=np.int64)


def _fitting(sizes: Array, allowed: int | None) -> int:
    """How many of the first documents fit into ``allowed`` bytes together."""
    fits = int(np.searchsorted(np.cumsum(sizes.astype(np.int64)), allowed or 0, side="right"))
    if fits == 0:
        raise SettingError("The selection would hold no document.", option="--megabytes", next_step="allow more")
    return fits
