"""How good generated answers are: per row, higher is better.

exact_match, token_f1: Rajpurkar et al., SQuAD, EMNLP 2016 (arXiv 1606.05250): lower case, no punctuation, no articles.
rouge_l: Lin, ROUGE, 2004: F1 of the longest common subsequence of words; words of all scripts, no stemming (choice).
last_number: whether the last number of the answer is that of the reference, as GSM8K's answers are judged.
With several references the best one counts. Checked in tests/adapt/test_answer_metric.py by hand-worked values.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from ontarget.errors import DataError, SettingError, nearest
from ontarget.task import GENERATION_METRICS
from ontarget.values import Array

_NUMBER = re.compile(r"(?:(?<!\w)-)?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def answer_scores(metric: str, answers: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
    """(N,) float64 in [0, 1]. references: the right answers of each row, one or more.

    Raises SettingError: a metric that is not one of texts alone. DataError: lengths that differ, a row without one.
    """
    if metric not in _ROWS:
        raise SettingError(f"'{metric}' does not compare texts.", allowed=", ".join(_ROWS),
                           next_step=nearest(metric, GENERATION_METRICS))  # fmt: skip
    if len(answers) != len(references) or not answers:
        raise DataError(f"There are {len(answers)} answers and {len(references)} references.")
    for row, right in enumerate(references):
        if not right:
            raise DataError(f"Row {row} has no reference answer.")
    one = _ROWS[metric]
    pairs = zip(answers, references, strict=True)
    return np.array([max(one(answer, reference) for reference in right) for answer, right in pairs])


def plain(text: str) -> list[str]:
    """Words as SQuAD compares them."""
    return _ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def last_number(text: str) -> float | None:
    """The last number that a text writes; commas between groups of three digits belong to it."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _exact(answer: str, reference: str) -> float:
    return float(plain(answer) == plain(reference))


def _same_number(answer: str, reference: str) -> float:
    said, right = last_number(answer), last_number(reference)
    return float(said is not None and said == right)


def _token_f1(answer: str, reference: str) -> float:
    said, right = plain(answer), plain(reference)
    if not said or not right:
        return float(said == right)
    return _f1(sum((Counter(said) & Counter(right)).values()), len(said), len(right))


def _rouge_l(answer: str, reference: str) -> float:
    said, right = re.findall(r"\w+", answer.lower()), re.findall(r"\w+", reference.lower())
    if not said or not right:
        return float(said == right)
    return _f1(_common(said, right), len(said), len(right))


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence; time len(first) * len(second), memory len(second)."""
    codes = {word: code for code, word in enumerate(dict.fromkeys(second))}
    right = np.array([codes[word] for word in second])
    best = np.zeros(len(second) + 1, dtype=np.int64)
    for word in first:
        if word in codes:  # a row of the table: diagonal + 1 where words match, then the running maximum
            found = np.maximum(best[1:], best[:-1] + (right == codes[word]))
            best[1:] = np.maximum.accumulate(found)
    return int(best[-1])


def _f1(common: int, said: int, right: int) -> float:
    return 2 * common / (said + right)


_ROWS: dict[str, Callable[[str, str], float]] = {
    "exact_match": _exact,
    "last_number": _same_number,
    "token_f1": _token_f1,
    "rouge_l": _rouge_l,
}
