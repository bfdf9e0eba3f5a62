"""What is served, bundled and timed in a fit is one and the same form of a language model."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ontarget.adapt.answers import answer_losses, generate_answers
from ontarget.plan.language_speed import measure_speed
from ontarget.pool.language_models import load_language_model
from ontarget.serve.fused_decoder import FusedDecoderLayer
from ontarget.serve.language_bundle import bundled_type, load_language_bundle, write_language_bundle
from ontarget.serve.language_model.serve_language_model import served_type
from ontarget.serve.lay_out_to_answer import lay_out_to_answer
from ontarget.serve.packed_linear import PackedLinear
from ontarget.testing.tiny_llama import letter_tokenizer, write_tiny_llama

PROMPTS = ["ab", "c", "hello you", "abcdefgh" * 4]  # of many lengths, so that a batch is padded


def laid_out(model: Any) -> bool:
    kinds = {type(module) for module in model.modules()}
    return FusedDecoderLayer in kinds and PackedLinear in kinds and torch.nn.Linear not in kinds


def test_answers_and_losses_are_those_of_the_plain_model(tiny_language_model: Path) -> None:
    source = load_language_model(str(tiny_language_model))
    said = generate_answers(source, PROMPTS, max_new_tokens=12)
    losses, counts = answer_losses(source, PROMPTS, said)
    lay_out_to_answer(source.model)
    assert laid_out(source.model)
    assert generate_answers(source, PROMPTS, max_new_tokens=12) == said
    again, same = answer_losses(source, PROMPTS, said)
    assert again == pytest.approx(losses, rel=1e-4) and (same == counts).all()


def test_a_model_is_timed_as_it_answers(tiny_language_model: Path) -> None:
    source = load_language_model(str(tiny_language_model))
    plain = sum(one.numel() for one in source.model.parameters()) * 4 / 2**20
    found = measure_speed(source, PROMPTS[:2], tokens=4, training_tokens=3, memory=False)
    assert laid_out(source.model)
    assert found["size_mb"] == pytest.approx(plain)  # of the weights as they were trained
    assert found["train_s_per_row"] > 0 and found["latency_ms"] > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "4 bits (GWQ)"])
def test_a_bundle_answers_and_is_served_in_the_form_that_was_chosen(
    tiny_language_model: Path, tmp_path: Path, dtype: str
) -> None:
    info = {"method": "as_is", "source": "x", "dtype": dtype, "instruction": "", "max_new_tokens": 4, "examples": []}
    write_language_bundle(tmp_path / "bundle", tiny_language_model, info, self_test={"prompts": [], "answers": []})
    bundle = load_language_bundle(tmp_path / "bundle")
    assert bundle.source is not None and laid_out(bundle.source.model)
    known = dtype if dtype in ("float32", "bfloat16") else None
    assert str(bundle.source.model.dtype) == f"torch.{known or 'float32'}"
    assert bundled_type(tmp_path / "bundle") == known
    assert served_type(str(tmp_path / "bundle"), "cpu") == (known or "float32")
    assert served_type(str(tmp_path / "bundle"), "cuda") is None


def test_a_plain_folder_is_served_in_float32(tiny_language_model: Path) -> None:
    assert json.loads((tiny_language_model / "config.json").read_text())["model_type"] == "llama"
    assert bundled_type(tiny_language_model) is None and served_type(str(tiny_language_model), "cpu") == "float32"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is mapped")
def test_the_file_that_weights_were_mapped_from_is_let_go(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "model", letter_tokenizer(), dtype="bfloat16", tie_word_embeddings=True)

    def mapped() -> bool:
        gc.collect()
        return str(folder / "model.safetensors") in Path("/proc/self/maps").read_text()

    source = load_language_model(str(folder), dtype="bfloat16")
    said = generate_answers(source, PROMPTS, max_new_tokens=4)
    if not mapped():
        pytest.skip("this release of safetensors copies")
    lay_out_to_answer(source.model)
    assert not mapped()
    assert generate_answers(source, PROMPTS, max_new_tokens=4) == said
