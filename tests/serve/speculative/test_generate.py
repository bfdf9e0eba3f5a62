"""Generation with a draft head: the model's own greedy tokens, its own law; ends, windows, roll-back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ontarget.errors import DataError
from ontarget.serve.packed_linear import packed_linears
from ontarget.serve.speculative.draft_head import KINDS, new_draft_head
from ontarget.serve.speculative.draft_tree import TreeShape, chain
from ontarget.serve.speculative.generate import generate, generate_plain
from ontarget.serve.speculative.target import Target
from ontarget.testing.language_checks import law_of_triples, law_p_value

SHAPES = (TreeShape(10, 7, 60), TreeShape(3, 4, 12), chain(4), chain(1))


def flat(lists):
    return [token for each in lists for token in each]


def plain(model, ids, count):
    given = torch.tensor([ids])
    made = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=count, do_sample=False,
                          pad_token_id=0, eos_token_id=None)  # fmt: skip
    return made[0, len(ids) :].tolist()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_greedy_tokens_are_the_models_own(tiny_llama, seed, shape) -> None:
    model = tiny_llama(seed)
    head = new_draft_head(model, KINDS[seed], seed=seed).requires_grad_(False)
    rng = np.random.default_rng(seed)
    for length in (1, 2, 7, 30):
        ids = rng.integers(0, 40, length).tolist()
        wanted = plain(model, ids, 24)
        assert flat(generate_plain(model, ids, max_new_tokens=24)) == wanted
        assert flat(generate(model, head, ids, max_new_tokens=24, shape=shape)) == wanted


def test_a_head_that_knows_the_text_saves_passes(tiny_llama) -> None:
    """A target that continues by the last token alone, and a head that reads that token: everything is accepted."""
    model = tiny_llama(2)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    model.lm_head.weight.data = torch.randn(40, 32) * 3
    head = new_draft_head(model, "eagle").requires_grad_(False)
    head.fuse.weight.zero_()
    head.fuse.bias.zero_()
    head.fuse.weight[:, :32] = torch.eye(32)
    head.output.weight.zero_()
    head.mlp_down.weight.zero_()
    # fhat is the embedding; the target's state is its RMS norm, and a factor changes no best token.
    for shape in (chain(4), TreeShape(4, 4, 20)):
        lists = list(generate(model, head, [3, 1], max_new_tokens=21, shape=shape))
        assert flat(lists) == plain(model, [3, 1], 21)
        # A tree follows what it finds likely, and may drop the greedy path; a chain is that path.
        assert len(lists) <= 6 if shape.top_k > 1 else [len(each) for each in lists] == [1, 5, 5, 5, 5]
    # Ends in the middle of an accepted path, whatever the path holds behind them.
    said = plain(model, [3, 1], 21)
    for end in range(1, 12):
        stop = said[end]
        first = said.index(stop)
        assert flat(generate(model, head, [3, 1], max_new_tokens=21, stop_ids=[stop])) == said[: first + 1]
        assert flat(generate_plain(model, [3, 1], max_new_tokens=21, stop_ids=[stop])) == said[: first + 1]
    for count in range(1, 9):
        assert flat(generate(model, head, [3, 1], max_new_tokens=count)) == said[:count]


@pytest.mark.parametrize("shape", [chain(3), TreeShape(3, 3, 8)], ids=["chain", "tree"])
def test_drafts_from_some_tokens_and_packed_layers_change_nothing_said(tiny_llama, shape) -> None:
    model = tiny_llama(1)
    head = new_draft_head(model, "fspad", seed=1).requires_grad_(False)
    head.restrict([0, 3, 4, 7, 11, 21, 39])
    wanted = plain(model, [3, 1, 2], 24)
    assert flat(generate(model, head, [3, 1, 2], max_new_tokens=24, shape=shape)) == wanted
    head.pack()
    with packed_linears(model):
        assert flat(generate(model, head, [3, 1, 2], max_new_tokens=24, shape=shape)) == wanted


def test_cache_after_roll_back_is_that_of_plain_text(tiny_llama) -> None:
    model = tiny_llama()
    tree, straight = Target(model), Target(model)
    with torch.inference_mode():
        tree.read([4, 5, 6])
        sees = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]).bool()
        states = tree.read([7, 8, 9, 10], depths=torch.tensor([0, 1, 1, 2]), sees=sees)
        tree.keep(3, [0, 2, 3])
        wanted = straight.read([4, 5, 6, 7, 9, 10])
        torch.testing.assert_close(states[:, [0, 2, 3]], wanted[:, 3:], rtol=1e-4, atol=1e-5)
        for one, two in zip(tree.cache.layers, straight.cache.layers, strict=True):
            torch.testing.assert_close(one.keys, two.keys, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(one.values, two.values, rtol=1e-4, atol=1e-5)
        assert tree.length == straight.length == 6
        torch.testing.assert_close(tree.read([11]), straight.read([11]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", [None, [0, 1, 3]], ids=["all", "some"])
@pytest.mark.parametrize("shape", [chain(2), TreeShape(3, 2, 6)], ids=["chain", "tree"])
def test_sampled_tokens_have_the_models_law(tiny_llama, shape, tokens) -> None:
    """The first three tokens over many seeds against the model's own probabilities of all triples."""
    model = tiny_llama(1, vocab_size=5, initializer_range=0.2)
    head = new_draft_head(model, "fspad", seed=1).requires_grad_(False)
    head.restrict(tokens)
    ids, temperature, top_p, draws = [1, 2, 3], 0.9, 0.95, 1500
    found = np.zeros((5, 5, 5))
    for seed in range(draws):
        said = flat(generate(model, head, ids, max_new_tokens=3, temperature=temperature, top_p=top_p, seed=seed,
                             shape=shape))  # fmt: skip
        found[tuple(said)] += 1
    assert law_p_value(found, law_of_triples(model, ids, temperature, top_p)) > 0.01


def test_seeds_repeat(tiny_llama) -> None:
    model = tiny_llama()
    head = new_draft_head(model, "fspad").requires_grad_(False)
    one, two, three = (
        flat(generate(model, head, [1, 2], max_new_tokens=12, temperature=1.0, seed=seed)) for seed in (4, 4, 5)
    )
    assert one == two != three


def test_prompts_are_checked(tiny_llama) -> None:
    model = tiny_llama()
    head = new_draft_head(model, "eagle")
    with pytest.raises(DataError, match="prompt is empty"):
        next(generate(model, head, []))
    with pytest.raises(DataError, match="127 tokens, and 2"):
        next(generate(model, head, [1] * 127, max_new_tokens=2))
    with pytest.raises(DataError, match="the token 40"):
        next(generate_plain(model, [40]))
    assert len(flat(generate(model, head, [1] * 120, max_new_tokens=8))) == 8  # up to the window's end
