"""A pretrained BERT as a super-network: fewer layers, heads and neurons are slices of its own weights.

The elastic sizes of InstaTune (arXiv 2308.15609, section 3) around an unchanged model: a sub-network keeps the first L
layers, and in each of them the first H heads and the first neurons of the feed-forward part; the hidden size is fixed.
Official elastic layers: IntelLabs/DyNAS-T, dynast/supernetwork/text_classification.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ontarget.errors import SettingError
from ontarget.parts.slim_bert import SlimBert, mixed
from ontarget.search.space import Code, Operator, Slot, operator

HEAD_SHARES = (0.5, 2 / 3, 5 / 6, 1.0)  # {6, 8, 10, 12} of 12
WIDTH_SHARES = (0.5, 0.75, 1.0)


class ElasticBert(nn.Module):
    """An `ElasticNetwork` around a `SlimBert` of full size. input_ids, attention_mask (N, T), a code -> scores (N, C).

    layers: choices of the depth, ascending. heads, hidden: choices of every layer, ascending. length: tokens that
    operators are timed at. The last choice of each is the full model's; code 0 the smallest.
    Raises SettingError for sizes beyond the model's.
    """

    def __init__(
        self,
        network: SlimBert,
        config: dict[str, Any],
        *,
        layers: Sequence[int],
        heads: Sequence[int],
        hidden: Sequence[int],
        length: int = 64,
    ) -> None:
        super().__init__()
        full = config["layers"]
        largest = {"layers": len(full), "heads": full[0]["heads"], "hidden": full[0]["hidden"]}
        for name, sizes in (("layers", layers), ("heads", heads), ("hidden", hidden)):
            if list(sizes) != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] > largest[name]:
                raise SettingError(
                    f"{name} is {list(sizes)}.", allowed=f"ascending numbers from 1 to {largest[name]}", option=name
                )
        self.network, self.full = network, config
        self.layers, self.heads, self.hidden = tuple(layers), tuple(heads), tuple(hidden)
        self.length = length
        depth = self.layers[-1]
        self.slots = (
            Slot("layers", len(layers), tuple(map(str, layers))),
            *(Slot(f"heads of layer {at}", len(heads), tuple(map(str, heads))) for at in range(depth)),
            *(Slot(f"neurons of layer {at}", len(hidden), tuple(map(str, hidden))) for at in range(depth)),
        )

    @property
    def largest(self) -> Code:
        """The code of the largest network."""
        return tuple(slot.choices - 1 for slot in self.slots)

    def sizes(self, code: Code) -> list[tuple[int, int]]:
        """(heads, neurons) of each layer that is kept."""
        depth = self.layers[-1]
        kept = self.layers[code[0]]
        return [(self.heads[code[1 + at]], self.hidden[code[1 + depth + at]]) for at in range(kept)]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, code: Code) -> Tensor:
        network, d = self.network, self.full["head_width"]
        hidden = network.embeddings(input_ids)
        for at, (heads, neurons) in enumerate(self.sizes(code)):
            attention: Any = network.attentions[at]
            forward: Any = network.feed_forwards[at]
            rows = joint_rows(attention.heads, heads, d, hidden.device)
            joint = F.linear(hidden, attention.joint.weight[rows], attention.joint.bias[rows])
            attended = mixed(joint, attention_mask, heads)
            hidden = attention.norm(
                F.linear(attended, attention.output.weight[:, : heads * d], attention.output.bias) + hidden
            )
            inner = F.gelu(F.linear(hidden, forward.inner.weight[:neurons], forward.inner.bias[:neurons]))
            hidden = forward.norm(F.linear(inner, forward.outer.weight[:, :neurons], forward.outer.bias) + hidden)
        scores: Tensor = network.head(hidden, attention_mask)
        return scores

    def canonical(self, code: Code) -> Code:
        """Heads and neurons of layers that are not kept are 0."""
        depth, kept = self.layers[-1], self.layers[code[0]]
        unused = (0,) * (depth - kept)
        return (*code[: 1 + kept], *unused, *code[1 + depth : 1 + depth + kept], *unused)

    def config(self, code: Code) -> dict[str, Any]:
        """For `SlimBert`."""
        layers = [{"heads": heads, "hidden": neurons} for heads, neurons in self.sizes(code)]
        return {**self.full, "network": "bert", "layers": layers}

    def slice(self, code: Code) -> SlimBert:
        """The sub-network as a plain one with a copy of its part of the weights."""
        result = SlimBert(self.config(code))
        d = self.full["head_width"]
        state = {f"embeddings.{name}": value for name, value in self.network.embeddings.state_dict().items()}
        state |= {f"head.{name}": value for name, value in self.network.head.state_dict().items()}
        for at, (heads, neurons) in enumerate(self.sizes(code)):
            attention: Any = self.network.attentions[at]
            forward: Any = self.network.feed_forwards[at]
            rows = joint_rows(attention.heads, heads, d, attention.joint.weight.device)
            parts = {
                f"attentions.{at}.joint.weight": attention.joint.weight[rows],
                f"attentions.{at}.joint.bias": attention.joint.bias[rows],
                f"attentions.{at}.output.weight": attention.output.weight[:, : heads * d],
                f"attentions.{at}.output.bias": attention.output.bias,
                f"feed_forwards.{at}.inner.weight": forward.inner.weight[:neurons],
                f"feed_forwards.{at}.inner.bias": forward.inner.bias[:neurons],
                f"feed_forwards.{at}.outer.weight": forward.outer.weight[:, :neurons],
                f"feed_forwards.{at}.outer.bias": forward.outer.bias,
            }
            for name, norm in ((f"attentions.{at}", attention.norm), (f"feed_forwards.{at}", forward.norm)):
                parts |= {f"{name}.norm.{key}": value for key, value in norm.state_dict().items()}
            state |= parts
        result.load_state_dict({name: value.detach().cpu().clone() for name, value in state.items()})
        return result.train(self.training)

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

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        """One batch of random tokens of full length."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, self.full["vocabulary"], (batch_size, self.length), generator=generator)
        return ids, torch.ones_like(ids)

    def macs(self, code: Code, length: int | None = None) -> int:
        """Multiply-accumulates of one row of ``length`` tokens: products of attention and feed-forward parts."""
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


def elastic_bert(model: Any, *, outputs: int, length: int = 64) -> ElasticBert:
    """The super-network of a transformers BertModel with the published shares of its sizes.

    Depth from two thirds (choice; {11, 12} of 12 for vision, {6..12} for BERT in the paper) to all layers.
    """
    network, config = from_bert(model, outputs=outputs)
    count, heads, hidden = len(config["layers"]), config["layers"][0]["heads"], config["layers"][0]["hidden"]
    return ElasticBert(
        network, config,
        layers=range(max(1, -(-2 * count // 3)), count + 1),
        heads=sorted({max(1, round(share * heads)) for share in HEAD_SHARES}),
        hidden=sorted({max(1, round(share * hidden)) for share in WIDTH_SHARES}),
        length=length,
    )  # fmt: skip
