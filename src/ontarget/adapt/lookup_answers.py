"""Answers without a language model: the most frequent one, and that of the training prompt that is most alike.

The cheap baselines of every generation task. Likeness is the cosine of TF-IDF vectors of letters (1 to 4 in a row, in
words) and words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ontarget.errors import DataError
from ontarget.values import Prompts

METHODS = ("constant_answer", "nearest_answer")


def answer_by_lookup(method: str, known: Prompts, prompts: Sequence[str]) -> list[str]:
    """Answers of one of METHODS, from rows whose references are known; rows without one are passed over."""
    if method == "constant_answer":
        return [most_frequent_answer(known.references)] * len(prompts)
    known = known.answered()
    return nearest_answers(known.prompts, [right[0] for right in known.references], prompts)


def most_frequent_answer(references: Sequence[Sequence[str]]) -> str:
    """The reference that occurs most often; of equals the one that comes first. Raises DataError: there is none."""
    counts = Counter(right[0] for right in references if right)
    if not counts:
        raise DataError("No row has a reference answer.")
    return counts.most_common(1)[0][0]


def nearest_answers(
    known: Sequence[str], answers: Sequence[str], prompts: Sequence[str], *, block: int = 512
) -> list[str]:
    """For each of ``prompts`` the answer of the ``known`` prompt that is most like it. Memory: block * len(known)."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not known or len(known) != len(answers):
        raise DataError(f"{len(known)} prompts are known and {len(answers)} answers.")
    makers = [TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True, dtype=np.float32),
              TfidfVectorizer(token_pattern=r"(?u)\S+", sublinear_tf=True, dtype=np.float32)]  # fmt: skip
    library = hstack([maker.fit_transform(known) for maker in makers]).tocsr()
    found: list[str] = []
    for start in range(0, len(prompts), block):
        part = hstack([maker.transform(prompts[start : start + block]) for maker in makers]).tocsr()
        found += [answers[int(at)] for at in np.asarray((part @ library.T).argmax(axis=1)).ravel()]
    return found
