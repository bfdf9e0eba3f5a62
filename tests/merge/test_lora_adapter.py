"""Adapters of every kind that peft writes, against peft's own merging; sums of adapters; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from ontarget.errors import DataError, RunError, SettingError
from ontarget.merge.checkpoint import Checkpoint
from ontarget.merge.lora_adapter import LoraAdapter, merge_adapters
from ontarget.merge.merge_models import merge_models
from ontarget.merge.mergekit_config import plan_of

KINDS: dict[str, dict[str, Any]] = {
    "plain": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 3}},
    "bias": {"bias": "lora_only"}, "saved": {"modules_to_save": ["lm_head"]},
    "embedding": {"target_modules": ["embed_tokens", "v_proj"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=48, attention_bias=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def adapter(base: Path, folder: Path, seed: int = 1, **settings: Any) -> Path:
    """An adapter whose factors are all random, as after a training."""
    torch.manual_seed(seed)
    given = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"], **settings}
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), LoraConfig(**given))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad:
                value.add_(0.1 * torch.randn_like(value)) if "magnitude" in name else value.normal_(std=0.1)
    model.save_pretrained(folder)
    return folder


def merged_by_peft(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    model: Any = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), folder)
    found: dict[str, torch.Tensor] = model.merge_and_unload().state_dict()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_on_its_base_is_what_peft_merges(kind: str, base: Path, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "adapter", **KINDS[kind])
    weights = LoraAdapter(folder).on(Checkpoint(base))
    expected = merged_by_peft(base, folder)
    changed = 0
    for name, entry in weights.entries.items():
        found = torch.from_numpy(weights.read(name)).reshape(entry.shape)
        torch.testing.assert_close(found, expected[name], rtol=1e-5, atol=1e-6)
        start, stop = entry.numel // 3, entry.numel // 2 + 1
        torch.testing.assert_close(torch.from_numpy(weights.read(name, start, stop)), found.reshape(-1)[start:stop])
        changed += not torch.equal(found.reshape(-1), torch.from_numpy(Checkpoint(base).read(name)))
    assert changed >= 3


@pytest.mark.parametrize("kind", KINDS)
def test_one_adapter_at_weight_1_stays_itself(kind: str, base: Path, tmp_path: Path) -> None:
    """As an adapter and as a whole model; peft's own weighting changes several of these kinds."""
    one, two = adapter(base, tmp_path / "one", **KINDS[kind]), adapter(base, tmp_path / "two", 2)
    copied = merge_adapters([LoraAdapter(one), LoraAdapter(two)], [1.0, 0.0], tmp_path / "copied")
    for name, value in load_file(one / "adapter_model.safetensors").items():
        assert torch.equal(load_file(copied / "adapter_model.safetensors")[name], value)
    assert (copied / "adapter_config.json").read_bytes() == (one / "adapter_config.json").read_bytes()
    whole = merge_models(plan_of("ties", [str(one), str(two)], [1.0, 0.0], base=str(base)), tmp_path / "whole")
    expected = merged_by_peft(base, one)
    for name, value in load_file(whole / "model.safetensors").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def test_a_sum_of_adapters_is_the_sum_of_their_changes(base: Path, tmp_path: Path) -> None:
    one = adapter(base, tmp_path / "one")
    two = adapter(base, tmp_path / "two", 2, use_rslora=True, r=2, target_modules=["q_proj", "up_proj"])
    joined = merge_adapters([LoraAdapter(one), LoraAdapter(two)], [0.7, -0.4], tmp_path / "joined")
    origin, first, second = (Checkpoint(base), merged_by_peft(base, one), merged_by_peft(base, two))
    for name, value in merged_by_peft(base, joined).items():
        start = torch.from_numpy(origin.read(name)).reshape(value.shape)
        expected = start + 0.7 * (first[name] - start) - 0.4 * (second[name] - start)
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    plan = plan_of("task_arithmetic", [str(one), f"{base}+{two}"], [0.7, -0.4], base=str(base))
    whole = load_file(merge_models(plan, tmp_path / "whole") / "model.safetensors")
    for name, value in merged_by_peft(base, joined).items():
        torch.testing.assert_close(whole[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["dora", "bias", "saved"])
def test_sums_that_are_no_adapter_are_refused(kind: str, base: Path, tmp_path: Path) -> None:
    one, two = adapter(base, tmp_path / "one", **KINDS[kind]), adapter(base, tmp_path / "two", 2)
    with pytest.raises(SettingError, match=r"(?s)its sum with others is no adapter.*--base"):
        merge_adapters([LoraAdapter(one), LoraAdapter(two)], [0.5, 0.5], tmp_path / "joined")


def _kind(folder: Path) -> None:
    _config(folder, peft_type="IA3")


def _unknown(folder: Path) -> None:
    _config(folder, use_kasa=True)


def _config(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _pissa(folder: Path) -> None:
    _config(folder, init_lora_weights="pissa")


def _pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _other_base(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name.replace("q_proj", "query"): value for name, value in tensors.items()},
              folder / "adapter_model.safetensors")  # fmt: skip


def _other_shape(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name: torch.cat([value, value]) if "lora_B" in name else value for name, value in tensors.items()},
              folder / "adapter_model.safetensors")  # fmt: skip


def _more(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(iter(tensors)).replace("lora_A", "lora_diag")
    save_file({**tensors, name: torch.ones(4)}, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_kind, "of peft's kind IA3"), (_unknown, "sets use_kasa = True, which is not known here"),
        (_pissa, "sets init_lora_weights = 'pissa', which is not known here"),
        (_pickled, "only pickled weights, which can run code"), (_other_base, "changes '.*query.weight', which"),
        (_other_shape, r"of shape \(48, 24\)|of shape"), (_more, "lora_diag.*not known here"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused_by_name(change: Any, message: str, base: Path, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "adapter")
    change(folder)
    with pytest.raises((DataError, SettingError, RunError), match=message):
        LoraAdapter(folder).on(Checkpoint(base))
