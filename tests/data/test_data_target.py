"""The target column: kind, classes, unlabelled rows, and mistakes with their rows."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from ontarget.data.problems import Rows
from ontarget.data.targets import encode_targets, natural_key


def encode(values, kind=None):
    column = values if isinstance(values, pd.Series) else pd.Series(values, dtype=object)
    problems: list[str] = []
    targets = encode_targets(column, "y", kind, Rows(("t.csv",), (len(column),)), problems)
    return targets, problems


@pytest.mark.parametrize(
    ("values", "kind", "classes"),
    [
        (["b", "a", "b"], "classification", ("a", "b")),
        ([True, False, True], "classification", ("False", "True")),
        ([0, 1, 0, 1], "classification", ("0", "1")),
        ([0.0, 1.0, 0.0, None], "classification", ("0", "1")),
        (["10", "9", "10", "9"], "classification", ("9", "10")),
        (["1.0", "2", "1", "2.0"], "classification", ("1", "2")),
        (["007", "07", "007", "07"], "classification", ("007", "07")),
        (["class10", "class9"], "classification", ("class9", "class10")),
        ([-1, 1, -1, 1], "classification", ("-1", "1")),
        ([1, 2, 3, 4], "regression", ()),  # every number once
        ([0.5, 1.0, 0.5, 1.0], "regression", ()),
        (list(range(21)) * 5, "regression", ()),  # more than 20 whole numbers
        (list(range(20)) * 5, "classification", tuple(map(str, range(20)))),
        (["1e-3", "2.5", ".5"], "regression", ()),
        ([Decimal("1.5"), Decimal("2.5")], "regression", ()),
    ],
)
def test_kind_and_classes(values, kind, classes):
    targets, problems = encode(values)
    assert problems == []
    assert (targets.kind, targets.classes) == (kind, classes)


def test_the_user_overrides_the_kind():
    targets, _ = encode(["1", "2", "1", "2"], "regression")
    assert targets.kind == "regression"
    np.testing.assert_array_equal(targets.values, [1.0, 2.0, 1.0, 2.0])
    assert encode([0.5, 1.5], "classification")[0].classes == ("0.5", "1.5")
    assert encode(["1.10", "1.1"], "classification")[0].classes == ("1.1", "1.10")
    assert encode([True, False], "regression")[0].values.tolist() == [1.0, 0.0]
    assert encode(["a", "3", "nan"], "classification")[0].classes == ("3", "a", "nan")


def test_empty_cells_are_unlabelled_rows():
    for values in (["a", "", None, " ", "b", float("nan"), "a"], [0, None, float("nan"), pd.NA, 1, None, 0]):
        targets, problems = encode(values)
        assert problems == []
        assert targets.labelled.tolist() == [True, False, False, False, True, False, True]
        assert targets.values.tolist() == [0, -1, -1, -1, 1, -1, 0]
    targets, _ = encode(pd.Series([1.5, np.nan, 2.5]))
    assert targets.labelled.tolist() == [True, False, True]
    targets, _ = encode(pd.Series(["x", None, "y"], dtype="category"))
    assert targets.classes == ("x", "y")


@pytest.mark.parametrize(
    ("values", "kind", "words"),
    [
        (["1.5", "nan", "2.5"], None, ["nan", "row 1"]),
        (["1.5", "2.5", "-inf"], "regression", ["row 2"]),
        ([1.5, float("inf"), 2.5], None, ["infinite", "row 1"]),
        (["1.5", "oops", "2.5"], "regression", ["'oops'", "row 1"]),
        (["a", "b", "3", "a"], None, ["mixes", "row 2", "classification"]),
        (["a", "b", 3, "a"], None, ["mixes types", "row 2", "3 text, 1 number"]),
        (["a", True, "a"], "classification", ["mixes types", "row 1"]),
        ([[1], [2]], None, ["list"]),
        ([pd.Timestamp("2020-01-01")] * 2, None, ["Timestamp"]),
        ([None, "", float("nan")], None, ["every row", "empty"]),
        (["a", "b"], "regression", ["'a'", "no numbers"]),
    ],
)
def test_mistakes_name_their_rows(values, kind, words):
    _, problems = encode(values, kind)
    assert len(problems) == 1
    for word in words:
        assert word in problems[0]


def test_doubtful_readings_are_told():
    assert "whole numbers" in encode(list(range(100)))[0].warnings[0]
    warnings = encode(["pos", "Pos ", "none"])[0].warnings
    assert any("case or spaces" in text for text in warnings)
    assert any("'none'" in text for text in warnings)


def test_natural_order():
    names = ["b10", "b9", "10", "9", "-1", "a", "1.5", "b9a"]
    assert sorted(names, key=natural_key) == ["-1", "1.5", "9", "10", "a", "b9", "b9a", "b10"]
