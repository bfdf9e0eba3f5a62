"""A plain Llama encoder with a mean-pooled head, whose layers may each have groups of heads and widths of their own.

What a slice of a pretrained Llama needs (`search.elastic_llama`): fewer layers, groups of query heads with their key
and value head, and neurons than the model that it comes from, at that model's hidden size. Touvron et al., arXiv
2302.13971: RMSNorm before each part, rotary positions, SwiGLU; grouped queries: Ainslie et al., arXiv 2305.13245.
Nothing here knows about search.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ontarget.errors import SettingError


class RootMeanSquareNorm(nn.Module):
    """(..., D) -> (..., D): divided by the root of the mean square, times a weight."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(width)), epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.weight * (hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.epsilon))
        return result


class WordEmbeddings(nn.Module):
    """input_ids int64 (N, T) -> (N, T, D)."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)

    def forward(self, input_ids: Tensor) -> Tensor:
        result: Tensor = self.words(input_ids)
        return result


def visible_and_turns(mask: Tensor, head_width: int, base: float) -> tuple[Tensor, Tensor, Tensor]:
    """What every layer's attention needs besides the hidden states, from the mask (N, T).

    visible: bool (N, 1, T, T), earlier tokens that are no padding, and the token itself; cosine and sine (T, d) of the
    rotary positions.
    """
    length = mask.shape[1]
    at = torch.arange(length, device=mask.device)
    earlier, same = at[:, None] >= at[None, :], at[:, None] == at[None, :]
    visible = (earlier & mask[:, None, None, :].bool()) | same  # a row of padding alone must not divide by 0
    rates = base ** (-torch.arange(0, head_width, 2, device=mask.device).float() / head_width)
    angles = at.float()[:, None] * rates[None, :]
    angles = torch.cat([angles, angles], dim=-1)
    return visible, angles.cos(), angles.sin()


def turned(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions on (N, H, T, d): halves of a head are the two coordinates."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cosine + torch.cat([-second, first], dim=-1) * sine


def grouped(joint: Tensor, groups: int, queries: int, context: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Joint query, key and value (N, T, (G Q + 2 G) d) -> (N, T, G Q d), attention of G groups of Q query heads."""
    visible, cosine, sine = context
    rows, length = joint.shape[0], joint.shape[1]
    d = joint.shape[2] // (groups * (queries + 2))
    parts = joint.split([groups * queries * d, groups * d, groups * d], dim=-1)  # type: ignore[no-untyped-call]
    query, key, value = (part.view(rows, length, -1, d).transpose(1, 2) for part in parts)
    query, key = turned(query, cosine, sine), turned(key, cosine, sine)
    key, value = key.repeat_interleave(queries, dim=1), value.repeat_interleave(queries, dim=1)
    result = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
    return result.transpose(1, 2).reshape(rows, length, groups * queries * d)


class GroupedAttention(nn.Module):
    """Norm, causal self-attention of G groups of Q query heads of d numbers, shortcut: (N, T, D) -> (N, T, D)."""

    def __init__(self, width: int, groups: int, queries: int, head_width: int, epsilon: float) -> None:
        super().__init__()
        self.groups, self.queries = groups, queries
        self.norm = RootMeanSquareNorm(width, epsilon)
        self.joint = nn.Linear(width, groups * (queries + 2) * head_width, bias=False)
        self.output = nn.Linear(groups * queries * head_width, width, bias=False)

    def forward(self, hidden: Tensor, visible: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        attended = grouped(self.joint(self.norm(hidden)), self.groups, self.queries, (visible, cosine, sine))
        result: Tensor = self.output(attended) + hidden
        return result


class GatedFeedForward(nn.Module):
    """Norm, two linear layers of which one gates the other through SiLU, a third, shortcut: (N, T, D) -> (N, T, D)."""

    def __init__(self, width: int, hidden: int, epsilon: float) -> None:
        super().__init__()
        self.norm = RootMeanSquareNorm(width, epsilon)
        self.gate, self.inner = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.outer = nn.Linear(hidden, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        normed = self.norm(hidden)
        result: Tensor = self.outer(F.silu(self.gate(normed)) * self.inner(normed)) + hidden
        return result


class NormedMeanHead(nn.Module):
    """(N, T, D), mask (N, T) -> scores (N, C): norm, mean over the tokens that are no padding, linear."""

    def __init__(self, width: int, outputs: int, epsilon: float) -> None:
        super().__init__()
        self.norm = RootMeanSquareNorm(width, epsilon)
        self.linear = nn.Linear(width, outputs)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        hidden = self.norm(hidden)
        if mask is None:
            pooled = hidden.mean(1)
        else:
            weight = mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)
        scores: Tensor = self.linear(pooled)
        return scores


class SlimLlama(nn.Module):
    """input_ids, attention_mask int64 (N, T) -> scores (N, C).

    config: ``vocabulary``, ``width``, ``head_width``, ``queries`` (query heads of a group), ``base`` of the rotary
    positions, ``epsilon`` of the norms, ``outputs``, and ``layers``, a list of {groups, hidden}. Raises SettingError
    for a config without one of them.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        for name in ("vocabulary", "width", "head_width", "queries", "base", "epsilon", "outputs", "layers"):
            if name not in config:
                raise SettingError(f"The network's config has no '{name}'.", option="config")
        width, epsilon = config["width"], config["epsilon"]
        self.head_width, self.base = config["head_width"], float(config["base"])
        self.embeddings = WordEmbeddings(config["vocabulary"], width)
        self.attentions = nn.ModuleList(
            GroupedAttention(width, layer["groups"], config["queries"], self.head_width, epsilon)
            for layer in config["layers"]
        )
        self.feed_forwards = nn.ModuleList(
            GatedFeedForward(width, layer["hidden"], epsilon) for layer in config["layers"]
        )
        self.head = NormedMeanHead(width, config["outputs"], epsilon)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.embeddings(input_ids)
        context = visible_and_turns(attention_mask, self.head_width, self.base)
        for attention, feed_forward in zip(self.attentions, self.feed_forwards, strict=True):
            hidden = feed_forward(attention(hidden, *context))
        scores: Tensor = self.head(hidden, attention_mask)
        return scores
