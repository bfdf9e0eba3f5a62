"""GWQ: rounding by hand, packing, bits counted, outliers by gradient; better than other outliers on a small model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ontarget.compress.gwq import average_bits, gwq, outliers, pack, quantized, unpack
from ontarget.errors import DataError, SettingError


def test_rounding_by_hand() -> None:
    weight = torch.tensor([[0.0, 1.0, 2.0, 3.0, 0.4, 1.6, 2.4, 100.0], [-1.0] * 8])
    kept = torch.zeros(2, 8, dtype=torch.bool)
    kept[0, 7] = True
    found = quantized(weight, kept, bits=2, group=8)
    assert found.codes[0, :7].tolist() == [0, 1, 2, 3, 0, 2, 2]
    assert found.dequantized()[0].tolist() == [0, 1, 2, 3, 0, 2, 2, 100]
    assert found.dequantized()[1].tolist() == [-1.0] * 8  # a constant group has a scale of 0
    assert found.starts.tolist() == [0, 1, 1] and found.columns.tolist() == [7]
    # 2 bits * 8 = 2 bytes a row, scale and offset 4, an outlier 4, three row starts 12.
    assert found.stored_bytes == 2 * (2 + 4) + 4 + 12
    everything = quantized(weight, torch.ones(2, 8, dtype=torch.bool), bits=2, group=8)
    torch.testing.assert_close(everything.dequantized(), weight, rtol=1e-3, atol=0)  # 16 bits


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 8), st.integers(1, 40), st.integers(8, 24), st.integers(0, 2**31))
def test_errors_are_half_a_step_and_packing_is_undone(bits: int, inputs: int, group: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, inputs, generator=generator)
    kept = torch.rand(5, inputs, generator=generator) < 0.1
    found = quantized(weight, kept, bits=bits, group=group)
    error = (found.dequantized() - weight).abs()
    step = found.scale.float().repeat_interleave(group, 1)[:, :inputs]
    assert (error <= torch.where(kept, torch.tensor(1e-2), 0.5 * step + 0.02 * (1 + step))).all()
    assert torch.equal(unpack(pack(found.codes, bits), bits, inputs), found.codes)
    assert pack(found.codes, bits).shape == (5, -(-inputs * bits // 8))


def test_outliers_are_exactly_the_largest() -> None:
    importance = torch.tensor([[1.0, 5.0, 2.0], [4.0, 4.0, 0.0]])
    assert outliers(importance, 0.34).tolist() == [[False, True, False], [True, False, False]]
    assert not outliers(importance, 0.0).any()


class Small(torch.nn.Module):
    """One layer that decides, with a few large weights that matter little."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.lm_head = torch.nn.Linear(64, 64, bias=False), torch.nn.Linear(64, 8, bias=False)
        with torch.no_grad():
            self.first.weight[:, :8] *= 6  # inputs that are nearly 0
        self.inputs = torch.randn(256, 64)
        self.inputs[:, :8] *= 0.01
        self.labels = self(self.inputs).argmax(1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.lm_head(torch.tanh(self.first(inputs)))
        return scores

    def loss(self) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self(self.inputs), self.labels)


def test_a_model_is_quantised_in_place_and_its_head_is_left_alone() -> None:
    model = Small()
    before, head = model.first.weight.clone(), model.lm_head.weight.clone()
    found = gwq(model, model.loss, bits=3, group=16, share=0.05)
    assert list(found) == ["first"] and torch.equal(model.lm_head.weight, head)
    assert torch.equal(model.first.weight, found["first"].dequantized())
    assert model.first.weight.requires_grad and model.first.weight.grad is None
    kept = int(0.05 * before.numel())
    assert len(found["first"].columns) == kept
    assert average_bits(found) == pytest.approx(3 + 32 / 16 + 32 * kept / before.numel() + 32 * 65 / before.numel())
    # What is kept has the largest gradient, not the largest weight: the large columns hardly matter.
    assert (found["first"].columns >= 8).float().mean() > 0.9


def test_bad_input_is_named() -> None:
    model = Small()
    with pytest.raises(SettingError, match="bits is 1"):
        gwq(model, model.loss, bits=1)
    with pytest.raises(SettingError, match=r"share is 0\.5"):
        gwq(model, model.loss, share=0.5)
    with pytest.raises(DataError, match="no linear layers"):
        gwq(torch.nn.ReLU(), model.loss)
    with pytest.raises(DataError, match="calibration loss is nan"):
        gwq(model, lambda: model.loss() * float("nan"))
    other: Any = torch.nn.ModuleDict({"used": model, "idle": torch.nn.Linear(3, 3)})
    with pytest.raises(DataError, match="'idle' takes no part in the loss"):
        gwq(other, model.loss)
    with pytest.raises(DataError, match="too large for 16 bits"):
        quantized(torch.full((1, 8), 1e6), torch.zeros(1, 8, dtype=torch.bool))
