"""Fused decoder layers against transformers' own: texts, shared steps, trees, few bits, and what is left alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from ontarget.compress.gwq_linear import MANY, GwqLinear, use_packed_layers
from ontarget.compress.quantise_language_model import quantise_language_model
from ontarget.serve.fused_decoder import Beside, FusedDecoderLayer, fuse_decoder, fused_decoder
from ontarget.serve.language_model.batch_decoder import BatchDecoder, Generation
from ontarget.serve.language_model.forward import BatchedForward
from ontarget.serve.language_model.sampling import Sampling
from ontarget.serve.packed_linear import pack_linears
from ontarget.serve.speculative.target import Target

KINDS = {
    "Llama": {},
    "Mistral": {"sliding_window": None},
    "Qwen2": {},
    "Llama with biases": {"attention_bias": True, "mlp_bias": True},
    "Llama, a head of its own size": {"head_dim": 12},
    "Llama, llama3 rope": {
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        }
    },
    "Llama, no shared keys": {"num_key_value_heads": 6},
}  # fmt: skip


def made(kind: str, **more: Any) -> Any:
    name = kind.split()[0].rstrip(",")
    settings = {
        "vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 256, "initializer_range": 0.3, "eos_token_id": 2,
        "pad_token_id": 0,
    }  # fmt: skip
    config = getattr(transformers, f"{name}Config")(**{**settings, **KINDS.get(kind, {}), **more})
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for parameter in model.parameters():  # biases and norms that count
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape)
    return model


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(3, 97, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_steps_are_the_models(kind: str) -> None:
    model = made(kind)
    fused = copy.deepcopy(model)
    assert fuse_decoder(fused)
    assert all(type(layer) is FusedDecoderLayer for layer in fused.base_model.layers)
    ids = torch.tensor([prompt(40, 0), prompt(40, 1)])
    with torch.inference_mode():
        torch.testing.assert_close(fused(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
        padded = torch.ones_like(ids)
        padded[0, :7] = 0
        torch.testing.assert_close(
            fused(ids, attention_mask=padded).logits[0, 7:], model(ids, attention_mask=padded).logits[0, 7:],
            rtol=1e-4, atol=1e-4,
        )  # fmt: skip
        given = torch.tensor([prompt(9, 3)])
        texts = [one.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=30, do_sample=False)
                 for one in (model, fused)]  # fmt: skip
        assert torch.equal(*texts)


def test_requests_of_many_lengths_share_steps() -> None:
    model = made("Llama")
    fused = copy.deepcopy(model)
    assert fuse_decoder(fused) and pack_linears(fused)
    found = []
    for one in (model, fused):
        decoder = BatchDecoder(BatchedForward(one, 3), slots=3, end_ids=(2,), piece=16)
        waiting = [
            Generation(prompt(length, at), Sampling(temperature=0), 20) for at, length in enumerate((1, 37, 5, 20))
        ]
        everyone = list(waiting)
        while waiting or decoder.running:
            while waiting and len(decoder.running) < 3:
                decoder.join(waiting.pop(0))
            decoder.step()
        found.append([generation.ids for generation in everyone])
    assert found[0] == found[1]


def test_a_tree_is_read_as_before() -> None:
    model = made("Qwen2")
    fused = copy.deepcopy(model)
    assert fuse_decoder(fused)
    sees = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=torch.bool)
    scores = []
    for one in (model, fused):
        target = Target(one)
        with torch.inference_mode():
            target.read(prompt(10, 0))
            scores.append(target.logits(target.read([5, 6, 7], depths=torch.tensor([0, 1, 1]), sees=sees)))
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-4)


def test_layers_in_few_bits_stay_in_them() -> None:
    model = made("Llama", hidden_size=96, intermediate_size=128)
    packed = quantise_language_model(model, torch.arange(60).numpy(), bits=4, group=32)
    use_packed_layers(model, packed.matrices, dtype=torch.float32)
    fused = copy.deepcopy(model)
    assert fuse_decoder(fused)
    assert type(fused.base_model.layers[0].project) is Beside  # written out for each call in this type
    ids = torch.tensor([prompt(20, 0)])
    with torch.inference_mode():
        torch.testing.assert_close(fused(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


def test_layers_in_few_bits_are_joined_and_laid_out() -> None:
    """Texts that are longer and shorter than what the kernel is used for; in bfloat16, which rounds coarsely."""
    settings = {"hidden_size": 192, "intermediate_size": 128, "initializer_range": 0.1}
    packed = quantise_language_model(made("Llama", **settings), torch.arange(60).numpy(), bits=4, group=32)
    model, fused = (made("Llama", **settings).bfloat16() for _ in range(2))
    for one in (model, fused):
        use_packed_layers(one, packed.matrices)
    assert fuse_decoder(fused)
    assert type(fused.base_model.layers[0].project) is GwqLinear
    pack_linears(fused)
    for length in (5, MANY[4] + 20):
        ids = torch.tensor([prompt(length, 0)])
        with torch.inference_mode():
            found, wanted = fused(ids).logits.float(), model(ids).logits.float()
        assert float((found - wanted).norm() / wanted.norm()) < 0.03
    assert not any(one.is_inference() for one in [*fused.parameters(), *fused.buffers()])


def test_what_is_not_known_is_left_alone() -> None:
    sliding = made("Mistral", sliding_window=8)
    normed = made("Qwen3", head_dim=8)
    gelu = made("Llama", hidden_act="gelu")
    for model in (sliding, normed, gelu, made("Llama").train()):
        before = list(model.base_model.layers)
        assert not fuse_decoder(model)
        assert list(model.base_model.layers) == before


def test_for_a_while() -> None:
    model = made("Llama")
    before = list(model.base_model.layers)
    with fused_decoder(model):
        assert type(model.base_model.layers[0]) is FusedDecoderLayer
    assert list(model.base_model.layers) == before


def test_nothing_is_held_twice_and_the_plain_model_can_be_saved_afterwards(tmp_path: Path) -> None:
    model = made("Llama with biases")
    wanted = {name: value.clone() for name, value in model.state_dict().items()}
    with fused_decoder(model):
        layer = model.base_model.layers[0]
        whole = layer.project.weight.untyped_storage()
    attention = model.base_model.layers[0].self_attn
    for part in (attention.q_proj, attention.k_proj, attention.v_proj):
        assert part.weight.untyped_storage().data_ptr() == whole.data_ptr()
    model.save_pretrained(tmp_path, safe_serialization=True)
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path).state_dict()
    assert again.keys() == wanted.keys() and all(torch.equal(again[name], wanted[name]) for name in wanted)


def test_layers_whose_scores_differ_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("Llama")
    before = list(model.base_model.layers)
    monkeypatch.setattr("ontarget.serve.fused_decoder.norm", lambda layer, hidden: hidden)
    assert not fuse_decoder(model)
    assert list(model.base_model.layers) == before
