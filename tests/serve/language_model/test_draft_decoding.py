"""A server with a draft head: a real process asked by OpenAI's client, and the decoder by itself."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ontarget.cli import app
from ontarget.errors import DataError, OnTargetError
from ontarget.pool.language_models import LanguageModel, load_language_model
from ontarget.serve.language_model.batch_decoder import BatchDecoder, Generation
from ontarget.serve.language_model.choose_forward import choose_forward
from ontarget.serve.language_model.draft_decoding import DraftDecoding, Shapes, fastest_shapes, open_draft
from ontarget.serve.language_model.sampling import Sampling, draws
from ontarget.serve.speculative.draft_head import DraftHead, new_draft_head, save_draft_head
from ontarget.serve.speculative.draft_tree import TreeShape, chain
from ontarget.testing.language_checks import greedy_text, law_of_triples, law_p_value
from ontarget.testing.tiny_llama import byte_tokenizer, tiny_llama

openai = pytest.importorskip("openai")

GREEDY = {"model": "model", "temperature": 0}
LETTERS = 94  # the first tokens of the byte tokenizer: those that ASCII shows
SHAPE = TreeShape(4, 4, 12)


def mostly_bigram(seed: int = 2, **settings: Any) -> Any:
    """A target that continues for the most part by its last token alone, and mostly in ASCII."""
    model = tiny_llama(seed, vocab_size=258, max_position_embeddings=2048, eos_token_id=257, **settings)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data *= 0.05
        layer.mlp.down_proj.weight.data *= 0.05
    model.lm_head.weight.data[LETTERS:] = 0
    return model


def reading_head(model: Any) -> DraftHead:
    """A head that drafts by the last token alone: often right on such a target, not always."""
    head = new_draft_head(model, "eagle").requires_grad_(False)
    head.fuse.weight.zero_()
    head.fuse.bias.zero_()
    head.fuse.weight[:, :32] = torch.eye(32)
    head.output.weight.zero_()
    head.mlp_down.weight.zero_()
    return head


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/, its head/, and other/, a head of another model."""
    folder = tmp_path_factory.mktemp("drafted")
    model = mostly_bigram()
    model.save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    save_draft_head(reading_head(model), model, folder / "head", shape={"top_k": 4, "depth": 4, "tokens": 12})
    other = mostly_bigram(3)
    save_draft_head(reading_head(other), other, folder / "other")
    return folder


@pytest.fixture(scope="module")
def model(folders: Path) -> LanguageModel:
    return load_language_model(str(folders / "model"))


@contextmanager
def serving(folders: Path, *options: str) -> Iterator[tuple[str, str]]:
    """Address of `ontarget serve model`, and what it said before that."""
    command = [
        sys.executable,
        "-c",
        "from ontarget.cli import main; main()",
        "serve",
        "model",
        "--port",
        "0",
        "--slots",
        "2",
        *options,
    ]
    process = subprocess.Popen(command, cwd=folders, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    try:
        said = ""
        assert process.stderr is not None
        for line in process.stderr:
            said += line
            if found := re.search(r"http://\S+(?=/v1)", line):
                yield found.group(), said
                return
        raise AssertionError(said)
    finally:
        process.terminate()
        process.communicate(timeout=20)


@pytest.fixture(scope="module")
def server(folders: Path) -> Iterator[str]:
    with serving(folders, "--draft", "head", "--draft-always", "--max-tokens", "2000") as (address, said):
        assert "without measuring" in said
        yield address


@pytest.fixture(scope="module")
def client(server: str) -> Any:
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)


def expected(model: LanguageModel, prompt: str, count: int) -> str:
    return greedy_text(model.model, model.tokenizer, prompt, count)


def health(server: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server}/health").json()
    return found


def test_greedy_text_is_the_models_own_in_fewer_passes(client: Any, server: str, model: LanguageModel) -> None:
    before = health(server)["draft"]
    assert before["greedy"] == before["sampled"] == SHAPE.name
    for prompt, count in (("Hello there", 60), ("x" * 700, 33), ("a", 1), ("b", 2)):  # one is read in three pieces
        answer = client.completions.create(prompt=prompt, max_tokens=count, **GREEDY)
        assert answer.choices[0].text == expected(model, prompt, count)
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == count
        assert answer.usage.prompt_tokens == len(prompt)
    after = health(server)["draft"]
    tokens, passes = after["tokens"] - before["tokens"], after["passes"] - before["passes"]
    assert tokens == 59 + 32 + 0 + 1
    assert 1.3 * passes < tokens < 4 * passes  # some drafts are refused


def test_streams_and_chats_are_the_same_text(client: Any, model: LanguageModel) -> None:
    chunks = list(client.chat.completions.create(
        messages=[{"role": "user", "content": "Hi"}], max_tokens=50, stream=True,
        stream_options={"include_usage": True}, **GREEDY,
    ))  # fmt: skip
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == expected(model, "user: Hi\nassistant:", 50)
    assert chunks[-1].usage.completion_tokens == 50


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_end_a_text_within_a_pass(client: Any, model: LanguageModel, stream: bool) -> None:
    whole = expected(model, "Once", 60)
    for at in range(4, 12):
        first = whole.find(whole[at : at + 3])
        answer = client.completions.create(prompt="Once", max_tokens=60, stop=whole[at : at + 3], stream=stream,
                                           **GREEDY)  # fmt: skip
        if stream:
            chunks = list(answer)
            assert "".join(chunk.choices[0].text for chunk in chunks) == whole[:first]
            assert chunks[-1].choices[0].finish_reason == "stop"
        else:
            assert answer.choices[0].text == whole[:first]
            assert answer.usage.completion_tokens == first + 3


def test_a_second_client_brings_a_running_text_to_the_shared_steps_and_back(
    client: Any, server: str, model: LanguageModel
) -> None:
    before = health(server)["draft"]["tokens"]
    stream = client.completions.create(prompt="the first", max_tokens=900, stream=True, **GREEDY)
    texts = [next(stream).choices[0].text for _ in range(3)]
    others = ["a second", "y" * 300]
    found: dict[str, str] = {}

    def ask(prompt: str) -> None:
        found[prompt] = client.completions.create(prompt=prompt, max_tokens=40, **GREEDY).choices[0].text

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {prompt: expected(model, prompt, 40) for prompt in others}
    texts += [chunk.choices[0].text for chunk in stream]
    assert "".join(texts) == expected(model, "the first", 900)
    assert 0 < health(server)["draft"]["tokens"] - before < 900 + 80


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_frees_its_slot(server: str, stream: bool) -> None:
    before = health(server)["requests"]["cancelled"]
    text = json.dumps({**GREEDY, "prompt": "long", "max_tokens": 2000, "stream": stream})
    with socket.create_connection(("127.0.0.1", int(server.rsplit(":", 1)[1]))) as raw:
        raw.sendall(f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode())
        until(server, running=1)
        if stream:
            assert raw.recv(100)
    until(server, running=0, cancelled=before + 1)


def until(server: str, **wanted: int) -> None:
    for _ in range(400):
        if wanted.items() <= health(server)["requests"].items():
            return
        time.sleep(0.01)
    raise AssertionError(f"{wanted} did not come: {health(server)}")


def test_a_seed_gives_the_same_text_beside_others(client: Any, server: str) -> None:
    def sampled(**more: Any) -> str:
        answer = client.completions.create(model="model", prompt="x", max_tokens=30, **more)
        return str(answer.choices[0].text)

    alone = sampled(seed=5)
    stream = client.completions.create(prompt="beside", max_tokens=2000, stream=True, **GREEDY)
    next(stream)
    assert sampled(seed=5) == alone
    stream.close()
    until(server, running=0)
    before = health(server)["draft"]["tokens"]
    sampled(seed=6)
    sampled(extra_body={"top_k": 5})
    assert health(server)["draft"]["tokens"] == before
    sampled(top_p=0.9)
    assert health(server)["draft"]["tokens"] == before + 29


def test_a_head_without_prompts_is_switched_off_and_said_so(folders: Path, model: LanguageModel) -> None:
    with serving(folders, "--draft", "head") as (address, said):
        assert "switched off: its folder holds no prompts" in said
        told = health(address)["draft"]
        assert told["greedy"] is None and told["sampled"] is None and "switched off" in told["why"]
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none") as one:
            answer = one.completions.create(prompt="Once", max_tokens=20, **GREEDY)
        assert answer.choices[0].text == expected(model, "Once", 20)
        assert health(address)["draft"]["passes"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--draft", "other"], "was trained for 'llama', not for 'model'"),
        (["--draft", "nowhere"], "holds no draft head"),
        (["--draft-always"], "add --draft FOLDER"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_port_answers(
    folders: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(folders)
    with pytest.raises(OnTargetError, match=message):
        raise CliRunner().invoke(app, ["serve", "model", "--port", "0", *arguments]).exception or AssertionError


def test_a_bundle_has_no_draft_head(text_bundle: Path) -> None:
    with pytest.raises(OnTargetError, match="a bundle has no draft"):
        raise CliRunner().invoke(app, ["serve", str(text_bundle), "--draft", "head"]).exception or AssertionError


def test_damaged_words_about_the_head_are_told(folders: Path, model: LanguageModel) -> None:
    source = load_language_model(str(folders / "model"))
    save_draft_head(reading_head(source.model), source.model, folders / "odd", shape={"top_k": "many"})
    with pytest.raises(DataError, match="is damaged"):
        open_draft(source, folders / "odd", always=True)


def test_the_head_is_used_where_it_is_faster_here(folders: Path) -> None:
    """A pass of a waiting target costs the same for many tokens as for one; a head that is never right cannot pay."""
    source = load_language_model(str(folders / "model"))
    prompts = [[3, 1, 4], [1, 5], [9, 2, 6, 5], [0] * 5000]
    said: list[str] = []
    wrong = new_draft_head(source.model, "eagle", seed=1).requires_grad_(False)
    least = source.model.lm_head.weight[:LETTERS].sum(0)
    wrong.fuse.weight.zero_()
    wrong.fuse.bias.copy_(-100 * least / least.norm())  # its drafts are tokens that the target hardly says
    off = fastest_shapes(source, wrong, prompts, budget_s=0.1, say=said.append)
    assert off.greedy is None and off.sampled is None
    assert off.text.count("switched off: not faster here") == 2
    assert "60 replies of up to 8 tokens" in said[0]
    source.model.model.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    on = fastest_shapes(source, reading_head(source.model), prompts[:1], budget_s=0.1, say=said.append)
    assert on.greedy is not None and "times as fast here" in on.text


@pytest.mark.parametrize("shape", [chain(2), TreeShape(3, 2, 6)], ids=["chain", "tree"])
def test_sampled_tokens_have_the_models_law_when_another_joins(model: LanguageModel, shape: TreeShape) -> None:
    """Three tokens over many draws, all alone or with another that joins behind the first or second pass."""
    target = tiny_llama(1, vocab_size=5, initializer_range=0.2)
    source = LanguageModel("tiny", Path(), target, None, (), 128)
    draft = DraftDecoding(source, new_draft_head(target, "fspad", seed=1).requires_grad_(False),
                          Shapes(shape, shape, ""))  # fmt: skip
    decoder = BatchDecoder(choose_forward(target, 2), slots=2, end_ids=(), alone=draft.alone)
    ids, temperature, top_p, count = [1, 2, 3], 0.9, 0.95, 800
    found = np.zeros((5, 5, 5))
    for seed in range(count):
        one = Generation(ids, Sampling(temperature, top_p), 3)
        one.random = draws(seed)
        decoder.join(one)
        for step in range(5):
            if step == 1 + seed % 3 and one.finish is None:
                decoder.join(Generation([4], Sampling(0.0), 1))
            decoder.step()
        assert not decoder.running
        found[tuple(one.ids)] += 1
    assert draft.passes > 0.3 * count
    assert law_p_value(found, law_of_triples(target, ids, temperature, top_p)) > 0.01


def test_scores_that_are_no_numbers_end_the_request_with_its_error() -> None:
    target = tiny_llama()
    forward = choose_forward(target, 2)
    with torch.no_grad():
        target.model.embed_tokens.weight[5] = torch.nan
    source = LanguageModel("tiny", Path(), target, None, (), 128)
    draft = DraftDecoding(source, new_draft_head(target).requires_grad_(False), Shapes(SHAPE, SHAPE, ""))
    decoder = BatchDecoder(forward, slots=2, end_ids=(), alone=draft.alone)
    one = Generation([4, 5, 6], Sampling(0.0), 5)
    decoder.join(one)
    while decoder.running:
        decoder.step()
    assert one.ids == []
    assert "not finite" in str(one.error)
