"""The GPTQ that GWQ's claim is compared with: no weaker than it has to be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ontarget.claims import find_claims, load_claim
from ontarget.testing.tiny_llama import tiny_llama


@pytest.fixture(scope="module")
def claim() -> Any:
    return load_claim(find_claims()["55"])


def nearest(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """Rounding to the nearest of each group's levels."""
    found = []
    for part in weight.double().split(group, 1):
        low = part.amin(1, keepdim=True).half().double()
        scale = ((part.amax(1, keepdim=True) - low) / (2**bits - 1)).half().double()
        found.append(((part - low) / scale).round().clamp(0, 2**bits - 1) * scale + low)
    return torch.cat(found, 1).float()


def test_inputs_without_correlation_leave_nothing_to_correct(claim: Any) -> None:
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    made = claim.gptq(weight, torch.eye(40), bits=3, group=8)
    torch.testing.assert_close(made, nearest(weight, 3, 8), rtol=1e-5, atol=1e-6)


def test_correlated_inputs_lose_less_of_the_output_than_by_rounding(claim: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(400, 5, generator=generator) @ torch.randn(5, 40, generator=generator)
    inputs += 0.3 * torch.randn(400, 40, generator=generator)
    weight = torch.randn(6, 40, generator=generator)
    made = claim.gptq(weight, inputs.T @ inputs / 400, bits=3, group=8)

    def lost(rounded: torch.Tensor) -> float:
        return float(((rounded - weight) @ inputs.T).square().mean())

    assert lost(made) < 0.5 * lost(nearest(weight, 3, 8))


@torch.no_grad()
def test_each_layer_is_rounded_with_the_inputs_of_the_rounded_ones_before(claim: Any) -> None:
    model = tiny_llama(num_hidden_layers=2)
    names = [name for name, one in model.named_modules() if isinstance(one, torch.nn.Linear) and name != "lm_head"]
    ids = torch.randint(0, 40, (60,), generator=torch.Generator().manual_seed(2))
    wanted = {name: dict(model.named_modules())[name].weight.clone() for name in names}
    claim.gptq_model(model, names, ids)
    made = {name: dict(model.named_modules())[name].weight.clone() for name in names}
    again = tiny_llama(num_hidden_layers=2)
    modules = dict(again.named_modules())
    for layer in range(2):  # the same, one whole pass a layer
        moments = claim.inputs_of(again, names, ids)
        for name in names:
            if f"layers.{layer}." in name:
                modules[name].weight.copy_(claim.gptq(wanted[name], moments[name], bits=3, group=40))
                torch.testing.assert_close(made[name], modules[name].weight, rtol=1e-4, atol=1e-5)
