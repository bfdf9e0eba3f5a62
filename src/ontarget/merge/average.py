"""The weighted mean of checkpoints, each tensor by itself ("model soup").

Wortsman et al., "Model soups", ICML 2022, arXiv 2203.05482; as mergekit's "linear".
Checked: tests/merge/test_rules.py. theta = sum_t w_t theta_t / sum_t w_t, or without the division.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ontarget.errors import SettingError
from ontarget.merge._contract import Range, Rule, Settings, merge_tensors
from ontarget.values import Array

if TYPE_CHECKING:
    from torch import Tensor


def average(models: Sequence[Tensor], *, weights: Sequence[float], normalize: bool = True) -> Tensor:
    """float32, of the tensors' shape. normalize: divide by the sum of the weights. Raises SettingError: it is 0."""
    return merge_tensors(RULE, None, models, weights=weights, settings={"normalize": normalize})


def _combine(base: Array | None, values: list[Array], weights: Sequence[float], settings: Settings) -> Array:
    merged = weighted_sum(values, weights)
    if settings["normalize"]:
        total = sum(weights)
        if abs(total) < 1e-8:
            raise SettingError(f"The weights add up to {total:g}.", allowed="another sum than 0", option="weight")
        merged /= np.float32(total)
    return merged


def weighted_sum(values: list[Array], weights: Sequence[float]) -> Array:
    """sum_t w_t v_t, (n,) float32; the values are overwritten."""
    for value, weight in zip(values, weights, strict=True):
        value *= np.float32(weight)
    merged = values[0]
    for value in values[1:]:
        merged += value
    return merged


RULE = Rule(needs_base=False, combine=_combine, of_all={"normalize": Range(True)})
