"""The constant prediction: the floor under every other model."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ontarget.adapt.tune.held_out import check_targets
from ontarget.errors import DataError
from ontarget.values import Array


class Constant(torch.nn.Module):
    """Any tensors with N rows -> the same scores for each row: (N, C)."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = torch.nn.Parameter(scores)

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.scores.expand(tensors[0].shape[0], -1)


def majority(targets: Array, *, outputs: int, kind: Literal["classification", "regression"]) -> Constant:
    """Log of the class shares (C,), each class counted half a row more, or the mean target (1,).

    Raises DataError: no rows, or targets that are no classes in 0..outputs-1 or not finite.
    """
    if len(targets) == 0:
        raise DataError("A constant prediction needs one target at least.")
    targets = check_targets(targets, outputs=outputs, kind=kind)
    if kind == "regression":
        return Constant(torch.tensor([targets.mean()], dtype=torch.float32)).eval()
    counts = np.bincount(targets, minlength=outputs) + 0.5
    return Constant(torch.from_numpy(np.log(counts / counts.sum()).astype(np.float32))).eval()
