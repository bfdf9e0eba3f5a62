"""Sampling against transformers' own processors and against hand-worked values."""

from __future__ import annotations

import pytest
import torch

from ontarget.errors import SettingError
from ontarget.serve.language_model.sampling import Sampling, choose, draws
from ontarget.serve.token_law import token_law


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"), [(1.0, 1.0, 0), (0.5, 1.0, 0), (1.7, 0.9, 0), (1.0, 0.3, 0), (0.8, 0.7, 9)]
)
def test_probabilities_are_those_of_transformers(temperature: float, top_p: float, top_k: int) -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = 3 * torch.randn(60, generator=torch.Generator().manual_seed(1))
    expected = logits[None]
    ids = torch.zeros(1, 1, dtype=torch.long)
    for processor in (
        TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k or 60), TopPLogitsWarper(top_p)
    ):  # fmt: skip
        expected = processor(ids, expected)
    found = token_law(logits.double(), temperature, top_p, top_k)
    torch.testing.assert_close(found, expected[0].double().softmax(0), rtol=1e-4, atol=1e-7)
    assert float(found.sum()) == pytest.approx(1.0)


def test_a_draw_falls_where_the_sums_say() -> None:
    logits = torch.tensor([0.2, 0.5, 0.3]).log()
    at = [choose(logits, Sampling(), draw) for draw in (0.0, 0.19, 0.21, 0.69, 0.71, 0.999999999)]
    assert at == [0, 0, 1, 1, 2, 2]
    # top_p 0.7 keeps 0.5 and 0.3: sums 0, 0.625, 1
    assert [choose(logits, Sampling(top_p=0.7), draw) for draw in (0.0, 0.62, 0.63, 0.9999)] == [1, 1, 2, 2]
    assert choose(logits, Sampling(top_k=2), 0.0) == 1


def test_frequencies_are_the_probabilities() -> None:
    logits = torch.tensor([0.1, 0.6, 0.3]).log()
    random = torch.rand(4000, generator=draws(5), dtype=torch.float64).tolist()
    counts = torch.bincount(torch.tensor([choose(logits, Sampling(), draw) for draw in random]), minlength=3)
    torch.testing.assert_close(counts / 4000, torch.tensor([0.1, 0.6, 0.3]), atol=0.03, rtol=0)


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(top_p=0), Sampling(top_k=1)])
def test_greedy_takes_the_likeliest(sampling: Sampling) -> None:
    assert sampling.greedy
    assert choose(torch.tensor([1.0, 5.0, 4.999]), sampling, 0.999) == 1


def test_a_tiny_temperature_does_not_overflow() -> None:
    chances = token_law(torch.tensor([500.0, 499.0, -500.0]), 1e-30)
    assert chances.tolist() == [1.0, 0.0, 0.0]


def test_a_seed_gives_the_same_numbers_and_none_other_ones() -> None:
    assert torch.rand(3, generator=draws(-7)).equal(torch.rand(3, generator=draws(-7)))
    assert not torch.rand(3, generator=draws(None)).equal(torch.rand(3, generator=draws(None)))


@pytest.mark.parametrize(
    "settings", [{"temperature": -0.1}, {"temperature": 2.1}, {"temperature": float("nan")}, {"top_p": 1.01},
                 {"top_p": -1}, {"top_k": -1}, {"seed": 2**63}],
)  # fmt: skip
def test_settings_outside_their_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(SettingError, match=next(iter(settings))):
        Sampling(**settings)  # type: ignore[arg-type]
