"""WordLlama: one vector a token, averaged. The cheapest text encoder of the zoo.

Miller, "WordLlama", 2024 (github.com/dleemiller/WordLlama): token embeddings distilled from language models.
The package's own loader wants to download a tokenizer; weights and tokenizer are read from its folder instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ontarget.pool.source import Source
from ontarget.pool.text_encoders import package_folder
from ontarget.runtime.preprocess import Preprocess
from ontarget.values import Loaded


class MeanOfTokens(torch.nn.Module):
    """input_ids, attention_mask int64 (N, T) -> (N, D): the mean embedding of the tokens that are no padding."""

    def __init__(self, embedding: Tensor) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(embedding.shape[0], embedding.shape[1], _weight=embedding)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        weight = attention_mask.unsqueeze(-1).to(torch.float32)
        mean: Tensor = (self.embedding(input_ids) * weight).sum(1) / weight.sum(1).clamp(min=1)
        return mean


def load_wordllama(source: Source, max_length: int) -> Loaded:
    """The 256-dimensional table (32,000 tokens) and its tokenizer, without special tokens."""
    import json

    from safetensors.torch import load_file

    folder = package_folder(source.package)
    embedding = load_file(folder / "weights" / "l2_supercat_256.safetensors")["embedding.weight"].float()
    tokenizer = json.loads((folder / "tokenizers" / "l2_supercat_tokenizer_config.json").read_text())
    tokenizer["post_processor"] = None  # WordLlama averages the words alone
    files = {"tokenizer.json": json.dumps(tokenizer).encode()}
    preprocess = Preprocess("tokens", {"max_length": max_length, "pad_id": 0}, files)
    return Loaded(source.locator, preprocess, MeanOfTokens(embedding).eval(), int(embedding.shape[1]))
