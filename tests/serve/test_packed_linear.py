"""Packed linear layers give what plain ones give."""

from __future__ import annotations

import platform

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from ontarget.errors import RunError
from ontarget.serve.packed_linear import PackedLinear, can_pack, pack_linears, packed_linears
from ontarget.testing.tiny_llama import tiny_llama

# Elsewhere layers stay plain; here a PyTorch whose operators changed must be noticed.
pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or not torch.backends.mkldnn.is_available(), reason="no oneDNN for this processor"
)


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 40), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_packed_layer_is_the_plain_one(inputs: int, outputs: int, rows: int, bias: bool) -> None:
    plain = nn.Linear(inputs, outputs, bias=bias)
    x = torch.randn(2, rows, inputs)
    with torch.no_grad():
        torch.testing.assert_close(PackedLinear(plain)(x), F.linear(x, plain.weight, plain.bias), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_packed_model_says_the_same_and_comes_back(dtype: torch.dtype) -> None:
    model = tiny_llama().to(dtype).eval()
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    before, keys = model(ids).logits, list(model.state_dict())
    with packed_linears(model):
        assert not any(type(one) is nn.Linear for one in model.modules())
        tolerance = 1e-4 if dtype == torch.float32 else 3e-2
        torch.testing.assert_close(model(ids).logits, before, rtol=tolerance, atol=tolerance)
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=0)


def test_what_cannot_be_packed_stays() -> None:
    assert not can_pack(nn.Linear(4, 4, dtype=torch.float64))
    assert not can_pack(nn.Linear(4, 4, device="meta"))
    network = nn.Sequential(nn.Linear(4, 4, dtype=torch.float64), nn.Linear(4, 4))
    assert pack_linears(network) == 1
    assert type(network[0]) is nn.Linear and isinstance(network[1], PackedLinear)


def test_embeddings_that_share_the_output_layer_keep_their_weight() -> None:
    model = tiny_llama()
    pack_linears(model)
    head = model.get_output_embeddings()
    assert isinstance(head, PackedLinear) and head.weight is not None
    layer = model.model.layers[0].mlp.gate_proj
    assert isinstance(layer, PackedLinear) and layer.weight is None


def test_a_packed_model_is_not_saved_without_its_weights() -> None:
    model = tiny_llama()
    pack_linears(model)
    with pytest.raises(RunError, match="save the model before"):
        model.state_dict()
