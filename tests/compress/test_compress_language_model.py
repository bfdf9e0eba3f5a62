"""`ontarget compress` as people type it: a report, undone where it must be, errors that say what to do."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ontarget.cli import app
from ontarget.compress.calibration_texts import part_texts, rise, unit_losses
from ontarget.compress.compress_language_model import memory_estimate
from ontarget.compress.packed_checkpoint import load_packed, sizes
from ontarget.errors import DataError, LimitError, OnTargetError

WORDS = 40


def sentences(count: int, length: int = 12, seed: int = 0) -> list[str]:
    """Texts in which a word is mostly followed by the next one."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        at, words = int(generator.integers(2, WORDS)), []
        for _ in range(length):
            words.append(f"w{at:02d}")
            at = 2 + (at - 1) % (WORDS - 2) if generator.random() < 0.7 else int(generator.integers(2, WORDS))
        found.append(" ".join(words))
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word_model: Callable[..., Path]) -> Path:
    """model/ and texts.txt: 80 sentences, ten of them twice."""
    monkeypatch.chdir(tmp_path)
    word_model(tmp_path / "model")
    lines = sentences(80)
    (tmp_path / "texts.txt").write_text("\n".join([*lines, *lines[:10]]) + "\n")
    return tmp_path


def run(*arguments: str, code: int = 0) -> str:
    found = CliRunner().invoke(app, ["compress", *arguments, "--calibration-tokens", "64", "-q"])
    if found.exception and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == code, found.output
    return found.output


def test_a_report_tells_what_the_folder_is(folder: Path) -> None:
    told = run("model", "-t", "texts.txt", "--bits", "4", "--group", "16", "-o", "small")
    assert "rows duplicates dropped: 10" in told and "-> small" in told and "a weight" in told
    report = json.loads((folder / "small" / "report.json").read_text())
    assert report["kept"] and report["undone"] == [] and report["unit"] == "row"
    assert report["rows"]["calibration"] + report["rows"]["held out"] == 80
    assert report["rise"] == pytest.approx(report["loss_after"] - report["loss_before"], abs=1e-9)
    assert report["rise_low"] < report["rise"] < report["rise_high"]
    assert report["perplexity_after"] == pytest.approx(math.exp(report["loss_after"]))
    measured = sizes(folder / "small")
    assert report["sizes"]["weights_bytes"] == measured.weights_bytes
    assert set(report["latency"]) == {"float32", "bfloat16", "packed"} and "x the speed" in report["speed"]
    assert ("not faster" in told) == ("not faster" in report["speed"])
    # The loss that is told is that of what was written.
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("small")
    texts = (folder / "texts.txt").read_text().splitlines()
    parts = part_texts(texts, tokenizer, calibration_tokens=64, test_tokens=8192, window=64)
    losses, tokens = unit_losses(load_packed(folder / "small"), parts.held_out, "")
    assert report["loss_after"] == pytest.approx(losses.sum() / tokens.sum(), abs=1e-6)
    assert "<script" not in (folder / "small" / "report.html").read_text()


def test_what_is_worse_or_larger_is_undone(folder: Path) -> None:
    hurt = ["model", "-t", "texts.txt", "--bits", "2", "--group", "16", "--no-latency", "--tolerance", "0"]
    with torch.no_grad():  # a head that makes the layers matter
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained("model")
        _train(model, folder)
        model.save_pretrained("model")
    told = run(*hurt, "-o", "small", code=1)
    assert "undone: the loss on held-out rows rises" in told and "No folder was written" in told
    assert not (folder / "small").exists() and not [path for path in folder.iterdir() if path.name.startswith(".")]
    told = run(*hurt, "-o", "small", "--keep")
    assert "kept all the same: the loss" in told and (folder / "small" / "gwq.json").exists()
    # Eight bits and groups of 8 with scale and offset are 12 bits, and 30% of outliers 9.6 more.
    told = run("model", "-t", "texts.txt", "--bits", "8", "--group", "8", "--share", "0.3", "--no-latency", "-o", "big",
               "--tolerance", "9", code=1)  # fmt: skip
    assert "in bfloat16" in told and not (folder / "big").exists()


def _train(model: Any, folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("model")
    ids = torch.tensor([tokenizer(text).input_ids for text in sentences(200, seed=1)])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with torch.enable_grad():
        for _ in range(60):
            loss = model(ids, labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def test_auto_takes_the_fewest_bits_within_the_tolerance(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("model")
    _train(model, folder)
    model.save_pretrained("model")
    run("model", "-t", "texts.txt", "--bits", "auto", "--group", "16", "--tolerance", "0.02", "--no-latency")
    report = json.loads((folder / "small" / "report.json").read_text())
    tried = report["tried"]
    assert [row["bits"] for row in tried] == [2, 3, 4, 5, 6, 8][: len(tried)] and len(tried) > 1
    assert all(row["rise"] > 0.02 for row in tried[:-1]) and tried[-1]["rise"] <= 0.02
    assert report["bits"] == tried[-1]["bits"]
    assert '<svg class="plot' in (page := (folder / "small" / "report.html").read_text()) or "<svg" in page
    assert "perplexity by bits a weight" in page


def test_rows_are_parted_without_overlap(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("model")
    texts = [f"{text} w{at % 37 + 2:02d} w{at // 37 + 2:02d}" for at, text in enumerate(sentences(200))]
    texts += [texts[0].replace(" ", "  "), " "]
    parts = part_texts(texts, tokenizer, calibration_tokens=100, test_tokens=500, window=64, choose=True, seed=3)
    assert parts.duplicates == 1 and parts.given == 202 and len(parts.calibration) == 100
    held, chosen = ({tuple(piece) for _, piece in part} for part in (parts.held_out, parts.choosing))
    assert len(held) >= 20 and not held & chosen
    joined = " ".join(map(str, parts.calibration))
    assert not any(" ".join(map(str, piece)) in joined for piece in held | chosen)


def test_the_interval_is_students_where_tokens_are_alike() -> None:
    from scipy import stats

    changes = np.array([1.0, 2.0, 4.0, 3.0, 0.5])
    value, low, high = rise(np.zeros(5), 10 * changes, np.full(5, 10.0))
    expected = stats.t.interval(0.95, 4, loc=changes.mean(), scale=stats.sem(changes))
    assert value == pytest.approx(changes.mean()) and (low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bits", "9"], "(?s)bits is 9.*2 to 8, or auto"),
        (["--bits", "few"], "'few' is no number of bits"),
        (["--group", "4"], "group is 4"),
        (["--tolerance", "-1"], "tolerance is -1"),
        (["--calibration-tokens", "9"], "calibration_tokens is 9"),
        (["--calibration-tokens", "900"], r"(?s)too short.*80 distinct rows with 960 tokens.*1,156 tokens or more"),
        (["-o", "model"], "'model' exists"),
    ],
)
def test_wrong_options_are_named(folder: Path, arguments: list[str], message: str) -> None:
    before = sorted(path.name for path in folder.iterdir())
    found = CliRunner().invoke(app, ["compress", "model", "-t", "texts.txt", "-q", "--no-latency", *arguments])
    with pytest.raises(OnTargetError, match=message):
        raise found.exception or AssertionError(found.output)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_models_that_cannot_be_compressed_are_named(folder: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = folder / "model" / "config.json"
    told = json.loads(config.read_text())
    config.write_text(json.dumps(told | {"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(DataError, match=r"quantised already \(awq\)"):
        run("model", "-t", "texts.txt")
    config.write_text(json.dumps(told))
    run("model", "-t", "texts.txt", "--group", "16", "--keep", "--no-latency")
    with pytest.raises(DataError, match=r"quantised already \(gwq\)"):
        run("small", "-t", "texts.txt", "-o", "again")
    GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=64)).save_pretrained("gpt2")
    for path in (folder / "model").glob("tokenizer*"):
        (folder / "gpt2" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DataError, match=r"\(gpt2\) has no linear layers but its head"):
        run("gpt2", "-t", "texts.txt", "-o", "again")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("model")
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    model.save_pretrained("broken")
    for path in (folder / "model").glob("tokenizer*"):
        (folder / "broken" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="not finite"):
        run("broken", "-t", "texts.txt", "-o", "again")
    assert not (folder / "again").exists()


def test_memory_is_told_before(folder: Path) -> None:
    few, many = (memory_estimate(folder / "model", tokens)["needed_mb"] for tokens in (1000, 2000))
    # Two layers of 12 x 32 + 4 x 40 numbers, and three times 40 logits, of 4 bytes.
    assert many - few == pytest.approx(1000 * (2 * (12 * 32 + 4 * 40) + 120) * 4 / 2**20, abs=0.2)
    with pytest.raises(LimitError, match="MiB are free"):
        memory_estimate(folder / "model", 10**12)
