"""Similarity of tasks by their prompts: hand-worked values, what does not matter, bad input."""

import numpy as np
import pytest

from ontarget.errors import DataError, SettingError
from ontarget.select.prompt_transfer import neuron_overlap, prompt_cosine, prompt_transfer


def test_prompt_transfer():
    none = np.array([[1.0, 1.0], [0.0, 2.0]])
    target = none + np.array([[1.0, 0.0], [0.0, 1.0]])
    assert prompt_transfer(target, target, none) == pytest.approx(1.0)
    assert prompt_transfer(none + np.array([[1.0, 1.0], [0.0, 3.0]]), target, none) == pytest.approx((1 + 0.5**0.5) / 2)
    assert prompt_transfer(none - (target - none), target, none) == 0.0  # cut off
    assert prompt_transfer(none, target, none) == 0.0  # a prompt that moves nothing
    scaled = none + 7 * (target - none)
    assert prompt_transfer(scaled, target, none) == pytest.approx(1.0)


def test_prompt_cosine():
    assert prompt_cosine(np.array([[1.0, 0], [3.0, 0]]), np.array([[2.0, 0]])) == pytest.approx(1.0)
    assert prompt_cosine(np.eye(2), np.array([[1.0, -1.0]])) == pytest.approx(0.0)
    with pytest.raises(DataError, match="width"):
        prompt_cosine(np.eye(2), np.eye(3))


def test_neuron_overlap():
    assert neuron_overlap(np.array([1.0, -1, 2, 0]), np.array([3.0, 1, -1, 0])) == pytest.approx(0.5)
    assert neuron_overlap(np.ones((2, 3)), np.ones((2, 3))) == pytest.approx(1.0)
    assert neuron_overlap(np.array([4.0, 3, 2, 1]), np.array([1.0, 4, 3, 2]), share=0.5) == pytest.approx(0.5)
    assert neuron_overlap(-np.ones(3), np.ones(3)) == 0.0
    with pytest.raises(SettingError, match="share"):
        neuron_overlap(np.ones(3), np.ones(3), share=0.0)


def test_bad_input():
    with pytest.raises(DataError, match="Shapes"):
        prompt_transfer(np.eye(2), np.eye(2), np.eye(3))
    with pytest.raises(DataError, match="NaN"):
        prompt_transfer(np.eye(2) * np.nan, np.eye(2), np.eye(2))
