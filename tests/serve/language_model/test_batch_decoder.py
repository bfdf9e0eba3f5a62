"""Batched decoding against `model.generate` of each request alone, with joining, leaving, and models of many kinds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ontarget.errors import DataError, RunError
from ontarget.serve.language_model.batch_decoder import BatchDecoder, Generation, Generator
from ontarget.serve.language_model.choose_forward import attends_to_all, choose_forward, error_of
from ontarget.serve.language_model.forward import BatchedForward, Forward, SteppedForward
from ontarget.serve.language_model.sampling import Sampling

GREEDY = Sampling(temperature=0)


def llama(**more: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=256, initializer_range=0.3, eos_token_id=2, pad_token_id=0,
        **more,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model() -> Any:
    return llama()


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(3, 97, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def alone(model: Any, ids: list[int], count: int) -> list[int]:
    """What transformers' own generation gives."""
    given = torch.tensor([ids])
    with torch.inference_mode():
        found = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=count, do_sample=False)
    return found[0, len(ids) :].tolist()


def drained(decoder: BatchDecoder) -> None:
    while decoder.running:
        decoder.step()


@pytest.mark.parametrize("way", [BatchedForward, SteppedForward])
@pytest.mark.parametrize("piece", [4, 256])
def test_each_request_gets_what_it_gets_alone(model: Any, way: type[Any], piece: int) -> None:
    """Nine requests on three slots: they join when a slot is free, with prompts of 1 to 70 tokens."""
    lengths = [1, 5, 70, 2, 13, 31, 3, 64, 8]
    waiting = [Generation(prompt(length, at), GREEDY, 6 + 5 * (at % 4)) for at, length in enumerate(lengths)]
    everyone = list(waiting)
    decoder = BatchDecoder(way(model, 3), slots=3, end_ids=[2], piece=piece)
    most = 0
    while waiting or decoder.running:
        while waiting and len(decoder.running) < 3:
            decoder.join(waiting.pop(0))
        most = max(most, len(decoder.running))
        for generation, ids in decoder.step():
            assert generation.ids[len(generation.ids) - len(ids) :] == ids
    assert most == 3
    for generation in everyone:
        assert generation.ids == alone(model, generation.prompt, generation.max_new)
        assert generation.finish == ("stop" if generation.ids[-1] == 2 else "length")
    assert {generation.finish for generation in everyone} == {"length", "stop"}


def test_those_that_leave_midway_change_nothing_for_the_others(model: Any) -> None:
    """Every row is left once, while another's prompt is being read; the rows of the others move."""
    for leaver in range(4):
        generations = [Generation(prompt(9 + 4 * at, 20 + at), GREEDY, 12) for at in range(4)]
        decoder = BatchDecoder(BatchedForward(model, 4), slots=4, end_ids=(), piece=5)
        for generation in generations:
            decoder.join(generation)
        while not generations[2].ids:
            decoder.step()
        decoder.step()
        assert generations[3].cached
        decoder.leave(generations[leaver])
        decoder.leave(generations[leaver])
        late = Generation(prompt(6, 40), GREEDY, 5)
        decoder.join(late)
        drained(decoder)
        for at, generation in enumerate([*generations, late]):
            if at != leaver:
                model_alone = alone_without_end(model, generation.prompt, generation.max_new)
                assert generation.ids == model_alone


def alone_without_end(model: Any, ids: list[int], count: int) -> list[int]:
    ids = list(ids)
    before = len(ids)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[before:]


def test_no_more_than_the_slots_join(model: Any) -> None:
    decoder = BatchDecoder(BatchedForward(model, 1), slots=1, end_ids=())
    decoder.join(Generation([3], GREEDY, 2))
    with pytest.raises(RunError, match="slots are taken"):
        decoder.join(Generation([3], GREEDY, 2))


def test_a_seed_gives_the_same_text_beside_others(model: Any) -> None:
    def sampled(others: int) -> list[int]:
        decoder = BatchDecoder(BatchedForward(model, 4), slots=4, end_ids=())
        one = Generation(prompt(7, 1), Sampling(temperature=1.0, top_p=0.9, seed=11), 20)
        for at in range(others):
            decoder.join(Generation(prompt(3 + at, 50 + at), Sampling(seed=at), 9))
        decoder.join(one)
        drained(decoder)
        return one.ids

    assert sampled(0) == sampled(3)
    assert sampled(0) != alone_without_end(model, prompt(7, 1), 20)


def test_numbers_that_are_not_finite_end_one_request_and_spare_the_next(model: Any) -> None:
    broken = llama()
    with torch.no_grad():
        broken.model.embed_tokens.weight[5] = torch.nan
    decoder = BatchDecoder(BatchedForward(broken, 2), slots=2, end_ids=())
    bad, good = Generation([4, 5, 6], GREEDY, 5), Generation([4, 7, 6, 8], GREEDY, 5)
    decoder.join(bad)
    decoder.join(good)
    drained(decoder)
    assert bad.error is not None
    assert bad.ids == []
    after = Generation([9], GREEDY, 8)  # in the row that held NaN
    decoder.join(after)
    drained(decoder)
    assert good.ids == alone_without_end(model, good.prompt, 5)
    assert after.ids == alone_without_end(model, after.prompt, 8)


def two_at_once(model: Any, started: list[tuple[int, int]]) -> Generator:
    """Notes how many ids a request had when it began to run alone."""

    def alone(one: Generation) -> Iterator[list[int]]:
        started.append((len(one.prompt), len(one.ids)))
        ids = [*one.prompt, *one.ids]
        while True:
            yield []
            new = alone_without_end(model, ids, 2)
            ids += new
            yield new

    return alone


@pytest.mark.parametrize("way", [BatchedForward, SteppedForward])
def test_a_generator_makes_the_text_of_one_alone_until_another_joins(model: Any, way: type[Any]) -> None:
    started: list[tuple[int, int]] = []
    decoder = BatchDecoder(way(model, 2), slots=2, end_ids=(), alone=two_at_once(model, started))
    first, second = Generation(prompt(5, 3), GREEDY, 41), Generation(prompt(8, 4), GREEDY, 7)
    decoder.join(first)
    assert decoder.step() == []
    assert [len(ids) for _, ids in decoder.step()] == [2]
    decoder.join(second)
    drained(decoder)
    # The second one's text is read when the first one's is; both then say a token in each step.
    assert started == [(5, 0), (5, 2 + 1 + second.max_new)]
    assert first.ids == alone_without_end(model, first.prompt, 41)
    assert second.ids == alone_without_end(model, second.prompt, 7)
    third = Generation(prompt(4, 5), GREEDY, 3)  # an odd number: what is over is cut off
    decoder.join(third)
    drained(decoder)
    assert third.ids == alone_without_end(model, third.prompt, 3)


def test_a_text_that_soon_ends_is_not_read_anew(model: Any) -> None:
    started: list[tuple[int, int]] = []
    decoder = BatchDecoder(BatchedForward(model, 2), slots=2, end_ids=(), alone=two_at_once(model, started))
    long, short = Generation(prompt(30, 3), GREEDY, 20), Generation(prompt(3, 4), GREEDY, 4)
    decoder.join(long)
    decoder.join(short)
    drained(decoder)
    assert started == []
    assert long.ids == alone_without_end(model, long.prompt, 20)


def test_one_that_runs_alone_may_leave_and_come_back_to_the_shared_steps(model: Any) -> None:
    """Leaving in a prompt that is half read, alone and beside another whose prompt is half read."""
    started: list[tuple[int, int]] = []
    decoder = BatchDecoder(BatchedForward(model, 2), slots=2, end_ids=(), piece=4, alone=two_at_once(model, started))
    one, two = Generation(prompt(9, 3), GREEDY, 30), Generation(prompt(10, 4), GREEDY, 30)
    decoder.join(one)
    decoder.step()
    decoder.leave(one)
    assert decoder.running == []
    again = Generation(prompt(9, 3), GREEDY, 30)
    decoder.join(again)
    decoder.join(two)
    decoder.step()
    decoder.leave(again)
    drained(decoder)
    assert started == [(9, 0), (10, 0)]
    assert two.ids == alone_without_end(model, two.prompt, 30)


def test_a_generator_that_fails_ends_early_or_is_not_for_a_request_leaves_it_to_the_shared_steps(model: Any) -> None:
    asked = []

    def short(one: Generation) -> Iterator[list[int]] | None:
        asked.append(one.prompt)
        return None if one.prompt == [6] else ending(one)

    def ending(one: Generation) -> Iterator[list[int]]:
        yield alone_without_end(model, one.prompt, 1)
        if one.prompt == [4]:
            raise ValueError("draft model lost")

    decoder = BatchDecoder(BatchedForward(model, 2), slots=2, end_ids=(), alone=short)
    for first in (4, 5, 6):
        one = Generation([first], GREEDY, 5)
        decoder.join(one)
        drained(decoder)
        assert one.error is None
        assert one.ids == alone_without_end(model, [first], 5)
    assert asked == [[4], [5], [6]]


def small(kind: str) -> Any:
    """Random models of other makes."""
    import transformers

    torch.manual_seed(1)
    sizes = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    common = {**sizes, "num_key_value_heads": 2, "intermediate_size": 48, "initializer_range": 0.3}
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=256)
    elif kind == "mistral":
        config = transformers.MistralConfig(**common, sliding_window=6)
    elif kind == "qwen2":
        config = transformers.Qwen2Config(**common)
    elif kind == "neox":
        config = transformers.GPTNeoXConfig(**sizes, intermediate_size=48, initializer_range=0.3)
    elif kind == "bloom":
        config = transformers.BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4)
    else:
        config = transformers.BertConfig(**sizes, intermediate_size=48, initializer_range=0.3)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(
    ("kind", "way"),
    [("gpt2", BatchedForward), ("qwen2", BatchedForward), ("neox", BatchedForward), ("mistral", SteppedForward),
     ("bloom", None)],
)  # fmt: skip
def test_other_makes_are_batched_where_that_is_right(kind: str, way: type[Forward] | None) -> None:
    model = small(kind)
    forward = choose_forward(model, 3)
    if way is not None:
        assert type(forward) is way
    decoder = BatchDecoder(forward, slots=3, end_ids=(), piece=7)
    generations = [Generation(prompt(length, length), GREEDY, 10) for length in (4, 17, 9)]
    for generation in generations:
        decoder.join(generation)
    drained(decoder)
    for generation in generations:
        assert generation.ids == alone_without_end(model, generation.prompt, 10)


def test_a_model_that_reads_both_ways_is_refused() -> None:
    with pytest.raises(DataError, match="no causal language model"):
        choose_forward(small("bert"), 2)


def test_the_proof_sees_a_wrong_mask(model: Any) -> None:
    class Seeing(BatchedForward):
        def _run(self, ids: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
            return super()._run(ids, starts + (ids.shape[1] == 1))  # one place too far

    assert error_of(model, BatchedForward(model, 2)) is None
    assert "differ" in str(error_of(model, Seeing(model, 2)))
    assert not attends_to_all(llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}).config)


def test_memory_grows_when_needed_and_is_given_back(model: Any) -> None:
    forward = BatchedForward(model, 2)
    decoder = BatchDecoder(forward, slots=2, end_ids=())
    decoder.join(Generation(prompt(5, 1), GREEDY, 3))
    drained(decoder)
    assert forward.capacity == 64  # little is kept
    decoder.join(Generation(prompt(1100, 1), GREEDY, 3))
    decoder.step()
    assert forward.capacity >= 256
    drained(decoder)
    assert forward.capacity == 0
