"""`ontarget search` from data to sources of `fit`: real searches of small images and short texts, limits, resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from ontarget.cli import app
from ontarget.data import load as load_data
from ontarget.errors import DataError, LimitError, RunError, SettingError
from ontarget.latency_table import LatencyTable
from ontarget.pool import load, resolve
from ontarget.pool.found_networks import load_network, refused
from ontarget.search.search_networks import MARGIN, earlier_codes, finalists, search_networks
from ontarget.task import load_task

pytest.importorskip("pymoo")


@pytest.fixture(scope="module")
def images() -> tuple[list[Any], list[str]]:
    """Three digits, 16 x 16, 140 of each."""
    from PIL import Image

    from ontarget.data.samples import digits

    pixels, labels = digits()
    chosen = np.concatenate([np.flatnonzero(labels == label)[:140] for label in (0, 1, 7)])
    small = [np.asarray(Image.fromarray(pixels[at]).resize((16, 16))) for at in chosen]
    return small, [str(labels[at]) for at in chosen]


@pytest.fixture(scope="module")
def searched(images: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("search") / "images"
    return search_networks(images, output=folder, latency_ms=5.0, budget_s=10, threads=1, image_size=16)


def test_image_networks_are_found_measured_and_sources(searched: Any, images: Any, tmp_path: Path) -> None:
    folder = Path(searched.folder)
    best = searched.networks[0]
    assert best["quality"] > 0.8  # three digits; chance is a third
    assert all(row["measured_ms"] <= MARGIN * 5.0 for row in searched.networks)
    qualities = [row["quality"] for row in searched.networks]
    assert qualities == sorted(qualities, reverse=True)
    network, preprocess, info = load_network(folder / "found" / "1")
    rows = load_data(load_task(images).task)
    with torch.inference_mode():
        scores = network(torch.from_numpy(preprocess(rows.validation.inputs)["pixels"]))
    accuracy = float((scores.argmax(1).numpy() == rows.validation.targets).mean())
    assert accuracy == pytest.approx(best["quality"]) and info["classes"] == ["0", "1", "7"]
    loaded = load(resolve(best["locator"]))
    assert loaded.dim == info["config"]["head"]["width"]
    # Its weights have seen the training rows: other splits would score some of them.
    assert refused(folder / "found" / "1", rows) == ""
    other = load_data(load_task(images, {"seed": 3}).task)
    assert "its weights have seen" in refused(folder / "found" / "1", other)
    page = (folder / "search.html").read_text()
    assert page.count("<svg") >= 3 and "<script" not in page and "Choices that matter" in page
    assert json.loads((folder / "search.json").read_text())["networks"][0]["code"] == list(best["code"])
    assert len(earlier_codes(folder)) >= 1


def test_a_finished_search_is_not_done_again_and_a_part_goes_on(searched: Any, images: Any) -> None:
    folder = Path(searched.folder)
    settings: dict[str, Any] = {"latency_ms": 5.0, "budget_s": 10, "threads": 1, "image_size": 16}
    before = (folder / "supernetwork.safetensors").stat().st_mtime_ns
    again = search_networks(images, output=folder, **settings)
    assert again.networks == searched.networks and again.evaluated == searched.evaluated
    (folder / "stages" / "measured.json").unlink()  # as if it had been killed before it measured
    part = search_networks(images, output=folder, **settings)
    assert {row["code"] for row in map(_hashable, part.networks)} <= {
        tuple(entry["code"]) for entry in json.loads((folder / "stages" / "finalists.json").read_text())["value"]
    }
    assert (folder / "supernetwork.safetensors").stat().st_mtime_ns == before
    with pytest.raises(RunError, match="holds a search of another task"):
        search_networks(images, output=folder, latency_ms=6.0, budget_s=10, threads=1, image_size=16)


def _hashable(row: Any) -> Any:
    return {**row, "code": tuple(row["code"])}


def test_an_unreachable_latency_is_refused_before_training(searched: Any, images: Any, tmp_path: Path) -> None:
    table = LatencyTable.load(Path(searched.folder) / "latency_table.json")
    with pytest.raises(LimitError, match="the fastest network of this space takes 0"):
        search_networks(
            images, output=tmp_path / "s", latency_ms=1e-4, budget_s=10, threads=1, image_size=16, table=table
        )
    assert not (tmp_path / "s" / "supernetwork.safetensors").exists()
    with pytest.raises(SettingError, match="The latency table is of"):
        search_networks(images, output=tmp_path / "t", budget_s=10, threads=2, image_size=16, table=table)


def test_tasks_that_cannot_be_searched_are_refused(images: Any, tmp_path: Path) -> None:
    pixels, labels = images
    with pytest.raises(DataError, match="too few to search networks"):
        search_networks((pixels[::4], labels[::4]), output=tmp_path / "few", budget_s=10)
    with pytest.raises(SettingError, match="The budget is 5 s"):
        search_networks(images, output=tmp_path / "short", budget_s=5)
    with pytest.raises(DataError, match="regression"):
        search_networks((pixels, list(np.linspace(0, 1, len(pixels)))), output=tmp_path / "r", budget_s=10)


def test_ingredients_of_the_final_training_are_checked_at_once(images: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="optimizer is 'adam'"):
        search_networks(images, output=tmp_path / "a", budget_s=10, image_size=16, optimizer="adam")
    with pytest.raises(SettingError, match="augment is 'flop'"):
        search_networks(images, output=tmp_path / "b", budget_s=10, image_size=16, augment="flop")


@pytest.mark.parametrize("ingredient", ["lion", "adamw", "discovered", "randaugment-1-5+flip", "adautomix"])
def test_a_found_network_learns_with_every_ingredient(ingredient: str, images: Any, tmp_path: Path) -> None:
    from ontarget.pool.found_networks import build_network
    from ontarget.search.example_rows import ExampleRows, image_preprocess
    from ontarget.search.optimizer_program import adamw
    from ontarget.search.retrain import accuracy, retrain
    from ontarget.search.retrain_on_mixes import retrain_on_mixes

    config = {
        "network": "mobile", "image_size": 16, "channels": 1, "outputs": 3, "stem": {"width": 8, "stride": 2},
        "blocks": [{"in": 8, "out": 16, "kernel": 3, "expansion": 3, "stride": 2, "residual": False}],
        "head": {"width": 16},
    }  # fmt: skip
    rows = load_data(load_task(images).task)
    preprocess = image_preprocess(rows.train, 16)
    augment = ingredient if "flip" in ingredient else "none"
    train = ExampleRows(preprocess, rows.train, augment=augment)
    torch.manual_seed(0)
    network: Any = build_network(config)
    if ingredient == "adautomix":
        retrain_on_mixes(network, train, epochs=20, batch_size=32)
    elif ingredient == "discovered":
        (tmp_path / "program.json").write_text(json.dumps({"program": adamw(3e-3).to_json()}))
        retrain(network, train, epochs=20, batch_size=32, optimizer=str(tmp_path / "program.json"))
    else:
        name = ingredient if augment == "none" else "sgd"
        retrain(network, train, epochs=20, batch_size=32, optimizer=name)
    assert accuracy(network, ExampleRows(preprocess, rows.validation)) > 0.7


def test_finalists_keep_the_limit_and_spread_over_the_front() -> None:
    codes = [(at,) for at in range(7)]
    values = np.array([[0.5, 1.0], [0.4, 2.0], [0.3, 3.0], [0.2, 4.0], [0.1, 9.0], [0.6, 1.5], [0.45, 1.9]])
    assert finalists(codes, values, 5.0) == [(3,), (2,), (6,), (0,)] or finalists(codes, values, 5.0)[0] == (3,)
    assert (4,) not in finalists(codes, values, 5.0)
    assert finalists(codes, values, 5.0, extra=[(5,)])[:2] == [(3,), (5,)]
    assert finalists(codes, values, 0.5) == [(0,)]


def tiny_bert(folder: Path) -> Path:
    """A BERT of 2 layers with a word tokenizer, random weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", *(f"w{at}" for at in range(60)), "good", "bad"]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


def test_text_slices_are_found_through_the_command_line(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(600) % 2
    texts = [
        " ".join(f"w{at}" for at in generator.integers(0, 60, 6)) + (" good" if label else " bad") for label in labels
    ]
    pd.DataFrame({"text": texts, "label": labels}).to_csv(tmp_path / "data.csv", index=False)
    bert = tiny_bert(tmp_path / "bert")
    common = [
        "search", str(tmp_path / "data.csv"), "-i", "text", "-t", "label", "--source", f"file:{bert}",
        "--budget", "10s", "--threads", "1", "-q",
    ]  # fmt: skip
    found = CliRunner().invoke(app, [*common, "-o", str(tmp_path / "one"), "--json"])
    assert found.exit_code == 0, found.output
    result = json.loads(found.output[found.output.index("{") :])
    assert result["space"] == "bert"
    network, preprocess, info = load_network(tmp_path / "one" / "found" / "1")
    rows = load_data(load_task(str(tmp_path / "data.csv"), {"input": "text", "target": "label"}).task).validation
    with torch.inference_mode():
        scores = network(*(torch.from_numpy(value) for value in preprocess(rows.inputs).values()))
    accuracy = float((scores.argmax(1).numpy() == rows.targets).mean())
    assert accuracy == pytest.approx(result["networks"][0]["quality"])
    assert len(info["config"]["layers"]) in (2, 3)
    loaded = load(resolve(f"file:{tmp_path / 'one' / 'found' / '1'}"))
    assert loaded.dim == 32 and loaded.preprocess.kind == "tokens"


def test_profile_prints_how_well_the_table_predicts(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    found = CliRunner().invoke(
        app, ["device", "profile", "--image-size", "16", "--channels", "1", "--threads", "1", "-o", str(path), "-q"]
    )
    assert found.exit_code == 0, found.output
    assert "Kendall" in found.output and "median error" in found.output
    LatencyTable.load(path).check_device()


def test_out_of_memory_names_the_knob(images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ontarget.search import proxyless

    def full(*_: Any, **__: Any) -> Any:
        return torch.empty(2**60)  # more than any machine has: torch's own error

    monkeypatch.setattr(proxyless, "proxyless", full)
    with pytest.raises(RunError, match="Out of memory") as raised:
        search_networks(images, output=tmp_path / "search", budget_s=10, threads=1, image_size=16)
    assert raised.value.option == "--image-size"
