"""The blend's weights against a grid and least squares; the network against the sum; no row judges its own weights."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ontarget.adapt.tune.tfidf_blend import (
    PRIOR_ROWS,
    TfidfBlend,
    blend_weights,
    blended,
    cross_fitted_scores,
    joined_preprocess,
)
from ontarget.errors import DataError
from ontarget.runtime.preprocess import Preprocess


def held_out(seed: int, rows: int = 80) -> tuple[list[np.ndarray], np.ndarray]:
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, 3, rows)
    clue = np.eye(3)[targets]
    return [clue * scale + generator.normal(size=(rows, 3)) for scale in (1.5, 1.0)], targets


def objective(parts: list[np.ndarray], targets: np.ndarray, weights: tuple[float, ...]) -> float:
    mixed = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    likelihood = torch.log_softmax(torch.from_numpy(mixed), 1)[torch.arange(len(targets)), torch.from_numpy(targets)]
    return float(-likelihood.sum()) + PRIOR_ROWS * sum((weight - 0.5) ** 2 for weight in weights)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_weights_of_classes_are_the_best_of_a_grid(seed: int) -> None:
    parts, targets = held_out(seed)
    weights = blend_weights(parts, targets, kind="classification")
    assert (weights >= 0).all()
    grid = np.linspace(0, 3, 31)
    best = min(objective(parts, targets, pair) for pair in itertools.product(grid, grid))
    assert objective(parts, targets, tuple(weights)) <= best + 1e-6


def test_a_part_that_says_the_opposite_gets_no_weight() -> None:
    parts, targets = held_out(0)
    weights = blend_weights([parts[0], -parts[1]], targets, kind="classification")
    assert weights[0] > 0 and weights[1] == 0


def test_weights_of_numbers_sum_to_one_and_are_least_squares() -> None:
    generator = np.random.default_rng(1)
    targets = generator.normal(100, 5, 60)
    parts = [(targets + generator.normal(0, spread, 60))[:, None] for spread in (1.0, 2.0)]
    weights = blend_weights(parts, targets, kind="regression")
    difference = (parts[0] - parts[1])[:, 0]
    first = float(difference @ (targets - parts[1][:, 0]) / (difference @ difference))
    assert weights == pytest.approx([first, 1 - first], abs=1e-4)
    assert weights.sum() == pytest.approx(1)


def test_no_row_has_a_say_in_its_own_weights() -> None:
    parts, targets = held_out(2, 40)
    scores = cross_fitted_scores(parts, targets, kind="classification", seed=0)
    changed = targets.copy()
    changed[7] = (changed[7] + 1) % 3
    again = cross_fitted_scores(parts, changed, kind="classification", seed=0)
    assert np.array_equal(scores[7], again[7])
    assert not np.array_equal(scores, again)


def test_scores_must_fit_the_rows() -> None:
    parts, targets = held_out(3)
    with pytest.raises(DataError, match="same shape"):
        blend_weights([parts[0], parts[1][:5]], targets, kind="classification")
    with pytest.raises(DataError, match="2 rows"):
        cross_fitted_scores([part[:1] for part in parts], targets[:1], kind="classification", seed=0)


def test_the_network_is_the_weighted_sum() -> None:
    class Mean(torch.nn.Module):
        def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            return torch.stack([(first * second).float().sum(1), first.float().sum(1)], 1)

    ids, mask = torch.tensor([[1, 2], [3, 0]]), torch.tensor([[1, 1], [1, 0]])
    indices, values = torch.tensor([[4], [5]]), torch.tensor([[0.5], [1.0]])
    found = TfidfBlend(Mean(), Mean(), [0.25, 2.0])(ids, mask, indices, values)
    parts = [Mean()(ids, mask).numpy(), Mean()(indices, values).numpy()]
    np.testing.assert_allclose(found.numpy(), blended(parts, np.array([0.25, 2.0])))


def test_both_preprocessings_run_in_one_pass() -> None:
    from ontarget.adapt.tune.tfidf_linear import tfidf_linear

    texts = ["red apple pie", "green apple", "red car", "green car engine"]
    tfidf = tfidf_linear(
        texts, np.array([0, 0, 1, 1]), outputs=2, kind="classification", metric="accuracy", folds=np.array([0, 1, 0, 1])
    ).preprocess
    from ontarget.pool import load, resolve

    tokens = load(resolve("zoo:minilm")).preprocess
    joined = joined_preprocess(tokens, tfidf)
    assert joined.takes_texts and not Preprocess("array", {"dim": 1}).takes_texts
    found = joined(texts)
    assert tuple(found) == joined.tensor_names
    for name, value in {**tokens(texts), **tfidf(texts)}.items():
        assert np.array_equal(found[name], value)
