"""A source's encoder and a head, as one network."""

from __future__ import annotations

import torch
from torch import Tensor


class Assembled(torch.nn.Module):
    """Encoder, then head: the preprocessing's tensors in, scores (N, C) or (N, 1) out."""

    def __init__(self, encoder: torch.nn.Module, head: torch.nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, *tensors: Tensor) -> Tensor:
        scores: Tensor = self.head(self.encoder(*tensors))
        return scores
