"""The next token from the logits: pure functions, one random number in, one token out.

The law is that of token_law.py. The draw is made by inverting the distribution's sum
at a number of [0, 1), so that a seed gives the same tokens on every device and beside every other request.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ontarget.errors import SettingError
from ontarget.serve.token_law import token_law


@dataclass(frozen=True)
class Sampling:
    """temperature: 0 takes the likeliest token; at most 2. top_p: share of probability kept, 0 to 1.

    top_k: tokens kept; 0 keeps all. seed: None draws one. Raises SettingError.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, low, high in (("temperature", 0, 2), ("top_p", 0, 1)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise SettingError(f"{name} is {value}.", allowed=f"{low} to {high}", option=name)
        if self.top_k < 0:
            raise SettingError(f"top_k is {self.top_k}.", allowed="0 or more", option="top_k")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise SettingError(f"seed is {self.seed}.", allowed="a number of 64 bits", option="seed")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0 or self.top_p == 0 or self.top_k == 1


def draws(seed: int | None) -> torch.Generator:
    """A source of random numbers of its own, so that other requests do not shift it."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def choose(logits: Tensor, sampling: Sampling, draw: float) -> int:
    """The token at ``draw`` of [0, 1) in the distribution; the likeliest one where sampling is greedy."""
    if sampling.greedy:
        return int(logits.argmax())
    chances = token_law(logits.double(), sampling.temperature, sampling.top_p, sampling.top_k)
    sums = chances.cumsum(0)
    at = int(torch.searchsorted(sums, draw * sums[-1], right=True))
    if at >= len(sums) or chances[at] == 0:  # rounding at the upper end
        at = int(chances.nonzero()[-1])
    return at
