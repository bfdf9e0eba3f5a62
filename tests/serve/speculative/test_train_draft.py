"""Training of draft heads: the loss by hand, learning, going on after a kill, refusals."""

from __future__ import annotations

import copy

import pytest
import torch

from ontarget.errors import DataError, SettingError
from ontarget.serve.speculative import train_draft as training
from ontarget.serve.speculative.draft_head import KINDS, new_draft_head
from ontarget.serve.speculative.draft_tree import chain
from ontarget.serve.speculative.generate import generate
from ontarget.serve.speculative.train_draft import draft_loss, train_draft
from ontarget.serve.speculative.worth_it import measure, worth_it
from ontarget.values import Context


def texts(count: int, length: int = 16) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 40, (count, length), generator=generator).tolist()


def test_loss_by_hand(tiny_llama, monkeypatch) -> None:
    model = tiny_llama()
    head = new_draft_head(model, "fspad")
    torch.nn.init.normal_(head.extra.weight, std=0.1)
    ids = torch.tensor([texts(1)[0]])
    states = model.model(ids).last_hidden_state.detach()
    counted = torch.zeros(1, 15).bool()
    counted[0, 4:] = True
    found = draft_loss(head, states[:, :-1], ids[:, 1:], states[:, 1:], counted)
    guess, read, _ = head(states[:, :-1], ids[:, 1:])
    regression = entropy = 0.0
    for at in range(4, 15):  # the head at i, which has read x_{i+1}, matches the state and the scores at i + 1
        off = (guess[0, at] - states[0, at + 1]).abs()
        regression += torch.where(off < 1, off**2 / 2, off - 0.5).mean() / 11
        law = model(ids).logits[0, at + 1].softmax(-1)
        entropy += -(law * (read[0, at] @ model.lm_head.weight.T).log_softmax(-1)).sum() / 11
    torch.testing.assert_close(found, regression + 0.1 * entropy, rtol=1e-4, atol=1e-5)
    whole = torch.autograd.grad(found, head.query.weight)[0]
    monkeypatch.setattr(training, "SCORES", 40 * 3)  # three positions at a time
    parts = draft_loss(head, states[:, :-1], ids[:, 1:], states[:, 1:], counted)
    torch.testing.assert_close(parts, found)
    torch.testing.assert_close(torch.autograd.grad(parts, head.query.weight)[0], whole, rtol=1e-4, atol=1e-6)


def test_padding_noise_and_what_counts() -> None:
    states = [torch.arange(8.0).view(4, 2), torch.arange(6.0).view(3, 2)]
    batch = [([5, 6, 7, 8], 3, states[0]), ([1, 2, 3], 0, states[1])]
    features, tokens, wanted, counted = training._padded(batch, 0.0, torch.Generator(), "cpu")
    assert tokens.tolist() == [[6, 7, 8], [2, 3, 0]]
    assert features[0].tolist() == [[0, 1], [2, 3], [4, 5]] and wanted[0].tolist() == [[2, 3], [4, 5], [6, 7]]
    assert wanted[1].tolist() == [[2, 3], [4, 5], [0, 0]]
    # The reply begins with token 8 at 3, which the head drafts at 1.
    assert counted.tolist() == [[False, True, True], [True, True, False]]
    noisy = training._padded(batch, 0.2, torch.Generator().manual_seed(0), "cpu")[0]
    off = (noisy - features)[0].abs()
    assert 0 < off.max() <= 0.5 * 0.2 * 512 / 4 and torch.equal(noisy[1, 2], torch.zeros(2))


@pytest.mark.parametrize("kind", KINDS)
def test_trained_head_drafts_better_and_the_target_is_as_it_was(tiny_llama, kind) -> None:
    model = tiny_llama(3, initializer_range=0.1)
    before = copy.deepcopy(model.state_dict())
    replies = [torch.tensor([ids]) for ids in texts(24, 3)]
    with torch.no_grad():
        replies = [model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False,
                                  eos_token_id=None, pad_token_id=0)[0].tolist() for ids in replies]  # fmt: skip
    trained = train_draft(model, replies, kind=kind, epochs=12, learning_rate=3e-3, noise=0.01)
    assert trained.losses[-1] < 0.75 * trained.losses[0]  # the target's own entropy stays
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())

    def passes(head) -> float:
        return measure(lambda ids: generate(model, head, ids, max_new_tokens=16, shape=chain(3)),
                       [reply[:3] for reply in replies[:8]]).tokens_per_pass  # fmt: skip

    assert passes(trained.head) > passes(new_draft_head(model, kind)) + 0.2


def test_a_killed_training_goes_on(tiny_llama, tmp_path) -> None:
    model, data = tiny_llama(), texts(6)
    settings = {"epochs": 4, "learning_rate": 1e-3, "batch_size": 2}
    whole = train_draft(model, data, **settings)

    def kill(done: int, total: int, what: str) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_draft(model, data, folder=tmp_path, **settings, context=Context(progress=kill))
    seen: list[int] = []
    again = train_draft(model, data, folder=tmp_path, **settings,
                        context=Context(progress=lambda done, total, what: seen.append(done)))  # fmt: skip
    assert seen[0] == 6 and again.losses == whole.losses
    for one, two in zip(again.head.parameters(), whole.head.parameters(), strict=True):
        assert torch.equal(one, two)
    other = train_draft(model, data, folder=tmp_path, **settings | {"learning_rate": 2e-3})
    assert other.losses != whole.losses and len(other.losses) == 4  # a state of other settings is not taken


def test_long_and_short_sequences_are_counted(tiny_llama) -> None:
    trained = train_draft(tiny_llama(), [[1] * 20, [1] * 8, [1, 2], [3] * 9], starts=[0, 0, 0, 8], epochs=1, length=8)
    assert (trained.cut, trained.skipped) == (2, 2)


def test_refusals(tiny_llama) -> None:
    model = tiny_llama()
    with pytest.raises(DataError, match="no text to learn"):
        train_draft(model, [[1, 2]])
    with pytest.raises(SettingError, match="epochs 0"):
        train_draft(model, texts(2), epochs=0)
    model.model.norm.weight.data[:] = float("nan")
    with pytest.raises(DataError):
        train_draft(model, texts(2), epochs=1)


def test_loss_that_is_not_finite_is_told(tiny_llama) -> None:
    model = tiny_llama()
    with pytest.raises(DataError, match="loss of step"):
        train_draft(model, texts(8), epochs=5, learning_rate=1e30, warm_up=0)


def test_a_head_that_does_not_pay_is_switched_off(tiny_llama) -> None:
    model = tiny_llama()
    head = new_draft_head(model, "eagle").requires_grad_(False)
    verdict = worth_it(model, head, [[1, 2, 3], [4]], shapes=(chain(8),), max_new_tokens=24)
    assert verdict.shape is None and verdict.text.startswith("The draft head is switched off: not faster here")
    lists = list(verdict.generate(model, head, [1, 2], max_new_tokens=5))
    assert [len(each) for each in lists] == [1] * 5
    assert verdict.plain.tokens == 48 and verdict.plain.tokens_per_pass == 1.0
    with pytest.raises(DataError, match="no prompts"):
        worth_it(model, head, [])


def test_catalogue_calls_the_method(tiny_llama) -> None:
    from ontarget.catalogue import search

    method = search("63")[0]
    trained = method.load()(tiny_llama(), texts(2), epochs=1)
    assert method.name == "fspad" and trained.head.kind == "fspad"
