"""Splits are a partition, keep the shares of classes, and never part a group or equal inputs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ontarget.data.problems import Rows
from ontarget.data.split import hold_out, is_few, make_folds, read_splits, strata_of, units_of

strata_lists = st.lists(st.integers(0, 4), min_size=1, max_size=120)
fractions = st.floats(0.05, 0.6)


def compact(values):
    return np.unique(np.array(values), return_inverse=True)[1].astype(np.int64)


@given(strata_lists, fractions, st.integers(0, 5))
def test_single_rows_are_held_out_in_equal_shares(values, fraction, seed):
    strata = compact(values)
    held = hold_out(strata, np.arange(len(strata)), fraction, seed=seed, keep=2)
    for stratum, size in enumerate(np.bincount(strata)):
        taken = int(held[strata == stratum].sum())
        assert size - taken >= min(size, 2)
        share = fraction * size
        assert taken <= np.ceil(share) or taken == 1
        assert taken >= min(np.floor(share), max(size - 2, 0))
        if size > 2:
            assert taken >= 1
    np.testing.assert_array_equal(held, hold_out(strata, np.arange(len(strata)), fraction, seed=seed, keep=2))


@given(st.integers(10, 400), fractions, st.integers(0, 5))
def test_without_a_reserve_the_total_is_the_rounded_share(count, fraction, seed):
    strata = np.arange(count) % 7
    held = hold_out(strata, np.arange(count), fraction, seed=seed, keep=0)
    assert abs(held.sum() - count * fraction) <= 0.5 + 1e-9


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 15)), min_size=2, max_size=100), fractions, st.integers(0, 3)
)
def test_units_are_never_parted(rows, fraction, seed):
    strata, units = compact([row[0] for row in rows]), compact([row[1] for row in rows])
    held = hold_out(strata, units, fraction, seed=seed, keep=2)
    folds = make_folds(strata, units, seed=seed)
    for unit in np.unique(units):
        assert len(set(held[units == unit])) == 1
        assert len(set(folds[units == unit])) == 1
    for stratum, size in enumerate(np.bincount(strata)):
        assert (~held[strata == stratum]).sum() >= min(size, 2)


def test_large_units_do_not_always_go_to_the_same_side():
    units = np.concatenate([np.repeat(np.arange(10), 10), 10 + np.arange(100)])
    strata = np.zeros(200, dtype=np.int64)
    share = np.mean([hold_out(strata, units, 0.2, seed=seed)[:100].mean() for seed in range(200)])
    assert 0.15 < share < 0.25


def test_the_seed_changes_the_split():
    strata, units = np.arange(200) % 2, np.arange(200)
    assert (hold_out(strata, units, 0.2, seed=0) != hold_out(strata, units, 0.2, seed=1)).any()


def test_where_every_unit_is_too_large_the_smallest_is_held():
    strata = np.array([0, 1] * 10)
    units = np.array([0] * 12 + [1] * 8)
    np.testing.assert_array_equal(hold_out(strata, units, 0.1, seed=0), units == 1)
    assert not hold_out(strata, np.zeros(20, dtype=np.int64), 0.1, seed=0).any()


@given(strata_lists, st.integers(0, 5))
def test_folds_are_stratified_within_one_row(values, seed):
    strata = compact(values)
    folds = make_folds(strata, np.arange(len(strata)), seed=seed)
    sizes = np.bincount(strata)
    count = max(2, min(5, sizes.min()))
    assert folds.min() >= 0
    assert folds.max() < count
    for stratum in range(len(sizes)):
        per_fold = np.bincount(folds[strata == stratum], minlength=count)
        assert per_fold.max() - per_fold.min() <= 1
    np.testing.assert_array_equal(folds, make_folds(strata, np.arange(len(strata)), seed=seed))


def test_folds_are_balanced_over_classes_too():
    strata = np.repeat(np.arange(10), 8)  # 8 rows of 10 classes in 5 folds: 16 rows each
    assert np.bincount(make_folds(strata, np.arange(80), seed=0)).tolist() == [16] * 5


def test_units_join_groups_that_share_an_input():
    codes = np.array([0, 1, 2, 2, 3, 4, 5])
    groups = ["a", "a", "b", "c", "d", None, ""]
    units = units_of(codes, groups)
    assert units[0] == units[1]  # one group
    assert units[2] == units[3]  # one input in two groups
    assert len({units[0], units[2], units[4], units[5], units[6]}) == 5
    assert units_of(codes, None).tolist() == [0, 1, 2, 2, 3, 4, 5]


def test_strata_of_a_regression_are_tenths_of_the_order():
    values = np.random.default_rng(0).normal(size=100)
    strata = strata_of(values, "regression")
    assert np.bincount(strata).tolist() == [10] * 10
    assert values[strata == 3].max() < values[strata == 4].min()


def test_names_of_splits():
    rows, problems = Rows(("t.csv",), (9,)), []
    column = pd.Series(["train", "Val", "valid", "dev", "validation", " TEST ", "train", None, ""])
    labelled = np.array([True] * 7 + [False] * 2)
    splits = read_splits(column, "split", labelled, rows, 0, problems)
    assert splits.tolist() == ["train", *["validation"] * 4, "test", "train", "train", "train"]
    assert not problems
    read_splits(pd.Series(["train", "tset", None]), "split", np.ones(3, bool), Rows(("t",), (3,)), 0, problems)
    assert "'tset'" in problems[0]
    assert "row 1, 2" in problems[0]
    read_splits(pd.Series(["test"]), "split", np.ones(1, bool), Rows(("t",), (1,)), 0, problems)
    assert "no train rows" in problems[1]


@pytest.mark.parametrize(
    ("rows", "classes", "few"), [(299, 2, True), (300, 2, False), (399, 10, True), (400, 10, False)]
)
def test_few(rows, classes, few):
    assert is_few(rows, classes) is few
