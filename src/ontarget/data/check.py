"""Is the data honest? Rows that occur twice, on both sides of a split, or with different targets.

Two texts are the same row if they differ in case and white space alone; two images if their files are equal byte
by byte; two feature rows if all numbers are equal. What is nearly the same is defined in near.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from ontarget.data.images import Looks, look_at
from ontarget.data.near import JACCARD, jaccard, near_images, near_texts, sketches
from ontarget.data.problems import Rows, raise_all
from ontarget.task import Modality
from ontarget.values import Array, Examples

EXAMPLES = 3  # pairs of rows that a warning names


@dataclass(frozen=True)
class Contents:
    """What N inputs hold, ready to be compared.

    codes: (N,) int64, equal where the contents are the same. texts: normalised, a pair's parts joined by "\\n".
    """

    modality: Modality
    codes: Array
    texts: tuple[str, ...] = ()
    looks: Looks | None = None

    @cached_property
    def _sketch(self) -> Array:
        return sketches(self.texts)

    def exact(self, left: Array, right: Array) -> list[tuple[int, int]]:
        """(left row, right row) for each right row whose content a left row has too."""
        codes, first = np.unique(self.codes[left], return_index=True)
        if not len(codes):
            return []
        at = np.minimum(np.searchsorted(codes, self.codes[right]), len(codes) - 1)
        same = codes[at] == self.codes[right]
        return list(zip(left[first[at[same]]].tolist(), right[same].tolist(), strict=True))

    def near(self, left: Array, right: Array) -> list[tuple[int, int]]:
        """(left row, right row) for each right row that is nearly, but not exactly, the same as a left row."""
        known = {to for _, to in self.exact(left, right)}
        right = np.array([row for row in right.tolist() if row not in known], dtype=np.int64)
        if not len(left) or not len(right) or self.modality == "features":
            return []
        if self.looks is not None:
            return near_images(self.looks, left, right)
        found = near_texts(self.texts, self._sketch, left, right)
        return [(at, to) for at, to in found if _all_parts_near(self.texts[at], self.texts[to])]


def _all_parts_near(first: str, second: str) -> bool:
    """Pairs of texts that share one long part only are different rows."""
    if "\n" not in first:
        return True
    parts = zip(first.split("\n"), second.split("\n"), strict=True)
    return all(one == other or jaccard(one, other) >= JACCARD for one, other in parts)


def normalised(text: Any) -> str:
    """Lower case, one space for each run of white space; the parts of a pair joined by a line break."""
    if isinstance(text, str):
        return " ".join(text.lower().split())
    return "\n".join(normalised(part) for part in text)


def contents_of(inputs: Sequence[Any] | Array, modality: Modality, looks: Looks | None = None) -> Contents:
    """The contents of inputs. looks: what `look_at` gave for them, where they are images."""
    if modality == "text":
        texts = tuple(map(normalised, inputs))
        return Contents(modality, pd.factorize(np.array(texts, dtype=object))[0].astype(np.int64), texts)
    if modality == "image":
        if looks is None:
            problems: list[str] = []
            looks = look_at(inputs, Rows(("the images",), (len(inputs),)), problems)
            raise_all(problems, next_step="mend or remove these images")
        digests = np.array([digest.hex() for digest in looks.digests], dtype=object)
        return Contents(modality, pd.factorize(digests)[0].astype(np.int64), (), looks)
    features = np.ascontiguousarray(inputs, dtype=np.float32) + np.float32(0)  # -0 becomes 0
    if not features.size:
        return Contents(modality, np.zeros(len(features), dtype=np.int64))
    keys = features.view(np.dtype((np.void, features.shape[1] * 4))).reshape(-1)
    return Contents(modality, np.unique(keys, return_inverse=True)[1].reshape(-1).astype(np.int64))


def warn_of_leaks(
    contents: Contents, left: Array, right: Array, names: tuple[str, str], rows: Rows
) -> list[str]:  # fmt: skip
    """Warnings about rows of ``right`` that are, or are nearly, rows of ``left``. names: of left and right."""
    warnings = []
    for found, what in ((contents.exact(left, right), ""), (contents.near(left, right), "nearly the same as ")):
        if found:
            shown = "; ".join(f"{rows.some([to])} and {rows.some([at])}" for at, to in found[:EXAMPLES])
            which = f"are {what}{names[0]} rows" if what else f"occur among the {names[0]} rows too"
            warnings.append(f"{len(found):,} of {len(right):,} {names[1]} rows {which}, e.g. {shown}")
    return warnings


def warn_of_conflicts(contents: Contents, codes: Array, classes: Sequence[str], rows: Rows) -> list[str]:
    """A warning where the same input occurs with different classes. codes: (N,) class indices, -1 for unlabelled."""
    labelled = np.flatnonzero(codes >= 0)
    order = labelled[np.lexsort((codes[labelled], contents.codes[labelled]))]
    same = contents.codes[order[1:]] == contents.codes[order[:-1]]
    conflict = np.flatnonzero(same & (codes[order[1:]] != codes[order[:-1]]))
    if not len(conflict):
        return []
    count = len(np.unique(contents.codes[order[conflict]]))
    shown = "; ".join(
        f"{rows.some([a])} is '{classes[codes[a]]}', {rows.some([b])} is '{classes[codes[b]]}'"
        for a, b in ((order[at], order[at + 1]) for at in conflict[:EXAMPLES])
    )
    return [f"{count:,} input(s) occur with different targets, e.g. {shown}"]


@dataclass(frozen=True)
class Overlap:
    """Rows that a source data set shares with the test split.

    exact, near: pairs (position in the source inputs, position in the test split), one for each test row.
    share: part of the test rows that the source may have seen, 0..1.
    """

    exact: tuple[tuple[int, int], ...]
    near: tuple[tuple[int, int], ...]
    share: float


def overlap(source_inputs: Sequence[Any] | Array, test: Examples, *, modality: Modality) -> Overlap:
    """Which test rows occur, exactly or nearly, in a source's data: a score on those rows proves nothing.

    source_inputs: as `Examples.inputs`. Raises DataError for images that cannot be read.
    """
    count = len(source_inputs)
    if modality == "features":
        if count and len(test) and np.shape(source_inputs)[1] != np.shape(test.inputs)[1]:
            return Overlap((), (), 0.0)
        both: Any = np.concatenate([np.asarray(source_inputs), np.asarray(test.inputs)]) if count else test.inputs
    else:
        both = [*source_inputs, *test.inputs]
    contents = contents_of(both, modality)
    left, right = np.arange(count), np.arange(count, count + len(test))
    exact = tuple((at, to - count) for at, to in contents.exact(left, right))
    near = tuple((at, to - count) for at, to in contents.near(left, right))
    return Overlap(exact, near, (len(exact) + len(near)) / max(1, len(test)))
