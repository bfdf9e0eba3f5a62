"""`ontarget search` from data to sources of `fit`: real searches of small images and short texts, limits, resuming."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
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
from ontarget.search.network_latency import MARGIN
from ontarget.search.search_networks import search_networks
from ontarget.task import load_task
from ontarget.values import Context

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
    assert "Taken over" not in page  # nothing was asked for
    assert replace(searched, spent_s=10.9).overrun == ""
    assert "took 12 s of the 10 s asked for" in replace(searched, spent_s=12.0).overrun


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


def tiny_bert(folder: Path, layers: int = 3) -> Path:
    """A BERT with a word tokenizer, random weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", *(f"w{at}" for at in range(60)), "good", "bad"]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


def tiny_llama(folder: Path) -> Path:
    """A Llama of 3 layers with the tokenizer of `tiny_bert`, random weights."""
    from transformers import LlamaConfig, LlamaModel

    tiny_bert(folder)
    (folder / "model.safetensors").unlink()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=32,
    )  # fmt: skip
    LlamaModel(config).save_pretrained(folder)
    return folder


def test_a_causal_llamas_folder_is_sliced_and_what_was_found_takes_part_in_a_fit(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from ontarget.plan.admission import admit
    from ontarget.plan.trial import TrialJob, run_trial
    from ontarget.pool.found_networks import digests, save_found
    from ontarget.search.slice_pretrained import slice_pretrained
    from ontarget.task import Limits
    from ontarget.values import Recipe

    text_task(tmp_path, make=tiny_llama)
    folder = tmp_path / "llama"
    LlamaForCausalLM(LlamaConfig.from_pretrained(folder)).save_pretrained(folder)
    loaded: Any = load(resolve(f"file:{folder}"))
    space = slice_pretrained(loaded.encoder.model, outputs=2, length=8).eval()
    code = space.canonical((0,) * len(space.slots))
    data = load_data(load_task(str(tmp_path / "data.csv"), {"input": "text", "target": "label"}).task)
    found = save_found(
        tmp_path / "found", space.slice(code), space.config(code), loaded.preprocess,
        seen=digests(data.train.inputs, "text"), classes=list(data.classes), quality=0.5,
    )  # fmt: skip
    source = f"file:{found}"
    assert resolve(source).modality == "text"
    admitted = admit([source], data, Limits(), batch_size=1, max_length=None, progress=None)[source]
    assert admitted["admitted"] and admitted["as_found"] and admitted["dim"] == 32
    outcome = run_trial(TrialJob(0, Recipe(source, "found_network"), seed=0), data)
    network, preprocess, _ = load_network(found)
    with torch.inference_mode():
        scores = network(*(torch.from_numpy(value) for value in preprocess(data.validation.inputs).values())).numpy()
    assert outcome.state == "complete"
    np.testing.assert_allclose(outcome.scores, scores, atol=1e-5)


def text_task(folder: Path, layers: int = 3, make: Any = None) -> list[str]:
    """The command line of a search on short texts, of which a word tells the class, with a tiny encoder."""
    generator = np.random.default_rng(0)
    labels = np.arange(600) % 2
    texts = [
        " ".join(f"w{at}" for at in generator.integers(0, 60, 6)) + (" good" if label else " bad") for label in labels
    ]
    pd.DataFrame({"text": texts, "label": labels}).to_csv(folder / "data.csv", index=False)
    encoder = make(folder / "llama") if make else tiny_bert(folder / "bert", layers)
    return [
        "search", str(folder / "data.csv"), "-i", "text", "-t", "label", "--source", f"file:{encoder}",
        "--budget", "10s", "-q",
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "make"), [("bert", None), ("llama", tiny_llama)])
def test_text_slices_are_found_through_the_command_line(kind: str, make: Any, tmp_path: Path) -> None:
    common = [*text_task(tmp_path, make=make), "--threads", "1"]
    found = CliRunner().invoke(app, [*common, "-o", str(tmp_path / "one"), "--json"])
    assert found.exit_code == 0, found.output
    result = json.loads(found.output[found.output.index("{") :])
    assert result["space"] == kind
    network, preprocess, info = load_network(tmp_path / "one" / "found" / "1")
    rows = load_data(load_task(str(tmp_path / "data.csv"), {"input": "text", "target": "label"}).task).validation
    with torch.inference_mode():
        scores = network(*(torch.from_numpy(value) for value in preprocess(rows.inputs).values()))
    accuracy = float((scores.argmax(1).numpy() == rows.targets).mean())
    assert accuracy == pytest.approx(result["networks"][0]["quality"])
    assert len(info["config"]["layers"]) in (2, 3)
    tuned = [json.loads((Path(row["folder"]) / "network.json").read_text()).get("tuning") for row in result["networks"]]
    for row, entry in zip(result["networks"], tuned, strict=True):  # the full network is not tuned again
        assert entry is None or row["quality"] == pytest.approx(max(entry["before"], entry["after"]))
    loaded = load(resolve(f"file:{tmp_path / 'one' / 'found' / '1'}"))
    assert loaded.dim == 32 and loaded.preprocess.kind == "tokens"


def families() -> list[tuple[int, ...]]:
    """324 slices of a tiny BERT in two clusters: 4 layers, the first three with 2 heads each or with 4 each."""
    free = [(last, *neurons) for last in (0, 1) for neurons in np.ndindex(3, 3, 3, 3)]
    return [(1, first, first, first, *map(int, rest)) for first in (0, 2) for rest in free]


def test_a_search_on_texts_killed_in_its_training_does_not_fine_tune_again(tmp_path: Path) -> None:
    text_task(tmp_path)
    settings: dict[str, Any] = {
        "input": "text", "target": "label", "source": f"file:{tmp_path / 'bert'}", "budget_s": 20, "threads": 1,
        "output": tmp_path / "search",
    }  # fmt: skip
    said: list[str] = []

    def watch(kill: bool, done: int, total: int, what: str) -> None:
        if not said or said[-1] != what:
            said.append(what)
        if kill and what == "InstaTune" and done > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_networks(tmp_path / "data.csv", **settings, context=Context(progress=partial(watch, True)))
    assert any("fine-tuning" in what for what in said)
    assert (tmp_path / "search" / "fine-tuned.safetensors").exists()
    said.clear()
    result = search_networks(tmp_path / "data.csv", **settings, context=Context(progress=partial(watch, False)))
    assert not any("fine-tuning" in what for what in said) and "InstaTune" in said
    assert result.networks and not (tmp_path / "search" / "fine-tuned.safetensors").exists()


def test_a_sibling_setting_takes_over_from_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ontarget.search import concurrent_nas

    quick = partial(concurrent_nas.concurrent_nas, predicted=500)  # what is tested here needs no thorough search
    monkeypatch.setattr(concurrent_nas, "concurrent_nas", quick)
    command, store = [*text_task(tmp_path, layers=4), "--runtime", "pytorch", "--threads", "1"], tmp_path / "store"

    def search(name: str, *more: str) -> Any:
        found = CliRunner().invoke(app, [*command, "-o", str(tmp_path / name), *more, "--json"])
        assert found.exit_code == 0, found.output
        return json.loads(found.output[found.output.index("{") :])

    first = search("one", "--store", str(store))
    assert first["taken_over"]["kept"] is None and "holds nothing of this space" in first["taken_over"]["reason"]
    (own,) = store.glob("bert-*/*.jsonl")
    head, *rows = map(json.loads, own.read_text().splitlines())
    assert head["setting"]["batch_size"] == 1 and [row["code"] for row in rows] == [
        row["code"] for row in first["evaluated"]
    ]

    # In its place, a search by hand: its best and its fastest slice are known, and its values are of no other training.
    best, fastest = families()[200], families()[3]
    lines = [head] + [
        {"code": code, "quality": 5.0 + (code == best), "latency_ms": 70.0 - (code == fastest)} for code in families()
    ]
    own.write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = json.loads((tmp_path / "one" / "latency_table.json").read_text())
    table["setting"]["batch_size"] = 2  # timed with one row: enough here
    (tmp_path / "two.json").write_text(json.dumps(table))
    sibling = ["--batch-size", "2", "--store", str(store), "--table", str(tmp_path / "two.json")]
    second = search("two", *sibling)
    taken = second["taken_over"]
    slots = ["layers, spread", *(f"heads of layer {at}" for at in range(4))]
    assert taken["dropped"] == [list(row) for row in zip(slots, [["3"], ["3"], ["3"], ["3"], ["4"]], strict=True)]
    assert (taken["configurations"], taken["reduced_to"]) == (2 * 3**8, 2**4 * 3**4)
    assert taken["start"] == [list(best), list(fastest)] and taken["sources"][0]["setting"]["batch_size"] == 1
    codes = [row["code"] for row in second["evaluated"]]
    assert list(best) in codes[:8] and list(fastest) in codes[:8]  # with the space's own extremes
    found = [row["code"] for row in second["networks"]]
    for code in (*codes, *found):
        assert code[0] == 1 and set(code[1:4]) <= {0, 2} and code[4] in (0, 1)
    assert all(row["quality"] <= 1 for row in second["evaluated"])  # evaluated anew: none has the value 5
    page = (tmp_path / "two" / "search.html").read_text()
    assert "heads of layer 0: 3 dropped" in page and "13,122 -&gt; 1,296 configurations" in page
    assert len(list(store.glob("bert-*/*.jsonl"))) == 2

    # Killed within the front, and the store has changed since: the space is the one that it began with.
    for stage in ("front", "finalists", "measured"):
        (tmp_path / "two" / "stages" / f"{stage}.json").unlink()
    journal = tmp_path / "two" / "evaluated.jsonl"
    journal.write_text("".join(line + "\n" for line in journal.read_text().splitlines()[:5]) + '{"code": [0')
    own.unlink()
    again = search("two", *sibling)
    assert again["taken_over"] == taken
    assert [row["code"] for row in again["evaluated"]][:4] == codes[:4]
    assert all(row["code"][0] == 1 and set(row["code"][1:4]) <= {0, 2} for row in again["evaluated"])

    # What cannot be taken over is told before any work, with the option's name.
    own.write_text(json.dumps(head) + "\n" + '{"code": [9]}\n')
    for options, why in (
        (["--store", str(store)], f"{own}, line 2, is damaged"),
        (["--store", str(tmp_path / "one")], "is the folder of a search"),
        (["--store", str(tmp_path / "data.csv")], "is a file"),
        (["--warm-start", str(tmp_path / "no")], "There is no folder"),
        (["--warm-start", str(tmp_path)], "holds no search"),
    ):
        refused_ = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "three"), *options])
        message = str(refused_.exception)
        assert why in message and f"Set by: {options[0]}." in message, (options, message)
        assert not (tmp_path / "three" / "latency_table.json").exists()


def test_a_warm_start_of_another_space_is_refused(searched: Any, images: Any, tmp_path: Path) -> None:
    folder = Path(searched.folder)
    with pytest.raises(SettingError, match="is of another space") as raised:
        search_networks(images, output=tmp_path / "s", budget_s=10, threads=1, image_size=64, warm_start=[folder])
    assert raised.value.option == "--warm-start" and not (tmp_path / "s" / "latency_table.json").exists()


def test_profile_prints_how_well_the_table_predicts(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    found = CliRunner().invoke(
        app, ["device", "profile", "--image-size", "16", "--channels", "1", "--threads", "1", "-o", str(path), "-q"]
    )
    assert found.exit_code == 0, found.output
    assert "Kendall" in found.output and "median error" in found.output
    LatencyTable.load(path).check_device()


@pytest.mark.parametrize(
    ("options", "why", "option"),
    [
        (["device", "profile", "--space", "nosuch"], "'nosuch' names no source", "--space"),
        (["device", "profile", "--space", "control:random-efficientnet-lite0"], "cannot be sliced", "--space"),
        (
            ["search", "{data}", "-t", "label", "--source", "zoo:wordllama"],
            "'zoo:wordllama' cannot be sliced",
            "--source",
        ),
        (["device", "profile", "-o", "{folder}"], "it is a folder", "--output"),
        (["device", "profile", "-o", "{file}/below/t.json"], "The latency table cannot be written", "--output"),
        (["search", "{data}", "-t", "label", "--table", "{file}"], "is no latency table", "--table"),
        (["search", "{data}", "-t", "label", "-o", "{file}"], "cannot be written", "--output, --run"),
    ],
)
def test_wrong_input_is_told_before_any_work(options: list[str], why: str, option: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    data = text_task(tmp_path)[1]
    given = [text.format(folder=tmp_path, file=tmp_path / "file", data=data) for text in options]
    if given[0] == "search":
        given += ["-i", "text", "-q"]
        given += [] if "--source" in given else ["--source", f"file:{tmp_path / 'bert'}"]
        given += [] if "-o" in given else ["-o", str(tmp_path / "s")]
    error: Any = CliRunner().invoke(app, given).exception
    assert why in str(error) and error.option == option


def test_out_of_memory_names_the_knob(images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ontarget.search import proxyless

    def full(*_: Any, **__: Any) -> Any:
        return torch.empty(2**60)  # more than any machine has: torch's own error

    monkeypatch.setattr(proxyless, "proxyless", full)
    with pytest.raises(RunError, match="Out of memory") as raised:
        search_networks(images, output=tmp_path / "search", budget_s=10, threads=1, image_size=16)
    assert raised.value.option == "--image-size"
