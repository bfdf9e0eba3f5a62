"""Task arithmetic: the base plus a weighted sum of task vectors, the differences of fine-tuned models from it.

Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023, arXiv 2212.04089; as mergekit's "task_arithmetic".
Checked: tests/merge/test_rules.py. theta = theta_0 + lambda sum_t w_t (theta_t - theta_0)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ontarget.merge._contract import Range, Rule, Settings, merge_tensors

SUM = {"normalize": Range(False), "lambda": Range(1.0)}


def task_arithmetic(
    base: Tensor, models: Sequence[Tensor], *, weights: Sequence[float], normalize: bool = False, scale: float = 1.0
) -> Tensor:
    """float32, of the tensors' shape. normalize: divide the sum by that of the weights. scale: lambda."""
    return merge_tensors(RULE, base, models, weights=weights, settings={"normalize": normalize, "lambda": scale})


def summed(base: Tensor | None, values: Tensor, weights: Tensor, settings: Settings) -> Tensor:
    """theta_0 + lambda sum_t w_t tau_t."""
    assert base is not None
    total = float(weights.sum())
    merged = torch.mv(values.T, weights)
    if settings["normalize"] and abs(total) >= 1e-8:
        merged = merged / total
    return base + float(settings["lambda"]) * merged


RULE = Rule(needs_base=True, combine=summed, of_all=SUM)
