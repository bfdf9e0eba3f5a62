"""Training on a GPU: where there is one. That what was trained there is the CPU's to deploy, and no trial fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import ontarget
from ontarget.adapt.tune.finetune import FinetuneResult, finetune
from ontarget.errors import SettingError
from ontarget.plan.run_folder import RunFolder
from ontarget.plan.trial import TrialJob, run_trial
from ontarget.runtime.preprocess import Preprocess
from ontarget.values import Context, Examples, Loaded, Recipe

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


class Tiny(torch.nn.Module):
    """(N, 6) -> (N, 8) with dropout and BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(6, 16)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(16, 16) for _ in range(3))
        self.norm, self.dropout = torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.2)
        self.last = torch.nn.Linear(16, 8)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = self.first(features)
        for block in self.blocks:
            hidden = hidden + torch.tanh(block(hidden))
        found: torch.Tensor = self.last(self.dropout(self.norm(hidden)))
        return found


def tuned(mode: str = "full", **settings: Any) -> FinetuneResult:
    torch.manual_seed(3)
    loaded = Loaded("control:array-6", Preprocess("array", {"dim": 6}), Tiny().eval(), 8)
    parts = []
    for seed, rows in ((0, 96), (1, 48)):
        inputs = np.random.default_rng(seed).normal(size=(rows, 6)).astype(np.float32)
        parts.append(Examples(inputs, (inputs[:, 0] > inputs[:, 1]).astype(np.int64), np.arange(rows)))
    given: dict[str, Any] = {"learning_rate": 1e-2, "total_epochs": 6, "batch_size": 16, "probe": False,
                             "early_stopping": False, "context": Context(device="cuda"), **settings}  # fmt: skip
    return finetune(loaded, *parts, outputs=2, kind="classification", metric="accuracy", mode=mode, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("call", ["fit", "rank"])
def test_a_device_that_is_not_there_is_named_before_any_work(call: str, tmp_path: Path) -> None:
    pd.DataFrame({"x": np.arange(80.0), "y": np.arange(80) % 2}).to_csv(tmp_path / "t.csv", index=False)
    more = {"run": tmp_path / "run"} if call == "fit" else {}
    with pytest.raises(SettingError, match=r"Torch cannot work on 'cuda:99' here.\nAllowed: cpu"):
        getattr(ontarget, call)(tmp_path / "t.csv", input="x", target="y", device="cuda:99", **more)
    assert not (tmp_path / "run").exists()


def test_a_task_files_device_is_kept(tmp_path: Path) -> None:
    pd.DataFrame({"x": np.arange(80.0), "y": np.arange(80) % 2}).to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "task.toml").write_text('device = "cuda:99"\n[task]\ndata = "t.csv"\ninput = "x"\ntarget = "y"\n')
    with pytest.raises(SettingError, match="cuda:99"):
        ontarget.fit(tmp_path / "task.toml", run=tmp_path / "run")


@needs_gpu
@pytest.mark.parametrize("mode", ["full", "lora", "last"])
def test_a_training_on_a_gpu_learns_and_can_be_resumed(mode: str) -> None:
    whole = tuned(mode, mixed_precision="off")
    first = tuned(mode, mixed_precision="off", stop_epoch=2)
    rest = tuned(mode, mixed_precision="off", resume_from=first.checkpoint)
    assert all(value.device.type == "cpu" for value in whole.network.state_dict().values())
    assert whole.validation_metric > (0.8 if mode == "full" else 0.6)
    assert set(whole.state) == set(rest.state)
    for name, value in whole.state.items():
        torch.testing.assert_close(value, rest.state[name], rtol=1e-4, atol=1e-5, msg=name)


@needs_gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns(precision: str) -> None:
    assert tuned(mixed_precision=precision).validation_metric > 0.8


@needs_gpu
def test_features_are_the_cpu_s() -> None:
    from ontarget.data.samples import digits
    from ontarget.pool import load, resolve
    from ontarget.pool.features import extract

    images = list(digits()[0][:24])
    here, there = (
        extract(load(resolve("zoo:efficientnet-lite0@64")), images, context=Context(device=device))
        for device in ("cpu", "cuda")
    )
    assert np.abs(here - there).max() < 0.02 * np.abs(here).max()  # convolutions run in TF32 there


@needs_gpu
def test_a_fit_of_images_trains_on_the_gpu_and_deploys_to_the_cpu(tmp_path: Path) -> None:
    from ontarget.data.samples import write_image_demo

    folder = write_image_demo(tmp_path, rows=600)
    run = ontarget.fit(
        folder, pool=["zoo:efficientnet-lite0@64"], budget_s=90, run=tmp_path / "run", device="cuda", search=0.4
    )
    assert run.report["evidence"]["test"]["value"] > 0.8
    assert run.predict([next((folder / "3").glob("*.png"))])[0]["label"] in "0123456789"
    assert_no_trial_failed(tmp_path / "run")


@needs_gpu
@pytest.mark.parametrize("rows", [120, 1500])
def test_a_fit_of_texts_trains_on_the_gpu(tmp_path: Path, rows: int) -> None:
    """Few rows: contrastive tuning and self-training take part; many: fine-tuning in all its modes."""
    data = texts(tmp_path, rows)
    run = ontarget.fit(
        data, input="text", target="label", pool=[f"file:{tmp_path / 'bert'}"], budget_s=60, run=tmp_path / "run",
        device="cuda",
    )  # fmt: skip
    assert run.report["evidence"]["test"]["value"] > 0.7
    assert_no_trial_failed(tmp_path / "run")


@needs_gpu
@pytest.mark.parametrize("kind", ["images", "texts"])
def test_a_search_trains_on_the_gpu(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("pymoo")
    from ontarget.data.samples import write_image_demo
    from ontarget.search.search_networks import search_networks

    context = Context(device="cuda")
    if kind == "images":
        data, fields = write_image_demo(tmp_path, rows=1000), {"image_size": 16, "augment": "flip"}
    else:
        data = texts(tmp_path, 600)
        fields = {"input": "text", "target": "label", "source": f"file:{tmp_path / 'bert'}"}
    found = search_networks(data, output=tmp_path / "search", budget_s=40, threads=1, context=context, **fields)
    assert found.networks[0]["quality"] > 0.5


@needs_gpu
def test_out_of_memory_is_a_failed_trial_that_says_what_to_do(tmp_path: Path) -> None:
    from ontarget.data import load
    from ontarget.task import load_task

    data = load(load_task(str(texts(tmp_path, 600)), {"input": "text", "target": "label"}).task)
    recipe = Recipe(f"file:{tmp_path / 'bert'}", "finetune", {"learning_rate": 1e-3, "batch_size": 64})
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-5)
    try:
        outcome = run_trial(TrialJob(0, recipe, 0, device="cuda"), data)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert outcome.state == "failed" and "Out of memory" in outcome.reason and "batch_size" in outcome.reason


def assert_no_trial_failed(run: Path) -> None:
    trials = RunFolder(run).trials()
    assert trials
    assert not [entry for entry in trials if entry["state"] == "failed"]


def texts(folder: Path, rows: int) -> Path:
    """Texts of which a word tells the class, and folder/bert, a BERT of random weights that knows their words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", *(f"w{at}" for at in range(60)), "good", "bad"]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder / "bert")
    BertModel(
        BertConfig(vocab_size=len(words), hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
                   intermediate_size=128, max_position_embeddings=32)
    ).save_pretrained(folder / "bert")  # fmt: skip
    generator = np.random.default_rng(0)
    lines = [" ".join(f"w{at}" for at in generator.integers(0, 60, 5)) for _ in range(rows)]
    frame = pd.DataFrame({"text": lines, "label": np.arange(rows) % 2})
    frame["text"] += np.where(frame["label"] == 1, " good", " bad")
    frame.to_csv(folder / "data.csv", index=False)
    return folder / "data.csv"
