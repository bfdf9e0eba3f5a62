"""The one interface of elastic networks: what can be chosen, and what a choice gives.

A super-network holds the weights of many networks. A code says which of them: one integer for each slot. Search methods
know nothing else about a space: they draw codes, look up what their operators cost, and slice the plain network out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ontarget.errors import SettingError
from ontarget.values import Array

Code = tuple[int, ...]


@dataclass(frozen=True)
class Slot:
    """One decision: ``choices`` >= 1 alternatives, named by ``labels`` where a person reads them."""

    name: str
    choices: int
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Operator:
    """A part of a network that is timed as a whole: kind, settings and the shape that goes in, without the batch.

    Two operators with the same key take the same time. `search.operators.build_operator` makes the module.
    """

    kind: str
    settings: tuple[tuple[str, int], ...]
    shape: tuple[int, ...]

    @property
    def key(self) -> str:
        """E.g. ``"mbconv(expansion=3, in=16, kernel=5, out=24, stride=2) 16x28x28"``."""
        settings = ", ".join(f"{name}={value}" for name, value in self.settings)
        return f"{self.kind}({settings}) {'x'.join(map(str, self.shape))}"


def operator(kind: str, shape: Sequence[int], **settings: int) -> Operator:
    """An `Operator` with its settings in the order of their names."""
    return Operator(kind, tuple(sorted(settings.items())), tuple(shape))


class ElasticNetwork(Protocol):
    """What a search method asks of a super-network. slots: in the order of a code's integers."""

    slots: tuple[Slot, ...]

    def canonical(self, code: Code) -> Code:
        """The same network's code with every slot that has no effect at 0: equal networks have equal ones."""

    def slice(self, code: Code) -> torch.nn.Module:
        """A plain network with the code's part of the weights, copied."""

    def config(self, code: Code) -> dict[str, Any]:
        """JSON values from which the plain network can be built anew without a super-network."""

    def operators(self, code: Code) -> tuple[Operator, ...]:
        """What the plain network runs, in its order."""

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        """Inputs of a plain network, of the shapes and types that it will be given; for timing and export."""


def check_code(space: ElasticNetwork, code: Iterable[int]) -> Code:
    """The code as a tuple. Raises SettingError naming the slot for a wrong length or a choice that is not there."""
    code = tuple(int(value) for value in code)
    if len(code) != len(space.slots):
        raise SettingError(f"The code has {len(code)} integers.", allowed=f"{len(space.slots)}, one a slot")
    for value, slot in zip(code, space.slots, strict=True):
        if not 0 <= value < slot.choices:
            raise SettingError(f"Slot '{slot.name}' is {value}.", allowed=f"0 to {slot.choices - 1}")
    return code


def count(space: ElasticNetwork) -> int:
    """How many codes there are; equal networks are counted as often as they have codes."""
    return math.prod(slot.choices for slot in space.slots)


def draw(space: ElasticNetwork, generator: np.random.Generator) -> Code:
    """A code drawn uniformly, in canonical form."""
    return space.canonical(tuple(int(generator.integers(slot.choices)) for slot in space.slots))


def one_hot(space: ElasticNetwork, codes: Sequence[Code]) -> Array:
    """(N, total choices) float64: 1 at each slot's choice, all 0 for choices without effect (method 31, step 1).

    A slot without effect is told by its canonical value: where another choice gives the same canonical code, the slot
    is unused and gives no feature.
    """
    widths = [slot.choices for slot in space.slots]
    starts = np.concatenate([[0], np.cumsum(widths)[:-1]])
    features = np.zeros((len(codes), sum(widths)))
    for row, code in enumerate(codes):
        code = space.canonical(code)
        for at, value in enumerate(code):
            if widths[at] > 1 and not _without_effect(space, code, at):
                features[row, starts[at] + value] = 1.0
    return features


def _without_effect(space: ElasticNetwork, code: Code, at: int) -> bool:
    if code[at] != 0:
        return False
    other = (*code[:at], 1, *code[at + 1 :])
    return space.canonical(other) == code


@dataclass(frozen=True)
class Found:
    """A network that a search returns: its code and config, what was predicted and what was measured of it."""

    code: Code
    config: dict[str, Any]
    quality: float
    predicted_ms: float = float("nan")
    measured_ms: float = float("nan")
    notes: dict[str, Any] = field(default_factory=dict)
