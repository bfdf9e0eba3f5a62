"""A pretrained BERT as a super-network: fewer layers, heads and neurons are slices of its own weights.

The elastic sizes of InstaTune (arXiv 2308.15609, section 3) around an unchanged model: a sub-network keeps the first L
layers (or, a choice, L spread ones), and in each of them the first H heads and the first neurons of the feed-forward
part; the hidden size is fixed.
Official elastic layers: IntelLabs/DyNAS-T, dynast/supernetwork/text_classification.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ontarget.errors import SettingError
from ontarget.parts.slim_bert import SlimBert, mixed
from ontarget.search.elastic_transformer import HEAD_SHARES, WIDTH_SHARES, Depth, ElasticTransformer, shares_of
from ontarget.search.space import Code, Operator, operator


class ElasticBert(ElasticTransformer):
    """An elastic network around a `SlimBert`; see `ElasticTransformer`."""

    network: SlimBert

    def begun(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Any]:
        return self.network.embeddings(input_ids), attention_mask

    def attended(self, at: int, hidden: Tensor, context: Any, heads: int) -> Tensor:
        attention: Any = self.network.attentions[at]
        d = self.head_columns()
        rows = joint_rows(attention.heads, heads, d, hidden.device)
        joint = F.linear(hidden, attention.joint.weight[rows], attention.joint.bias[rows])
        output = F.linear(mixed(joint, context, heads), attention.output.weight[:, : heads * d], attention.output.bias)
        result: Tensor = attention.norm(output + hidden)
        return result

    def fed(self, at: int, hidden: Tensor, neurons: int) -> Tensor:
        forward: Any = self.network.feed_forwards[at]
        inner = F.gelu(F.linear(hidden, forward.inner.weight[:neurons], forward.inner.bias[:neurons]))
        result: Tensor = forward.norm(
            F.linear(inner, forward.outer.weight[:, :neurons], forward.outer.bias) + hidden
        )  # fmt: skip
        return result

    def attention_part(self, attention: Any, heads: int) -> dict[str, Tensor]:
        d = self.head_columns()
        rows = joint_rows(attention.heads, heads, d, attention.joint.weight.device)
        return {
            "joint.weight": attention.joint.weight[rows],
            "joint.bias": attention.joint.bias[rows],
            "output.weight": attention.output.weight[:, : heads * d],
            "output.bias": attention.output.bias,
            **{f"norm.{name}": value for name, value in attention.norm.state_dict().items()},
        }

    def forward_part(self, forward: Any, neurons: int) -> dict[str, Tensor]:
        return {
            "inner.weight": forward.inner.weight[:neurons],
            "inner.bias": forward.inner.bias[:neurons],
            "outer.weight": forward.outer.weight[:, :neurons],
            "outer.bias": forward.outer.bias,
            **{f"norm.{name}": value for name, value in forward.norm.state_dict().items()},
        }

    def head_columns(self) -> int:
        return int(self.full["head_width"])

    def reorder(self, at: int, heads: Tensor, neurons: Tensor) -> None:
        attention: Any = self.network.attentions[at]
        forward: Any = self.network.feed_forwards[at]
        d = self.head_columns()
        columns = (heads[:, None] * d + torch.arange(d, device=heads.device)).reshape(-1)
        joint = torch.cat([columns + part * attention.heads * d for part in range(3)])
        with torch.no_grad():
            attention.joint.weight.copy_(attention.joint.weight[joint].clone())
            attention.joint.bias.copy_(attention.joint.bias[joint].clone())
            attention.output.weight.copy_(attention.output.weight[:, columns].clone())
            forward.inner.weight.copy_(forward.inner.weight[neurons].clone())
            forward.inner.bias.copy_(forward.inner.bias[neurons].clone())
            forward.outer.weight.copy_(forward.outer.weight[:, neurons].clone())

    def operators(self, code: Code) -> tuple[Operator, ...]:
        full, shape = self.full, (self.length, self.full["width"])
        found = [
            operator("bert_embeddings", (self.length,), vocabulary=full["vocabulary"], positions=full["positions"],
                     width=full["width"])
        ]  # fmt: skip
        for heads, neurons in self.sizes(code):
            found.append(operator("bert_attention", shape, heads=heads, head_width=full["head_width"]))
            found.append(operator("bert_mlp", shape, hidden=neurons))
        return (*found, operator("bert_head", shape, outputs=full["outputs"]))

    def macs(self, code: Code, length: int | None = None) -> int:
        tokens, width, d = length or self.length, self.full["width"], self.full["head_width"]
        total = width * int(self.full["outputs"])
        for heads, neurons in self.sizes(code):
            total += tokens * width * heads * d * 4 + 2 * tokens * tokens * heads * d + 2 * tokens * width * neurons
        return int(total)


def joint_rows(full_heads: int, heads: int, head_width: int, device: torch.device) -> Tensor:
    """Rows of the joint projection (3 H d, D) that the first ``heads`` heads use."""
    first = torch.arange(heads * head_width, device=device)
    return torch.cat([first + part * full_heads * head_width for part in range(3)])


def from_bert(model: Any, *, outputs: int, seed: int = 0) -> tuple[SlimBert, dict[str, Any]]:
    """A transformers BertModel as a `SlimBert` with a fresh linear head of zero weights, and its config.

    Raises SettingError for another architecture.
    """
    if type(model).__name__ != "BertModel":
        raise SettingError(
            f"{type(model).__name__} cannot be sliced.", allowed="BertModel", option="--pool",
            next_step="choose a BERT encoder such as zoo:minilm",
        )  # fmt: skip
    of = model.config
    width, heads = int(of.hidden_size), int(of.num_attention_heads)
    config = {
        "network": "bert", "vocabulary": int(of.vocab_size), "positions": int(of.max_position_embeddings),
        "width": width, "head_width": width // heads, "outputs": outputs,
        "layers": [{"heads": heads, "hidden": int(of.intermediate_size)} for _ in range(of.num_hidden_layers)],
    }  # fmt: skip
    network = SlimBert(config)
    embeddings = model.embeddings
    # All tokens are of type 0: its vector joins those of the positions.
    state = {
        "embeddings.words.weight": embeddings.word_embeddings.weight,
        "embeddings.positions": embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0],
        "embeddings.norm.weight": embeddings.LayerNorm.weight,
        "embeddings.norm.bias": embeddings.LayerNorm.bias,
        "head.linear.weight": torch.zeros(outputs, width),
        "head.linear.bias": torch.zeros(outputs),
    }
    for at, layer in enumerate(model.encoder.layer):
        attention = layer.attention
        three = (attention.self.query, attention.self.key, attention.self.value)
        state |= {
            f"attentions.{at}.joint.weight": torch.cat([part.weight for part in three]),
            f"attentions.{at}.joint.bias": torch.cat([part.bias for part in three]),
            f"attentions.{at}.output.weight": attention.output.dense.weight,
            f"attentions.{at}.output.bias": attention.output.dense.bias,
            f"attentions.{at}.norm.weight": attention.output.LayerNorm.weight,
            f"attentions.{at}.norm.bias": attention.output.LayerNorm.bias,
            f"feed_forwards.{at}.inner.weight": layer.intermediate.dense.weight,
            f"feed_forwards.{at}.inner.bias": layer.intermediate.dense.bias,
            f"feed_forwards.{at}.outer.weight": layer.output.dense.weight,
            f"feed_forwards.{at}.outer.bias": layer.output.dense.bias,
            f"feed_forwards.{at}.norm.weight": layer.output.LayerNorm.weight,
            f"feed_forwards.{at}.norm.bias": layer.output.LayerNorm.bias,
        }
    network.load_state_dict({name: value.detach().clone() for name, value in state.items()})
    return network, config


def elastic_bert(model: Any, *, outputs: int, length: int = 64, depth: Depth = "first") -> ElasticBert:
    """The super-network of a transformers BertModel with the published shares of its sizes.

    Depth from two thirds (choice; {11, 12} of 12 for vision, {6..12} for BERT in the paper) to all layers.
    """
    network, config = from_bert(model, outputs=outputs)
    count, heads, hidden = len(config["layers"]), config["layers"][0]["heads"], config["layers"][0]["hidden"]
    return ElasticBert(
        network, config, layers=range(max(1, -(-2 * count // 3)), count + 1), heads=shares_of(heads, HEAD_SHARES),
        hidden=shares_of(hidden, WIDTH_SHARES), length=length, depth=depth,
    )  # fmt: skip
