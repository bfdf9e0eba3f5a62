"""BERT encoders written so that their ONNX graph is lean: one operator for attention, biases inside products.

Traced as it is, transformers' BertModel gives some 700 nodes for 6 layers, most of them about shapes and masks. The
same weights in this form give about 200, of which ONNX Runtime keeps about 110 after its own fusions (layer
normalisation, GELU). Checked against the original in tests/compress/test_fused_bert.py.

Left out: encoders other than BertModel (RoBERTa's positions, MPNet's relative ones), which are exported as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


class _Attention(torch.autograd.Function):
    """Self-attention of all heads; in a graph, ONNX Runtime's operator com.microsoft.Attention."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, mask: Tensor, heads: int) -> Tensor:
        """hidden (N, T, D), weight (D, 3D) and bias (3D,) of query, key and value, mask int32 (N, T) -> (N, T, D)."""
        rows, length, dim = hidden.shape
        parts = (hidden @ weight + bias).split(dim, dim=-1)  # type: ignore[no-untyped-call]
        query, key, value = (part.view(rows, length, heads, dim // heads).transpose(1, 2) for part in parts)
        mixed = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask[:, None, None, :].bool()
        )
        return mixed.transpose(1, 2).reshape(rows, length, dim)

    @staticmethod
    def symbolic(g: Any, hidden: Any, weight: Any, bias: Any, mask: Any, heads: int) -> Any:
        return g.op("com.microsoft::Attention", hidden, weight, bias, mask, num_heads_i=heads).setType(hidden.type())


class FusedBert(torch.nn.Module):
    """A BertModel's encoder with the same weights: input_ids, attention_mask (N, T) -> last_hidden_state (N, T, D)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.embeddings, self.layers = model.embeddings, model.encoder.layer
        self.heads = int(model.config.num_attention_heads)
        # All tokens are of type 0: its vector joins those of the positions.
        positions = self.embeddings.position_embeddings.weight + self.embeddings.token_type_embeddings.weight[0]
        self.register_buffer("positions", positions.detach())
        for at, layer in enumerate(self.layers):
            parts = _projections(layer)
            self.register_buffer(
                f"weight_{at}", torch.cat([part.weight.detach().t() for part in parts], 1).contiguous()
            )
            self.register_buffer(f"bias_{at}", torch.cat([part.bias.detach() for part in parts]))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        mask = attention_mask.to(torch.int32)
        words = self.embeddings.word_embeddings(input_ids)
        hidden = self.embeddings.LayerNorm(words + self.positions[: input_ids.shape[1]])  # type: ignore[index]
        dim = hidden.shape[-1]
        for at, layer in enumerate(self.layers):
            weight, bias = getattr(self, f"weight_{at}"), getattr(self, f"bias_{at}")
            mixed: Any = _Attention.apply(hidden, weight, bias, mask, self.heads)  # type: ignore[no-untyped-call]
            # As one matrix of all tokens, product and bias become a single Gemm.
            flat, attended = hidden.reshape(-1, dim), layer.attention.output
            flat = attended.LayerNorm(attended.dense(mixed.reshape(-1, dim)) + flat)
            inner = layer.intermediate.intermediate_act_fn(layer.intermediate.dense(flat))
            flat = layer.output.LayerNorm(layer.output.dense(inner) + flat)
            hidden = flat.reshape(*input_ids.shape, dim)
        return SimpleNamespace(last_hidden_state=hidden)


class _ByName(torch.nn.Module):
    """Takes the arguments as transformers' models do."""

    def __init__(self, fused: FusedBert) -> None:
        super().__init__()
        self.fused = fused

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.fused(input_ids, attention_mask)


@contextmanager
def fused_encoders(network: torch.nn.Module) -> Iterator[int]:
    """Within, every BertModel inside ``network`` is replaced by its fused form; gives how many there are."""
    found = [(name, module) for name, module in network.named_modules() if name and _can_be_fused(module)]
    owners = [(network.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name, _ in found]
    try:
        for (owner, name), (_, module) in zip(owners, found, strict=True):
            setattr(owner, name, _ByName(FusedBert(module)).train(module.training))
        yield len(found)
    finally:
        for (owner, name), (_, module) in zip(owners, found, strict=True):
            setattr(owner, name, module)


def _can_be_fused(module: torch.nn.Module) -> bool:
    if "transformers" not in sys.modules or type(module).__name__ != "BertModel":
        return False
    model: Any = module
    if model.config.is_decoder or getattr(model.config, "position_embedding_type", "absolute") != "absolute":
        return False
    # Layers that adapters have wrapped compute more than their weights say.
    return all(type(part) is torch.nn.Linear for layer in model.encoder.layer for part in _projections(layer))


def _projections(layer: Any) -> tuple[Any, Any, Any]:
    attention = layer.attention.self
    return attention.query, attention.key, attention.value
