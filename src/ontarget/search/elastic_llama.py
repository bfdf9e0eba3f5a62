"""A pretrained Llama as a super-network: fewer layers, groups of heads and neurons are slices of its own weights.

InstaTune's elastic sizes (arXiv 2308.15609, section 3) for a decoder that serves as an encoder, which the paper does
not have (choice). A key and value head goes together with the query heads that read it, so that the grouping stays.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ontarget.errors import SettingError
from ontarget.parts.slim_llama import SlimLlama, grouped, visible_and_turns
from ontarget.search.elastic_transformer import HEAD_SHARES, WIDTH_SHARES, Depth, ElasticTransformer, shares_of
from ontarget.search.space import Code, Operator, operator


class ElasticLlama(ElasticTransformer):
    """An elastic network around a `SlimLlama`; see `ElasticTransformer`. Its heads are groups of query heads."""

    unit = "groups"
    network: SlimLlama

    def begun(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Any]:
        context = visible_and_turns(attention_mask, self.network.head_width, self.network.base)
        return self.network.embeddings(input_ids), context

    def attended(self, at: int, hidden: Tensor, context: Any, heads: int) -> Tensor:
        attention: Any = self.network.attentions[at]
        part = self.attention_part(attention, heads)
        joint = F.linear(attention.norm(hidden), part["joint.weight"])
        result: Tensor = F.linear(grouped(joint, heads, attention.queries, context), part["output.weight"]) + hidden
        return result

    def fed(self, at: int, hidden: Tensor, neurons: int) -> Tensor:
        forward: Any = self.network.feed_forwards[at]
        normed = forward.norm(hidden)
        gate, inner = (F.linear(normed, layer.weight[:neurons]) for layer in (forward.gate, forward.inner))
        result: Tensor = F.linear(F.silu(gate) * inner, forward.outer.weight[:, :neurons]) + hidden
        return result

    def attention_part(self, attention: Any, heads: int) -> dict[str, Tensor]:
        d = int(self.full["head_width"])
        rows = joint_rows(attention.groups, torch.arange(heads), attention.queries, d)
        return {
            "joint.weight": attention.joint.weight[rows.to(attention.joint.weight.device)],
            "output.weight": attention.output.weight[:, : heads * attention.queries * d],
            "norm.weight": attention.norm.weight,
        }

    def forward_part(self, forward: Any, neurons: int) -> dict[str, Tensor]:
        return {
            "gate.weight": forward.gate.weight[:neurons],
            "inner.weight": forward.inner.weight[:neurons],
            "outer.weight": forward.outer.weight[:, :neurons],
            "norm.weight": forward.norm.weight,
        }

    def head_columns(self) -> int:
        return int(self.full["queries"] * self.full["head_width"])

    def reorder(self, at: int, heads: Tensor, neurons: Tensor) -> None:
        attention: Any = self.network.attentions[at]
        forward: Any = self.network.feed_forwards[at]
        rows = joint_rows(attention.groups, heads, attention.queries, int(self.full["head_width"]))
        width = self.head_columns()
        columns = (heads[:, None] * width + torch.arange(width, device=heads.device)).reshape(-1)
        with torch.no_grad():
            attention.joint.weight.copy_(attention.joint.weight[rows].clone())
            attention.output.weight.copy_(attention.output.weight[:, columns].clone())
            for layer in (forward.gate, forward.inner):
                layer.weight.copy_(layer.weight[neurons].clone())
            forward.outer.weight.copy_(forward.outer.weight[:, neurons].clone())

    def operators(self, code: Code) -> tuple[Operator, ...]:
        full, shape = self.full, (self.length, self.full["width"])
        found = [operator("llama_embeddings", (self.length,), vocabulary=full["vocabulary"], width=full["width"])]
        for groups, neurons in self.sizes(code):
            found.append(
                operator("llama_attention", shape, groups=groups, queries=full["queries"],
                         head_width=full["head_width"])
            )  # fmt: skip
            found.append(operator("llama_mlp", shape, hidden=neurons))
        return (*found, operator("llama_head", shape, outputs=full["outputs"]))

    def macs(self, code: Code, length: int | None = None) -> int:
        full, tokens = self.full, length or self.length
        width, d, queries = full["width"], full["head_width"], full["queries"]
        total = width * int(full["outputs"])
        for groups, neurons in self.sizes(code):
            projections = tokens * width * groups * d * (2 * queries + 2)
            total += projections + 2 * tokens * tokens * groups * queries * d + 3 * tokens * width * neurons
        return int(total)


def joint_rows(full_groups: int, groups: Tensor, queries: int, head_width: int) -> Tensor:
    """Rows of the joint projection ((G Q + 2 G) d, D) that these groups use, in their order."""

    def block(start: int, width: int) -> Tensor:
        return (start + groups[:, None] * width + torch.arange(width, device=groups.device)).reshape(-1)

    keys = full_groups * queries * head_width
    values = keys + full_groups * head_width
    return torch.cat([block(0, queries * head_width), block(keys, head_width), block(values, head_width)])


def from_llama(model: Any, *, outputs: int) -> tuple[SlimLlama, dict[str, Any]]:
    """A transformers LlamaModel as a `SlimLlama` with a linear head of zero weights, and its config.

    Raises SettingError for another architecture, biases, or rotary positions that are scaled.
    """
    of = getattr(model, "config", None)
    scaled = getattr(of, "rope_parameters", None) or getattr(of, "rope_scaling", None) or {}
    kind = scaled.get("rope_type", scaled.get("type", "default"))
    odd = [
        name
        for name, there in (
            (type(model).__name__, type(model).__name__ != "LlamaModel"),
            (f"rotary positions of type '{kind}'", kind != "default"),
            ("biases", getattr(of, "attention_bias", False) or getattr(of, "mlp_bias", False)),
            (f"activation '{getattr(of, 'hidden_act', '')}'", getattr(of, "hidden_act", "silu") != "silu"),
        )
        if there
    ]
    if odd:
        raise SettingError(
            f"A model with {', '.join(odd)} cannot be sliced.", allowed="LlamaModel without them", option="--source",
            next_step="choose an encoder such as zoo:minilm or zoo:smollm2-135m",
        )  # fmt: skip
    assert of is not None
    groups, heads = int(of.num_key_value_heads), int(of.num_attention_heads)
    width = int(of.hidden_size)
    head_width = int(getattr(of, "head_dim", None) or width // heads)
    base = float(
        scaled.get("rope_theta") or getattr(of, "rope_theta", None) or 10_000.0
    )  # where it is differs by version
    config = {
        "network": "llama", "vocabulary": int(of.vocab_size), "width": width, "head_width": head_width,
        "queries": heads // groups, "base": base,
        "epsilon": float(of.rms_norm_eps), "outputs": outputs,
        "layers": [{"groups": groups, "hidden": int(of.intermediate_size)} for _ in range(of.num_hidden_layers)],
    }  # fmt: skip
    network = SlimLlama(config)
    state = {
        "embeddings.words.weight": model.embed_tokens.weight,
        "head.norm.weight": model.norm.weight,
        "head.linear.weight": torch.zeros(outputs, width),
        "head.linear.bias": torch.zeros(outputs),
    }
    for at, layer in enumerate(model.layers):
        own = layer.self_attn
        state |= {
            f"attentions.{at}.norm.weight": layer.input_layernorm.weight,
            f"attentions.{at}.joint.weight": torch.cat([own.q_proj.weight, own.k_proj.weight, own.v_proj.weight]),
            f"attentions.{at}.output.weight": own.o_proj.weight,
            f"feed_forwards.{at}.norm.weight": layer.post_attention_layernorm.weight,
            f"feed_forwards.{at}.gate.weight": layer.mlp.gate_proj.weight,
            f"feed_forwards.{at}.inner.weight": layer.mlp.up_proj.weight,
            f"feed_forwards.{at}.outer.weight": layer.mlp.down_proj.weight,
        }
    network.load_state_dict({name: value.detach().float().clone() for name, value in state.items()})
    return network, config


def elastic_llama(model: Any, *, outputs: int, length: int = 64, depth: Depth = "first") -> ElasticLlama:
    """The super-network of a transformers LlamaModel; sizes as in `elastic_bert.elastic_bert`."""
    network, config = from_llama(model, outputs=outputs)
    count, groups, hidden = len(config["layers"]), config["layers"][0]["groups"], config["layers"][0]["hidden"]
    return ElasticLlama(
        network, config, layers=range(max(1, -(-2 * count // 3)), count + 1), heads=shares_of(groups, HEAD_SHARES),
        hidden=shares_of(hidden, WIDTH_SHARES), length=length, depth=depth,
    )  # fmt: skip
