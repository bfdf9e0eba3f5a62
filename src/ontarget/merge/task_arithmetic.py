"""Task arithmetic: the base plus a weighted sum of task vectors, the differences of fine-tuned models from it.

Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023, arXiv 2212.04089; as mergekit's "task_arithmetic".
Checked: tests/merge/test_rules.py. theta = theta_0 + lambda sum_t w_t (theta_t - theta_0)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ontarget.merge._contract import Range, Rule, Settings, merge_tensors
from ontarget.merge.average import weighted_sum
from ontarget.values import Array

if TYPE_CHECKING:
    from torch import Tensor

SUM = {"normalize": Range(False), "lambda": Range(1.0)}


def task_arithmetic(
    base: Tensor, models: Sequence[Tensor], *, weights: Sequence[float], normalize: bool = False, scale: float = 1.0
) -> Tensor:
    """float32, of the tensors' shape. normalize: divide the sum by that of the weights. scale: lambda."""
    return merge_tensors(RULE, base, models, weights=weights, settings={"normalize": normalize, "lambda": scale})


def summed(base: Array | None, values: list[Array], weights: Sequence[float], settings: Settings) -> Array:
    """theta_0 + lambda sum_t w_t tau_t; the values are overwritten."""
    assert base is not None
    factor = float(settings["lambda"])
    if settings["normalize"] and abs(sum(weights)) >= 1e-8:
        factor /= sum(weights)
    merged = weighted_sum(values, weights)
    if factor != 1:
        merged *= np.float32(factor)
    merged += base
    return merged


RULE = Rule(needs_base=True, combine=summed, of_all=SUM)
