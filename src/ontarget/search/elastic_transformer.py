"""What elastic transformers share: some layers of a pretrained model, and in each the first heads and neurons.

The elastic sizes of InstaTune (arXiv 2308.15609, section 3) around an unchanged model; the hidden size is fixed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ontarget.errors import SettingError
from ontarget.search.space import Code, Operator, Slot

HEAD_SHARES = (0.5, 2 / 3, 5 / 6, 1.0)  # {6, 8, 10, 12} of 12
WIDTH_SHARES = (0.5, 0.75, 1.0)
Depth = Literal["first", "spread"]


class ElasticTransformer(nn.Module, ABC):
    """An `ElasticNetwork` around a plain ``network`` of full size and its config.

    input_ids, attention_mask int64 (N, T) and a code -> scores (N, C). layers: choices of the depth, ascending. heads,
    hidden: choices of every layer, ascending; ``unit`` says what is counted as heads. length: tokens that operators are
    timed at. depth: which layers a network of L keeps: the first L, as published, or L spread evenly from the first to
    the last (choice). The last choice of each is the full model's; code 0 the smallest. The network has
    ``embeddings``, ``attentions``, ``feed_forwards`` and ``head``. Raises SettingError for sizes beyond the model's.
    """

    unit: ClassVar[str] = "heads"

    def __init__(
        self,
        network: Any,
        config: dict[str, Any],
        *,
        layers: Sequence[int],
        heads: Sequence[int],
        hidden: Sequence[int],
        length: int = 64,
        depth: Depth = "first",
    ) -> None:
        super().__init__()
        if depth not in ("first", "spread"):
            raise SettingError(f"depth is '{depth}'.", allowed="first, spread", option="depth")
        full = config["layers"]
        largest = {"layers": len(full), self.unit: full[0][self.unit], "hidden": full[0]["hidden"]}
        for name, sizes in (("layers", layers), (self.unit, heads), ("hidden", hidden)):
            if list(sizes) != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] > largest[name]:
                raise SettingError(
                    f"{name} is {list(sizes)}.", allowed=f"ascending numbers from 1 to {largest[name]}", option=name
                )
        self.network, self.full = network, config
        self.layers, self.heads, self.hidden = tuple(layers), tuple(heads), tuple(hidden)
        self.length, self.depth = length, depth
        most = self.layers[-1]
        self.slots = (
            # Codes of the two depths mean different networks: stored ones (`population_store`) tell them apart by name.
            Slot("layers" if depth == "first" else "layers, spread", len(layers), tuple(map(str, layers))),
            *(Slot(f"{self.unit} of layer {at}", len(heads), tuple(map(str, heads))) for at in range(most)),
            *(Slot(f"neurons of layer {at}", len(hidden), tuple(map(str, hidden))) for at in range(most)),
        )

    @property
    def largest(self) -> Code:
        """The code of the largest network."""
        return tuple(slot.choices - 1 for slot in self.slots)

    def kept(self, code: Code) -> list[int]:
        """The layers of the largest network that the code's keeps, ascending."""
        most, count = self.layers[-1], self.layers[code[0]]
        if self.depth == "first" or count == 1:
            return list(range(count))
        return [round(at * (most - 1) / (count - 1)) for at in range(count)]

    def sizes(self, code: Code) -> list[tuple[int, int]]:
        """(heads, neurons) of each layer that is kept."""
        most = self.layers[-1]
        return [(self.heads[code[1 + at]], self.hidden[code[1 + most + at]]) for at in self.kept(code)]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, code: Code) -> Tensor:
        hidden, context = self.begun(input_ids, attention_mask)
        for at, (heads, neurons) in zip(self.kept(code), self.sizes(code), strict=True):
            hidden = self.fed(at, self.attended(at, hidden, context, heads), neurons)
        scores: Tensor = self.network.head(hidden, attention_mask)
        return scores

    def canonical(self, code: Code) -> Code:
        """Heads and neurons of layers that are not kept are 0."""
        most, kept = self.layers[-1], set(self.kept(code))
        return (code[0], *(value if at % most in kept else 0 for at, value in enumerate(code[1:])))

    def config(self, code: Code) -> dict[str, Any]:
        """For the plain network."""
        layers = [{self.unit: heads, "hidden": neurons} for heads, neurons in self.sizes(code)]
        return {**self.full, "layers": layers}

    def slice(self, code: Code) -> Any:
        """The sub-network as a plain one with a copy of its part of the weights."""
        result = type(self.network)(self.config(code))
        state = {f"embeddings.{name}": value for name, value in self.network.embeddings.state_dict().items()}
        state |= {f"head.{name}": value for name, value in self.network.head.state_dict().items()}
        for to, (at, (heads, neurons)) in enumerate(zip(self.kept(code), self.sizes(code), strict=True)):
            parts = {
                "attentions": self.attention_part(self.network.attentions[at], heads),
                "feed_forwards": self.forward_part(self.network.feed_forwards[at], neurons),
            }
            state |= {f"{kind}.{to}.{name}": value for kind, part in parts.items() for name, value in part.items()}
        result.load_state_dict({name: value.detach().cpu().clone() for name, value in state.items()})
        return result.train(self.training)

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        """One batch of random tokens of full length."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, self.full["vocabulary"], (batch_size, self.length), generator=generator)
        return ids, torch.ones_like(ids)

    @abstractmethod
    def begun(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Any]:
        """Hidden states (N, T, D) before the first layer, and what every attention needs besides."""

    @abstractmethod
    def attended(self, at: int, hidden: Tensor, context: Any, heads: int) -> Tensor:
        """Layer ``at``'s attention with its first ``heads`` heads, shortcut and norm included: (N, T, D)."""

    @abstractmethod
    def fed(self, at: int, hidden: Tensor, neurons: int) -> Tensor:
        """Layer ``at``'s feed-forward part with its first ``neurons`` neurons, shortcut and norm included."""

    @abstractmethod
    def attention_part(self, attention: Any, heads: int) -> dict[str, Tensor]:
        """The state of a plain attention of ``heads`` heads."""

    @abstractmethod
    def forward_part(self, forward: Any, neurons: int) -> dict[str, Tensor]:
        """The state of a plain feed-forward part of ``neurons`` neurons."""

    @abstractmethod
    def head_columns(self) -> int:
        """Columns of an attention's output projection that belong to one head."""

    @abstractmethod
    def reorder(self, at: int, heads: Tensor, neurons: Tensor) -> None:
        """Bring layer ``at``'s heads and neurons into a new order, in place; the full network's scores stay."""

    @abstractmethod
    def operators(self, code: Code) -> tuple[Operator, ...]:
        """What the plain network runs."""

    @abstractmethod
    def macs(self, code: Code, length: int | None = None) -> int:
        """Multiply-accumulates of one row of ``length`` tokens: products of attention and feed-forward parts."""


def shares_of(count: int, shares: Sequence[float]) -> list[int]:
    """The sizes, ascending and each once, that are these shares of ``count``; 1 at least."""
    return sorted({max(1, round(share * count)) for share in shares})
