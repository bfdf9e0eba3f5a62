"""`ontarget draft` as people type it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ontarget.cli import app
from ontarget.errors import OnTargetError
from ontarget.serve.speculative.draft_head import CONFIG, WEIGHTS, load_draft_head
from ontarget.serve.speculative.generate import generate, generate_plain
from ontarget.serve.speculative.make_draft import REPLIES


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama) -> Path:
    """model/, a tiny Llama over 40 words, and 20 prompts in three formats."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    monkeypatch.chdir(tmp_path)
    words = Tokenizer(models.WordLevel({f"w{at}": at for at in range(40)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w39")
    tiny_llama().save_pretrained("model")
    BertModel(BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                         intermediate_size=16)).save_pretrained("bert")  # fmt: skip
    for name in ("model", "bert"):
        tokenizer.save_pretrained(name)
    generator = torch.Generator().manual_seed(0)
    prompts = [" ".join(f"w{at}" for at in row) for row in torch.randint(0, 39, (20, 4), generator=generator).tolist()]
    Path("prompts.txt").write_text("\n".join(prompts) + "\n")
    Path("prompts.jsonl").write_text("\n".join(json.dumps({"question": prompt}) for prompt in prompts))
    Path("prompts.csv").write_text("question\n" + "\n".join(prompts) + "\n")
    return tmp_path


def run(*arguments: str) -> str:
    settings = ["--epochs", "2", "--max-new-tokens", "12", "-q"]
    found = CliRunner().invoke(app, ["draft", *arguments, *settings])
    if found.exception and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found.output


def test_head_is_made_measured_and_used(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    said = run("model", "prompts.txt", "-o", "head")
    assert "trained on 18 replies (0 cut" in said and "On 2 held-out prompts" in said
    assert "switched off: not faster here" in said or "times as fast here" in said
    assert sorted(path.name for path in (folder / "head").iterdir()) == [CONFIG, WEIGHTS, REPLIES]
    stored = json.loads((folder / "head" / CONFIG).read_text())
    assert stored["trained_on"] == 18 and stored["speed"]["plain"]["tokens_per_pass"] == 1
    assert [len(ids) for ids in stored["held_out"]] == [4, 4]
    model = AutoModelForCausalLM.from_pretrained("model")
    head = load_draft_head(folder / "head", model)
    tokens = [token for new in generate(model, head, [1, 2], max_new_tokens=30) for token in new]
    assert tokens == [token for new in generate_plain(model, [1, 2], max_new_tokens=30) for token in new]


def test_replies_are_the_models_own_and_are_kept(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    from ontarget.adapt.answers import generate_ids
    from ontarget.pool.language_models import load_language_model

    source = load_language_model("model")
    prompts = [[1, 2, 3], [4], [5, 6], [4]]
    replies = generate_ids(source, prompts, max_new_tokens=10, kept=folder / "kept.jsonl")
    model = AutoModelForCausalLM.from_pretrained("model").eval()
    for ids, reply in zip(prompts, replies, strict=True):
        assert reply == [token for new in generate_plain(model, ids, max_new_tokens=10, stop_ids=[39]) for token in new]
    with open(folder / "kept.jsonl", "a") as file:
        file.write('{"prompt": "half a li')
    text = (folder / "kept.jsonl").read_text()
    assert generate_ids(source, prompts, max_new_tokens=10, kept=folder / "kept.jsonl") == replies
    assert (folder / "kept.jsonl").read_text() == text  # nothing was written again


def test_columns_of_tables(folder: Path) -> None:
    for name in ("prompts.jsonl", "prompts.csv"):
        assert "trained on 18 replies" in run("model", name, "--column", "question", "-o", name + "-head")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bert", "prompts.txt"], "no causal language model"),
        (["modell", "prompts.txt"], "There is no 'modell'"),
        (["model", "promts.txt"], "did you mean 'prompts.txt'"),
        (["model", "prompts.csv"], "'text'"),
        (["model", "prompts.txt", "--kind", "fspd"], "did you mean 'fspad'"),
        (["model", "prompts.txt", "--dtype", "int8"], "no type of weights"),
    ],
)
def test_mistakes_are_told(folder: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(OnTargetError, match=message):
        run(*arguments)


def test_prompts_that_cannot_be_used(folder: Path) -> None:
    Path("empty.txt").write_text("w1\n\nw2\n")
    with pytest.raises(OnTargetError, match="Prompt 1 is empty"):
        run("model", "empty.txt")
    Path("one.txt").write_text("w1\nw1\n")
    with pytest.raises(OnTargetError, match="1 different prompts"):
        run("model", "one.txt")
    Path("long.txt").write_text("w1\n" + "w2 " * 120 + "\n")
    with pytest.raises(OnTargetError, match="Prompt 1 has 120 tokens, and its answer may have 12"):
        run("model", "long.txt")
