import numpy as np
import pytest
import torch

from ontarget.compress.fused_bert import FusedBert, fused_encoders
from ontarget.pool import load, resolve


def test_the_lean_form_equals_the_original_with_and_without_padding() -> None:
    loaded = load(resolve("zoo:minilm"))
    model = loaded.encoder.model
    tensors = loaded.preprocess(["short", "a rather longer text, so that the first one is padded"])
    ids, mask = (torch.from_numpy(value) for value in tensors.values())
    fused = FusedBert(model).eval()
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).last_hidden_state
        found = fused(ids, mask).last_hidden_state
    kept = mask.bool()
    np.testing.assert_allclose(found[kept], expected[kept], atol=2e-5)


def test_the_network_is_itself_again_afterwards() -> None:
    loaded = load(resolve("zoo:minilm"))
    before = loaded.encoder.model
    with fused_encoders(loaded.encoder) as count:
        assert count == 1
        assert loaded.encoder.model is not before
    assert loaded.encoder.model is before
    with pytest.raises(RuntimeError, match="in between"), fused_encoders(loaded.encoder):
        raise RuntimeError("in between")
    assert loaded.encoder.model is before


def test_other_networks_are_left_alone() -> None:
    with fused_encoders(torch.nn.Sequential(torch.nn.Linear(2, 2))) as count:
        assert count == 0
