"""A plain BERT encoder with a mean-pooled head, whose layers may each have heads and widths of their own.

What a slice of a pretrained BERT needs (`search.elastic_bert`): fewer layers, heads and neurons than the model that it
comes from, at that model's hidden size. Attention and feed-forward as in Devlin et al., arXiv 1810.04805. In an ONNX
graph attention is ONNX Runtime's operator. Nothing here knows about search.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ontarget.errors import SettingError


class Embeddings(nn.Module):
    """input_ids int64 (N, T) -> (N, T, D): word and position vectors, normalised."""

    def __init__(self, vocabulary: int, positions: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.zeros(positions, width))
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, input_ids: Tensor) -> Tensor:
        result: Tensor = self.norm(self.words(input_ids) + self.positions[: input_ids.shape[1]])
        return result


class _FusedAttention(torch.autograd.Function):
    """Attention of all heads from their joint projection; in a graph, com.microsoft.Attention."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, mask: Tensor, heads: int) -> Tensor:
        """hidden (N, T, D), weight (D, 3 H d), bias (3 H d,), mask int32 (N, T) -> (N, T, H d)."""
        return mixed(F.linear(hidden, weight.t(), bias), mask, heads)

    @staticmethod
    def symbolic(g: Any, hidden: Any, weight: Any, bias: Any, mask: Any, heads: int) -> Any:
        width = bias.type().sizes()[0] // 3
        return g.op(
            "com.microsoft::Attention", hidden, weight, bias, mask, num_heads_i=heads,
            qkv_hidden_sizes_i=[width, width, width],
        ).setType(hidden.type().with_sizes([*hidden.type().sizes()[:-1], width]))  # fmt: skip


def mixed(joint: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Joint query, key and value (N, T, 3 H d) and mask (N, T) -> (N, T, H d); scores are scaled by 1 / sqrt(d)."""
    rows, length, width = joint.shape[0], joint.shape[1], joint.shape[2] // 3
    parts = joint.split(width, dim=-1)  # type: ignore[no-untyped-call]
    query, key, value = (part.view(rows, length, heads, width // heads).transpose(1, 2) for part in parts)
    result = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :].bool())
    return result.transpose(1, 2).reshape(rows, length, width)


class Attention(nn.Module):
    """Self-attention of H heads of d numbers each, shortcut and normalisation: (N, T, D), mask (N, T) -> (N, T, D)."""

    onnxruntime_operators = True

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.joint = nn.Linear(width, 3 * heads * head_width)
        self.output = nn.Linear(heads * head_width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            attended: Any = _FusedAttention.apply(  # type: ignore[no-untyped-call]
                hidden, self.joint.weight.t(), self.joint.bias, mask.to(torch.int32), self.heads
            )
        else:
            attended = mixed(self.joint(hidden), mask, self.heads)
        result: Tensor = self.norm(self.output(attended) + hidden)
        return result


class FeedForward(nn.Module):
    """Two linear layers around GELU, shortcut and normalisation: (N, T, D) -> (N, T, D)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.norm(self.outer(F.gelu(self.inner(hidden))) + hidden)
        return result


class MeanHead(nn.Module):
    """(N, T, D), mask (N, T) -> scores (N, C): mean over the tokens that are no padding, linear."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            pooled = hidden.mean(1)
        else:
            weight = mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)
        scores: Tensor = self.linear(pooled)
        return scores


class SlimBert(nn.Module):
    """input_ids, attention_mask int64 (N, T) -> scores (N, C).

    config: ``vocabulary``, ``positions``, ``width``, ``head_width``, ``outputs``, and ``layers``, a list of {heads,
    hidden}. Raises SettingError for a config without one of them.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        for name in ("vocabulary", "positions", "width", "head_width", "outputs", "layers"):
            if name not in config:
                raise SettingError(f"The network's config has no '{name}'.", option="config")
        width = config["width"]
        self.embeddings = Embeddings(config["vocabulary"], config["positions"], width)
        self.attentions = nn.ModuleList(
            Attention(width, layer["heads"], config["head_width"]) for layer in config["layers"]
        )
        self.feed_forwards = nn.ModuleList(FeedForward(width, layer["hidden"]) for layer in config["layers"])
        self.head = MeanHead(width, config["outputs"])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.embeddings(input_ids)
        for attention, feed_forward in zip(self.attentions, self.feed_forwards, strict=True):
            hidden = feed_forward(attention(hidden, attention_mask))
        scores: Tensor = self.head(hidden, attention_mask)
        return scores
