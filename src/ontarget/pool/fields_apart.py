"""The two text fields of a row through the same encoder, each on its own, and compared.

Reimers, Gurevych, "Sentence-BERT", EMNLP 2019 (arXiv 1908.10084), section 3: features (u, v, |u - v|) of a pair, with
Conneau, Kiela, Schwenk, Barrault, Bordes, "Supervised learning of universal sentence representations", EMNLP 2017
(arXiv 1705.02364) for the product u * v, whose sum is the cosine of vectors of length 1. A linear head sees how two
texts are related, which the embedding of both as one sequence hardly tells without fine-tuning.
Checked: tests/pool/test_fields_apart.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ontarget.runtime.preprocess import Preprocess
from ontarget.values import Loaded

VECTORS = 4  # u, v, |u - v|, u * v


class FieldsApart(torch.nn.Module):
    """input_ids, attention_mask int64 (N, 2, T) -> (N, 4 D) float32 of an encoder (N, T) -> (N, D)."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        features = self.encoder(input_ids.flatten(0, 1), attention_mask.flatten(0, 1))
        first, second = features.view(-1, 2, features.shape[-1]).unbind(1)
        return torch.cat([first, second, (first - second).abs(), first * second], dim=1)


def fields_apart(loaded: Loaded, locator: str) -> Loaded:
    """A text encoder as one of pairs of texts, under the name ``locator``. Its weights are shared, not copied."""
    preprocess = loaded.preprocess
    settings = {**preprocess.settings, "fields_apart": True}
    return Loaded(
        locator, Preprocess(preprocess.kind, settings, preprocess.files), FieldsApart(loaded.encoder).eval(),
        VECTORS * loaded.dim,
    )  # fmt: skip
