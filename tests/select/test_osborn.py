"""OSBORN: hand-worked entropies, POT's transport, diminishing gains, greedy choice."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ontarget.errors import DataError, SettingError
from ontarget.select.osborn import Terms, cohesions, conditional_entropy, osborn, score, terms, transport


def test_conditional_entropy():
    assert conditional_entropy(np.array([[2.0, 0], [0, 6.0]])) == 0.0
    assert conditional_entropy(np.ones((4, 3))) == pytest.approx(np.log(4))
    # Column 0 (half of the mass): 1/2, 1/2; column 1: certain.
    assert conditional_entropy(np.array([[0.25, 0.5], [0.25, 0.0]])) == pytest.approx(0.5 * np.log(2))


def test_cohesion_is_no_symmetric_measure():
    found = cohesions([np.array([0, 0, 1, 1]), np.array([0, 1, 2, 3])])
    assert found == pytest.approx(np.array([[0, 0], [np.log(2), 0]]))
    with pytest.raises(DataError, match="different numbers"):
        cohesions([np.zeros(3), np.zeros(4)])


def test_terms_without_source_rows():
    found = terms("a", np.zeros((4, 2)), np.array([0, 0, 1, 1]), np.array([5, 5, 7, 5]))
    assert found.domain == 0.0
    assert found.task == pytest.approx(0.5 * np.log(2))
    assert "W_D is 0" in found.notes[0]


def test_transport():
    pytest.importorskip("ot")
    random = np.random.default_rng(0)
    rows = random.normal(size=(30, 8)) + 3
    same, plan = transport(rows, rows, regularisation=0.01)
    far, _ = transport(rows, -rows, regularisation=0.01)
    assert plan.sum() == pytest.approx(1)
    assert plan.sum(axis=0) == pytest.approx(np.full(30, 1 / 30), abs=1e-6)
    assert 0 <= same < 0.05 < far <= 4
    assert transport(5 * rows, rows, regularisation=0.01)[0] == pytest.approx(same)  # rows are scaled to unit length
    with pytest.raises(DataError, match="row 3"):
        transport(np.where(np.arange(30)[:, None] == 3, 0.0, rows), rows)


def test_terms_with_source_rows():
    pytest.importorskip("ot")
    random = np.random.default_rng(0)
    centres = 4 * random.normal(size=(3, 6))
    labels = np.arange(60) % 3
    target, source = (centres[labels] + 0.1 * random.normal(size=(60, 6)) for _ in range(2))
    found = terms("near", target, labels, labels, source_features=source, source_labels=labels, regularisation=0.02)
    shuffled = terms(
        "shuffled", target, labels, labels, source_features=source, source_labels=random.permutation(labels)
    )
    assert found.task < 0.05 < shuffled.task
    with pytest.raises(DataError, match="source labels"):
        terms("a", target, labels, labels, source_features=source[:10], source_labels=labels)


def pool(seed, size=6, rows=40):
    random = np.random.default_rng(seed)
    return [
        Terms(f"s{at}", float(random.random()), float(random.random()), random.integers(0, 4, rows))
        for at in range(size)
    ]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000))
def test_gains_diminish(seed):
    sources = pool(seed)
    names = [source.name for source in sources]
    for small, large in (([], names[:1]), (names[:1], names[:3]), (names[:2], names[:4])):
        gain = [score(sources, part) - score(sources, [*part, "s5"]) for part in (small, large)]
        assert gain[0] >= gain[1] - 1e-12


def test_greedy_choice():
    sources = pool(3)
    found = osborn(sources, size=3)
    first = min(sources, key=lambda source: source.domain + source.task)
    assert found.chosen[0] == first.name
    pair = min(
        (name for name in (s.name for s in sources) if name != first.name),
        key=lambda n: score(sources, [first.name, n]),
    )
    assert found.chosen[1] == pair
    assert found.score == pytest.approx(score(sources, found.chosen))
    assert found.score == pytest.approx(-sum(found.gains))
    best = min(score(sources, names) for names in itertools.combinations([s.name for s in sources], 3))
    assert best <= found.score <= best + 1.0


def test_normalised_terms():
    many, few = np.arange(8) % 4, np.arange(8) % 2
    sources = [Terms("many", 3.0, np.log(4), many), Terms("few", 0.1, np.log(2), few)]
    # Ranks 1 and 0; entropies over log 4 and log 2. few is known from many; many is one of two, given few.
    assert score(sources, ["many"], normalised=True) == pytest.approx(2)
    assert score(sources, ["few"], normalised=True) == pytest.approx(1)
    assert score(sources, ["many", "few"], normalised=True) == pytest.approx(3 + np.log(2) / np.log(4))
    assert score(sources, ["many", "few"]) == pytest.approx(3.1 + np.log(8) + np.log(2))
    assert osborn(sources, size=1, normalised=True).chosen == ("few",)


def test_errors():
    with pytest.raises(SettingError, match="size is 7"):
        osborn(pool(0), size=7)
    with pytest.raises(SettingError, match="same name"):
        osborn([*pool(0), pool(0)[0]], size=2)
    pytest.importorskip("ot")
    with pytest.raises(SettingError, match="regularisation"):
        transport(np.eye(3), np.eye(3), regularisation=0.0)
