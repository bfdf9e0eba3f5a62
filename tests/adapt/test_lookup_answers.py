import pytest

from ontarget.adapt.lookup_answers import most_frequent_answer, nearest_answers
from ontarget.errors import DataError


def test_most_frequent() -> None:
    assert most_frequent_answer([["b"], ["a"], ["a", "b"], [], ["b"]]) == "b"  # of equals the first
    with pytest.raises(DataError):
        most_frequent_answer([[], []])


def test_nearest() -> None:
    known = ["how tall is the tower", "who wrote the book", "where is the station"]
    found = nearest_answers(
        known, ["high", "her", "there"], ["who wrote this book?", "the towers height", "stations"], block=2
    )
    assert found == ["her", "high", "there"]
    with pytest.raises(DataError):
        nearest_answers([], [], ["a"])
