"""Merging of checkpoints in parts equals merging whole tensors; files, mergekit's YAML, guard rails, bad input."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ontarget.errors import DataError, RunError, SettingError
from ontarget.merge import merge_checkpoints as module
from ontarget.merge.breadcrumbs import breadcrumbs
from ontarget.merge.layer_swapping import layer_swapping
from ontarget.merge.merge_models import PLAN, merge_models, swap_plan
from ontarget.merge.mergekit_config import MergePlan, evaluate, plan_of, read_plan, write_plan
from ontarget.merge.streamed_safetensors import SafetensorsReader
from ontarget.merge.ties import ties


def write_model(folder: Path, seed: int, *, dtype: torch.dtype = torch.bfloat16, near: Path | None = None) -> Path:
    """A Llama of four layers, or one tuned from that in ``near``, with a tokenizer."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=40, hidden_size=24, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=48, max_position_embeddings=32,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype)
    if near is not None:
        state = load_file(near / "model.safetensors")
        generator = torch.Generator().manual_seed(seed)
        model.load_state_dict({
            name: (value.float() + 0.02 * torch.randn(value.shape, generator=generator)).to(dtype)
            for name, value in state.items()
        })  # fmt: skip
    model.save_pretrained(folder)
    vocabulary = {f"w{at}": at for at in range(40)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A base and two models tuned from it."""
    folder = tmp_path_factory.mktemp("family")
    base = write_model(folder / "base", 0)
    return base, write_model(folder / "one", 1, near=base), write_model(folder / "two", 2, near=base)


def state(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("method", ["ties", "breadcrumbs"])
def test_parts_equal_whole_tensors(
    method: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write_model(tmp_path / "base", 0, dtype=dtype)
    models = [write_model(tmp_path / f"m{at}", at, dtype=dtype, near=base) for at in (1, 2)]
    plan = plan_of(method, [str(model) for model in models], [0.7, 0.4], base=str(base), density=0.3)
    monkeypatch.setattr(module, "PART", 100)
    merged = state(merge_models(plan, tmp_path / "merged"))
    origin, tuned = state(base), [state(model) for model in models]
    whole: Any = ties if method == "ties" else breadcrumbs
    for name, value in merged.items():
        # The task vectors are those of the checkpoint's own type.
        vectors = [(one[name].float() - origin[name].float()).to(dtype).float() for one in tuned]
        zero = torch.zeros(value.shape)
        expected = origin[name].float() + whole(zero, vectors, weights=[0.7, 0.4], density=0.3)
        assert value.dtype == dtype
        torch.testing.assert_close(
            value.float(), expected.to(dtype).float(), rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6
        )


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "breadcrumbs"])
def test_one_model_at_weight_1_is_itself_bit_for_bit(method: str, family: Any, tmp_path: Path) -> None:
    base, one, two = family
    plan = plan_of(method, [str(one), str(two)], [1.0, 0.0], base=str(base))
    merged = merge_models(plan, tmp_path / "merged")
    assert (merged / "model.safetensors").stat().st_size == (one / "model.safetensors").stat().st_size
    for name, value in state(one).items():
        assert torch.equal(state(merged)[name].view(torch.int16), value.view(torch.int16))


def test_the_folder_is_a_model_that_transformers_and_mergekit_s_plan_know(family: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, one, two = family
    plan = plan_of("ties", [str(one), str(two)], [1, 1], base=str(base), density=0.5)
    merged = merge_models(plan, tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(merged)
    assert len(AutoTokenizer.from_pretrained(merged)) == 40
    with torch.inference_mode():
        assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()
    assert read_plan(merged / PLAN) == plan
    with safe_open(merged / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    with pytest.raises(RunError, match="exists"):
        merge_models(plan, merged)


def test_shards_and_another_type(family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    _, one, two = family
    monkeypatch.setattr(module.merge_checkpoints, "__kwdefaults__",
                        {**module.merge_checkpoints.__kwdefaults__, "shard_bytes": 8000})  # fmt: skip
    plan = MergePlan(
        merge_method="linear", models=plan_of("linear", [str(one), str(two)], [1, 1]).models, dtype="float32"
    )
    merged = merge_models(plan, tmp_path / "merged")
    names = sorted(path.name for path in merged.glob("*.safetensors"))
    assert len(names) > 2 and names[0] == f"model-00001-of-{len(names):05}.safetensors"
    model = AutoModelForCausalLM.from_pretrained(merged)
    first, second = state(one), state(two)
    for name, value in model.state_dict().items():
        if name in first:
            torch.testing.assert_close(value.float(), (first[name].float() + second[name].float()) / 2)
    again = merge_models(plan_of("linear", [str(merged)], [1.0]), tmp_path / "again")  # shards are read too
    assert torch.equal(state(again)["model.norm.weight"], state(merged)["model.norm.weight"])
    assert json.loads((merged / "config.json").read_text())["dtype"] == "float32"


def test_layer_swapping(family: Any, tmp_path: Path) -> None:
    _, task, language = family
    assert layer_swapping(32) == (1.0,) * 5 + (0.5,) + (0.0,) * 23 + (0.5,) + (1.0,) * 2
    assert layer_swapping(4, bottom=1, top=1, transition=0) == (1.0, 0.0, 0.0, 1.0)
    with pytest.raises(SettingError, match="bottom is 3, top 2"):
        layer_swapping(4, bottom=3, top=2, transition=0)
    plan = swap_plan(str(task), str(language), 4, bottom=1, top=1, transition=0)
    merged, of_task, of_language = (state(one) for one in (merge_models(plan, tmp_path / "merged"), task, language))
    for name, value in merged.items():
        expected = of_task if ".layers.1." in name or ".layers.2." in name else of_language
        assert torch.equal(value, expected[name]), name
    plan = swap_plan(str(task), str(language), 4, bottom=1, top=1, transition=1)
    merged = state(merge_models(plan, tmp_path / "soft"))
    name = "model.layers.1.mlp.up_proj.weight"
    expected = ((of_task[name].float() + of_language[name].float()) / 2).to(torch.bfloat16)
    assert torch.equal(merged[name], expected)
    assert read_plan(tmp_path / "soft" / PLAN) == plan


def test_parameters_of_a_plan(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    assert evaluate(0.3, name, 0.5) == 0.3
    assert evaluate([0, 1, 0.5], name, 0.25) == pytest.approx(0.5)
    assert evaluate([{"filter": "self_attn", "value": 1}, {"value": [0, 1]}], name, 0.75) == pytest.approx(0.75)
    assert evaluate([{"filter": "self_attn", "value": 1}], name, 0.75) is None
    with pytest.raises(SettingError, match="A parameter of the plan is 'much'"):
        evaluate("much", name, 0.0)
    (tmp_path / "plan.yml").write_text(
        "merge_method: ties\nbase_model: base\nparameters: {density: 0.5, normalize: true}\nmodels:\n"
        "  - model: base\n  - model: one\n    parameters: {weight: [0, 1], density: 0.3}\n"
    )
    plan = read_plan(tmp_path / "plan.yml")
    assert plan.locators() == ["base", "one"]
    assert plan.value("one", "weight", name, 3) == 0.5 and plan.value("one", "density", name, 3) == 0.3
    assert plan.value("one", "weight", "model.embed_tokens.weight", 3) == 0.0
    assert plan.value("one", "weight", "lm_head.weight", 3) == 1.0
    assert read_plan_of(write_plan(plan), tmp_path) == plan


def read_plan_of(text: str, folder: Path) -> MergePlan:
    (folder / "again.yml").write_text(text)
    return read_plan(folder / "again.yml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge_method: tise\nmodels: [{model: a}]", "did you mean 'ties'"),
        ("merge_method: ties\nmodels: [{model: a, wieght: 1}]", "models.0.wieght"),
        ("merge_method: linear", "models or slices"),
        ("- a\n- b", "no merge plan"),
        ("merge_method: linear\nslices: [{sources: [{model: a, layer_range: [4, 8]}]}]", "all layers in their order"),
        ("a: [", "cannot be read"),
    ],
)
def test_plans_that_cannot_be_used(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises((DataError, SettingError), match=message):
        read_plan_of(text, tmp_path)


def damaged(folder: Path, base: Path, change: Any) -> Path:
    import shutil

    shutil.copytree(base, folder)
    change(folder)
    return folder


def _with(name: str, value: Any) -> Any:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value(tensors[name])
        save_file(tensors, folder / "model.safetensors")

    return change


def _nan(value: torch.Tensor) -> torch.Tensor:
    found = value.clone()
    found.view(-1)[-1] = np.nan
    return found


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def _tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"w7"', '"v7"'))


def _outside(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../base/model.safetensors"}}')


def _no_names(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": ["model.safetensors"]}}')


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - 100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_with("model.norm.weight", _nan), "'model.norm.weight' of .*bad.* not finite"),
        (_with("model.norm.weight", None), "lacks the tensor 'model.norm.weight'"),
        (_with("lm_head.weight", lambda value: value[:39].contiguous()), r"'lm_head.weight' has shape \(40, 24\)"),
        (_pickled, "pickled weights alone"),
        (_cut, "cut off, damaged.*it should have"),
        (_tokenizer, "token 'v7' is missing and 7"),
        (_outside, "points outside of its folder"),
        (_no_names, "no weight_map of names"),
    ],
)
def test_bad_models_are_named_and_nothing_is_left(change: Any, message: str, family: Any, tmp_path: Path) -> None:
    base, one, _ = family
    bad = damaged(tmp_path / "bad", one, change)
    plan = plan_of("ties", [str(one), str(bad)], [1, 1], base=str(base))
    with pytest.raises((DataError, SettingError), match=message):
        merge_models(plan, tmp_path / "out" / "merged")
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_headers_that_lie_are_refused(tmp_path: Path) -> None:
    def file(header: Any, data: bytes = b"\0" * 16) -> Path:
        content = json.dumps(header).encode()
        (tmp_path / "x.safetensors").write_bytes(len(content).to_bytes(8, "little") + content + data)
        return tmp_path / "x.safetensors"

    def tensor(begin: int, end: int, shape: Any = (4,), dtype: str = "F32") -> dict[str, Any]:
        return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}

    assert SafetensorsReader(file({"a": tensor(0, 16)})).read("a").tolist() == [0, 0, 0, 0]
    for header in (
        {"a": tensor(0, 16, (5,))}, {"a": tensor(0, 16), "b": tensor(8, 16, (2,))}, {"a": tensor(0, 8, (2,))},
        {"a": tensor(-16, 0)}, {"a": tensor(0, 16, dtype="F4")}, {"a": [0, 16]},
        {"a": tensor(0, 10**15, (10**15 // 4,))}, [1],
    ):  # fmt: skip
        with pytest.raises(DataError, match="damaged"):
            SafetensorsReader(file(header))
    (tmp_path / "y.safetensors").write_bytes(b"\xff" * 8 + b"{}")
    with pytest.raises(DataError, match="its header does not fit"):
        SafetensorsReader(tmp_path / "y.safetensors")


def test_a_listed_base_has_no_part_and_rescaling_is_not_passed_over(family: Any, tmp_path: Path) -> None:
    base, one, two = family
    plan = plan_of("ties", [str(one), str(two)], [1, 1], base=str(base), density=0.5)
    listed = plan.model_dump(exclude_defaults=True)
    listed["models"] = [{"model": str(base)}, *listed["models"]]
    first, second = (
        state(merge_models(given, tmp_path / name))
        for name, given in (("first", plan), ("second", MergePlan.model_validate(listed)))
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(SettingError, match="rescale is True with ties"):
        merge_models(plan.model_copy(update={"parameters": {"rescale": True}}), tmp_path / "third")
