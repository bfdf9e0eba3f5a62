"""Decoder layers of Llama, Mistral and Qwen2 in fewer operators, for steps of a few tokens on a CPU.

Of a step over a few tokens a third is the dispatch of some sixty small operators a layer. Here queries, keys and values
are one product, gate and up another; both are rotated together, norms are one operator, and query heads that share keys
stand beside each other instead of keys being repeated. Same arithmetic, other order of sums. Every use is proven on the
model itself first (`fuse_decoder`). Measured in benchmarks/packed_linear.py; checked in
tests/serve/test_fused_decoder.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ontarget.compress.gwq_linear import GwqLinear, join
from ontarget.device import return_memory
from ontarget.pool.language_models import cache_argument

LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer")
TOLERANCE = {
    torch.float32: 1e-3,
    torch.float16: 5e-2,
    torch.bfloat16: 2e-1,
}  # of the logits' spread, as in choose_forward


class FusedDecoderLayer(nn.Module):
    """hidden (R, T, d) -> (R, T, d), called as transformers calls the layer that it is made of; for inference alone."""

    def __init__(self, layer: Any, turns: Turns) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self._turns = turns
        self.index, self.size, self.scaling = attention.layer_idx, attention.head_dim, attention.scaling
        self.heads = attention.q_proj.out_features // self.size
        self.shared = attention.k_proj.out_features // self.size
        self.first, self.second = layer.input_layernorm, layer.post_attention_layernorm
        self.project = joined(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = attention.o_proj
        self.widen, self.narrow = joined(mlp.gate_proj, mlp.up_proj), mlp.down_proj

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None, past_key_values: Any = None, cache: Any = None,
        **_: Any,
    ) -> Tensor:  # fmt: skip
        assert position_embeddings is not None
        rows, tokens, _width = hidden_states.shape
        cosine, sine = self._turns.of(*position_embeddings)
        made = self.project(norm(self.first, hidden_states)).view(rows, tokens, -1, self.size)
        turned = made[:, :, : self.heads + self.shared]
        turned = torch.addcmul(turned * cosine, turned.roll(self.size // 2, -1), sine)
        query, key = turned[:, :, : self.heads], turned[:, :, self.heads :].transpose(1, 2)
        value = made[:, :, self.heads + self.shared :].transpose(1, 2)
        kept = cache if cache is not None else past_key_values
        if kept is not None:
            key, value = kept.update(key, value, self.index)
        if tokens == 1:  # heads that share a key are like tokens that look at the same past
            query = query.reshape(rows, self.shared, self.heads // self.shared, self.size)
            read = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=self.scaling)
        else:
            read = F.scaled_dot_product_attention(
                query.transpose(1, 2), key, value, attn_mask=attention_mask, is_causal=attention_mask is None,
                scale=self.scaling, enable_gqa=True,
            ).transpose(1, 2)  # fmt: skip
        hidden = hidden_states + self.out(read.reshape(rows, tokens, -1))
        gate, up = self.widen(norm(self.second, hidden)).chunk(2, -1)
        found: Tensor = hidden + self.narrow(F.silu(gate) * up)
        return found


class Turns:
    """Cosines and signed sines of the rotation, made once for all layers of a pass."""

    def __init__(self) -> None:
        self._given: tuple[Tensor, Tensor] | None = None
        self._made: tuple[Tensor, Tensor] | None = None

    def of(self, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
        """(R, T, D) both -> (R, T, 1, D). Rolled by half, what was the first half has to be subtracted."""
        if self._made is None or self._given is None or self._given[0] is not cosine or self._given[1] is not sine:
            half = sine.shape[-1] // 2
            signed = torch.cat([-sine[..., :half], sine[..., half:]], -1)
            self._given, self._made = (cosine, sine), (cosine[:, :, None], signed[:, :, None])
        return self._made


def norm(layer: Any, hidden: Tensor) -> Tensor:
    """The layer's root mean square norm."""
    found: Tensor = F.rms_norm(hidden, layer.weight.shape, layer.weight, layer.variance_epsilon)
    return found


class Beside(nn.Module):
    """Layers whose results stand beside each other: those that cannot be one product."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, given: Tensor) -> Tensor:
        return torch.cat([layer(given) for layer in self.layers], -1)


def joined(*layers: Any) -> nn.Module:
    """One linear layer with the outputs of all, in their order; `Beside` where some are of another kind. The weights
    of the given ones become parts of the joined one, so that nothing is held twice."""
    if all(type(layer) is GwqLinear for layer in layers):
        return join(layers) or Beside(*layers)
    biased = {getattr(layer, "bias", None) is not None for layer in layers}
    if any(type(layer) is not nn.Linear for layer in layers) or len(biased) > 1:
        return Beside(*layers)
    weight = torch.cat([layer.weight.detach() for layer in layers])
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=biased.pop(), device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    for layer, part in zip(layers, torch.split(weight, [layer.out_features for layer in layers]), strict=True):
        layer.weight.data = part
    if made.bias is not None:
        made.bias = nn.Parameter(torch.cat([layer.bias.detach() for layer in layers]), requires_grad=False)
    return made


def can_fuse(model: Any) -> bool:
    """Whether all layers are of a kind that is known here: full attention, SiLU, nothing between."""
    layers = getattr(getattr(model, "base_model", None), "layers", None)
    config = getattr(model, "config", None)
    if layers is None or config is None or not len(layers) or config.hidden_act not in ("silu", "swish"):
        return False
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return False
    return all(type(layer).__name__ in LAYERS and type(layer).__module__.startswith("transformers.models.")
               for layer in layers)  # fmt: skip


def fuse_decoder(model: Any) -> bool:
    """Replace the decoder layers of a causal language model in place, for inference alone; whether that was done.

    Left as it is where a layer is of another kind, or where the fused model's scores of a text, read at once and token
    by token, are not those of the plain one. Fused layers report no states of their own (``output_hidden_states``).
    """
    return bool(_replaced(model))


@contextmanager
def fused_decoder(model: Any) -> Iterator[None]:
    """`fuse_decoder` for a while; then the plain layers come back."""
    plain = _replaced(model)
    try:
        yield
    finally:
        for at, layer in enumerate(plain):
            model.base_model.layers[at] = layer


@torch.inference_mode()
def _replaced(model: Any) -> list[nn.Module]:
    """The plain layers, where fused ones have taken their places."""
    if not can_fuse(model) or model.training:
        return []
    layers = model.base_model.layers
    plain = list(layers)
    wanted = _scores(model)
    turns = Turns()
    try:
        with torch.inference_mode(False), torch.no_grad():  # weights that outlive this function are plain tensors
            for at, layer in enumerate(plain):
                layers[at] = FusedDecoderLayer(layer, turns)
                return_memory()
        found = _scores(model)
        far = TOLERANCE.get(model.dtype, 1e-3) * float(wanted.std())
        good = bool(((found - wanted).abs() <= far).all())
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError):  # another release of transformers or torch
        good = False
    if not good:
        for at, layer in enumerate(plain):
            layers[at] = layer
    return plain if good else []


def _scores(model: Any) -> Tensor:
    """float32 (2 T, V): scores of T tokens, read at once and one by one."""
    size = model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(1, 13, device=model.device) * 7919 % size)[None]
    at_once = model(ids, use_cache=False).logits[0]
    made = model(ids[:, :5], use_cache=True)
    cache = made[cache_argument(model)]
    steps = [made.logits[0]]
    for at in range(5, ids.shape[1]):
        steps.append(model(ids[:, at : at + 1], use_cache=True, **{cache_argument(model): cache}).logits[0])
    return torch.cat([at_once, *steps]).float()
