"""The weighted mean of checkpoints, each tensor by itself ("model soup").

Wortsman et al., "Model soups", ICML 2022, arXiv 2203.05482; as mergekit's "linear".
Checked: tests/merge/test_rules.py. theta = sum_t w_t theta_t / sum_t w_t, or without the division.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ontarget.errors import SettingError
from ontarget.merge._contract import Range, Rule, Settings, merge_tensors


def average(models: Sequence[Tensor], *, weights: Sequence[float], normalize: bool = True) -> Tensor:
    """float32, of the tensors' shape. normalize: divide by the sum of the weights. Raises SettingError: it is 0."""
    return merge_tensors(RULE, None, models, weights=weights, settings={"normalize": normalize})


def _combine(base: Tensor | None, values: Tensor, weights: Tensor, settings: Settings) -> Tensor:
    merged = torch.mv(values.T, weights)
    if settings["normalize"]:
        total = float(weights.sum())
        if abs(total) < 1e-8:
            raise SettingError(f"The weights add up to {total:g}.", allowed="another sum than 0", option="weight")
        merged = merged / total
    return merged


RULE = Rule(needs_base=False, combine=_combine, of_all={"normalize": Range(True)})
