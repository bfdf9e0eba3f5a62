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


def token_law(logits: Tensor, temperature: float, top_p: float = 1.0, top_k: int = 0) -> Tensor:
    """Probabilities (..., V), float64 where ``logits`` are, else float32. logits: finite.

    Temperature, then top_k (tokens that are kept; 0: all), then top_p: the fewest likeliest tokens that hold it
    together, in the order of transformers. A temperature of 0 gives 1 to the best token (the first of equals).
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    scaled = (logits - logits.amax(-1, keepdim=True)) / temperature  # at most 0: a small temperature cannot overflow
    if 0 < top_k < scaled.shape[-1]:
        scaled = scaled.masked_fill(scaled < scaled.topk(top_k).values[..., -1:], -torch.inf)
    law = scaled.softmax(-1)
    if top_p < 1:
        ordered, order = torch.sort(law, dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        before[..., 0] = -1.0  # the first one always stays
        law = torch.zeros_like(law).scatter_(-1, order, ordered.masked_fill(before >= top_p, 0.0))
        law = law / law.sum(-1, keepdim=True)
    return law


def draw(law: Tensor, generator: torch.Generator) -> int:
    """One token from a law (V,); ``generator`` lives on the CPU."""
    return int(torch.multinomial(law.cpu(), 1, generator=generator))
