"""TIES: trim small entries of task vectors, elect a sign for each parameter, average those that agree with it.

Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", NeurIPS 2023, arXiv 2306.01708; as mergekit's
"ties", which trims each tensor by itself.
Checked: tests/merge/test_rules.py. gamma = sgn(sum_t w_t tau_t); tau = mean by weight of the w_t tau_t of that sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ontarget.merge._contract import Range, Rule, Settings, merge_tensors
from ontarget.values import Array

if TYPE_CHECKING:
    from torch import Tensor


def ties(
    base: Tensor,
    models: Sequence[Tensor],
    *,
    weights: Sequence[float],
    density: float = 0.2,
    normalize: bool = True,
    scale: float = 1.0,
) -> Tensor:
    """float32, of the tensors' shape. density: the share of a task vector that is kept. scale: lambda."""
    settings = {"density": density, "normalize": normalize, "lambda": scale}
    return merge_tensors(RULE, base, models, weights=weights, settings=settings)


def elected(base: Array | None, values: list[Array], weights: Sequence[float], settings: Settings) -> Array:
    """theta_0 + lambda times what agrees with the elected sign; a sum of 0 counts as positive."""
    assert base is not None
    for value, weight in zip(values, weights, strict=True):
        value *= np.float32(weight)
    total = values[0].copy()
    for value in values[1:]:
        total += value
    positive = total >= 0
    merged, divisor = np.zeros_like(total), np.zeros_like(total)
    for value, weight in zip(values, weights, strict=True):
        agreeing = np.where(positive, value > 0, value < 0)
        merged += value * agreeing
        divisor += np.float32(weight) * agreeing
    if settings["normalize"]:
        merged /= np.where(divisor == 0, np.float32(1), divisor)
    merged *= np.float32(settings["lambda"])
    merged += base
    return merged


def window(count: int, settings: Settings) -> tuple[int, int] | None:
    """The largest ones; a tensor without one entry to keep is left whole (choice)."""
    kept = int(float(settings["density"]) * count)
    return None if kept == 0 else (count - kept, count)


RULE = Rule(
    needs_base=True, combine=elected, window=window, earlier_first=True,
    of_model={"density": Range(0.2, 0, 1, open_low=True)}, of_all={"normalize": Range(True), "lambda": Range(1.0)},
)  # fmt: skip
