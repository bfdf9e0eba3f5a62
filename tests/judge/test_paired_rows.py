import numpy as np
import pytest

from ontarget.judge.paired import sign_flip_test
from ontarget.judge.paired_rows import compare_rows, interval_of_rows, value_of


def test_mean_and_difference() -> None:
    model, baseline = np.array([1.0, 1.0, 0.5, 0.0]), np.array([0.0, 1.0, 0.0, 0.0])
    found = compare_rows("b", "token_f1", model, baseline)
    assert found.value == 0.25
    assert found.difference == pytest.approx(0.375)
    assert found.p_value == sign_flip_test(model - baseline) == 0.5  # two rows differ: 2 of 4 signs reach it
    assert found.difference_low <= found.difference <= found.difference_high


def test_perplexity_is_of_the_mean_loss() -> None:
    rows = -np.log(np.array([2.0, 8.0]))
    assert value_of("neg_perplexity", rows) == pytest.approx(-4.0)  # their geometric mean
    low, high = interval_of_rows("neg_perplexity", np.repeat(rows, 50))
    assert low < -4 < high < 0


def test_intervals_hold_their_promise() -> None:
    """Of intervals of 100 draws of a known mean, about 95% hold it."""
    generator = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        low, high = interval_of_rows("rouge_l", generator.random(60) ** 2, seed=seed)
        held += low <= 1 / 3 <= high
    assert 180 <= held <= 200


def test_models_that_are_alike_are_told_apart_one_time_in_twenty() -> None:
    generator = np.random.default_rng(1)
    rows = generator.random((300, 2, 40))
    found = [compare_rows("b", "rouge_l", a, b).p_value for a, b in rows]
    assert 5 <= sum(p < 0.05 for p in found) <= 28
