import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ontarget.adapt.answer_metric import _common, answer_scores, last_number
from ontarget.errors import DataError, SettingError


@pytest.mark.parametrize(
    ("metric", "answer", "reference", "score"),
    [
        ("exact_match", "The  Cat!", "cat", 1.0),
        ("exact_match", "cats", "cat", 0.0),
        ("token_f1", "a red big dog", "big dog", 2 * 2 / (3 + 2)),  # "a" is no word
        ("token_f1", "dog dog", "dog", 2 * 1 / 3),
        ("rouge_l", "police killed the gunman", "police kill the gunman", 0.75),  # Lin's example: 3 of 4
        ("rouge_l", "the gunman kill police", "police kill the gunman", 0.5),
        ("rouge_l", "Straße größer", "straße GRÖSSER größer", 2 * 2 / 5),
        ("last_number", "12 + 30 = 42.", "The answer is 42", 1.0),
        ("last_number", "it is 1,234", "1234.0", 1.0),
        ("last_number", "none", "3", 0.0),
        ("token_f1", "", "the", 1.0),  # nothing said, and nothing but an article to say
    ],
)
def test_hand_worked(metric: str, answer: str, reference: str, score: float) -> None:
    assert answer_scores(metric, [answer], [[reference]])[0] == pytest.approx(score)


def test_the_best_reference_counts() -> None:
    found = answer_scores("token_f1", ["big dog", "x"], [["cat", "dog", "big dog run"], ["y"]])
    np.testing.assert_allclose(found, [0.8, 0.0])


@pytest.mark.parametrize(("text", "number"), [("7-3", 3), ("is -3", -3), ("1,23", 23), ("v2.50 of 3.", 3), ("x", None)])
def test_last_number(text: str, number: float | None) -> None:
    assert last_number(text) == number


@given(st.text("abc", max_size=12), st.text("abcd", max_size=12))
def test_common_subsequence_is_the_recursion(first: str, second: str) -> None:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, left in enumerate(first):
        for j, right in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if left == right else max(table[i][j + 1], table[i + 1][j])
    assert _common(list(first), list(second)) == table[-1][-1]


def test_wrong_input() -> None:
    with pytest.raises(SettingError, match="rouge_l"):
        answer_scores("rouge", ["a"], [["a"]])
    with pytest.raises(DataError, match="Row 1"):
        answer_scores("rouge_l", ["a", "b"], [["a"], []])
