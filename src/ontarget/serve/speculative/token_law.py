"""The law that a next token is drawn from: scores at a temperature, cut to a nucleus (Holtzman et al., 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from ontarget.errors import SettingError


def check_sampling(temperature: float, top_p: float) -> None:
    """Raises SettingError."""
    if not 0 <= temperature <= 100:
        raise SettingError(f"temperature is {temperature}.", allowed="0 (greedy) to 100", option="temperature")
    if not 0 < top_p <= 1:
        raise SettingError(f"top_p is {top_p}.", allowed="above 0 to 1", option="top_p")


def token_law(logits: Tensor, temperature: float, top_p: float = 1.0) -> Tensor:
    """Probabilities, float32 like ``logits`` (..., V): the fewest likeliest tokens that hold ``top_p`` together.

    A temperature of 0 gives 1 to the best token (the first of equals).
    """
    if temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.zeros_like(logits, dtype=torch.float32).scatter_(-1, best, 1.0)
    law = (logits.float() / temperature).softmax(-1)
    if top_p < 1:
        ordered, order = torch.sort(law, dim=-1, descending=True, stable=True)
        # What lies before a token, itself not counted: the first one always stays.
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0.0)
        law = torch.zeros_like(law).scatter_(-1, order, ordered)
        law = law / law.sum(-1, keepdim=True)
    return law


def draw(law: Tensor, generator: torch.Generator) -> int:
    """One token from a law (V,); ``generator`` lives on the CPU."""
    return int(torch.multinomial(law.cpu(), 1, generator=generator))
