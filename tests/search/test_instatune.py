"""InstaTune: slices equal the super-network's own pass, the loss by hand, importance order, what training changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from ontarget.errors import SettingError
from ontarget.parts.slim_bert import SlimBert
from ontarget.search.elastic_bert import ElasticBert, elastic_bert, from_bert
from ontarget.search.instatune import (
    divergence,
    fit_head,
    instatune,
    instatune_loss,
    linear_schedule,
    make_optimizer,
    sort_by_importance,
)
from ontarget.search.rows import batches
from ontarget.search.space import count, draw
from ontarget.search.tune_slice import tune_slice
from ontarget.values import Context

CONFIG: dict[str, Any] = {
    "network": "bert", "vocabulary": 50, "positions": 16, "width": 24, "head_width": 6, "outputs": 3,
    "layers": [{"heads": 4, "hidden": 32}] * 3,
}  # fmt: skip


def space_of(seed: int = 0) -> ElasticBert:
    torch.manual_seed(seed)
    return ElasticBert(SlimBert(CONFIG), CONFIG, layers=(2, 3), heads=(2, 3, 4), hidden=(16, 32), length=8)


def tokens(rows: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 50, (rows, 8), generator=generator)
    mask = torch.ones_like(ids)
    mask[: rows // 2, 5:] = 0
    return ids, mask


def test_slices_equal_the_super_network_and_have_no_more_than_their_part() -> None:
    space = space_of().eval()
    ids, mask = tokens()
    generator = np.random.default_rng(0)
    for _ in range(8):
        code = draw(space, generator)
        plain = space.slice(code)
        assert torch.allclose(plain(ids, mask), space(ids, mask, code), atol=1e-6)
        sizes = space.sizes(code)
        assert [attention.joint.out_features for attention in plain.attentions] == [3 * 6 * h for h, _ in sizes]
        assert [forward.inner.out_features for forward in plain.feed_forwards] == [w for _, w in sizes]
    full = space.slice(space.largest)
    assert torch.equal(full(ids, mask), space.network(ids, mask))
    # Padding changes nothing.
    other = ids.clone()
    other[:3, 5:] = 7
    assert torch.allclose(space(ids, mask, space.largest), space(other, mask, space.largest), atol=1e-6)


def test_layers_that_are_spread_are_those_of_the_full_network() -> None:
    config = {**CONFIG, "layers": CONFIG["layers"][:1] * 6}
    torch.manual_seed(0)
    network = SlimBert(config)
    space = ElasticBert(network, config, layers=(1, 3, 6), heads=(2, 4), hidden=(16, 32), length=8, depth="spread")
    assert [space.kept((choice, *(0,) * 12)) for choice in range(3)] == [[0], [0, 2, 5], [0, 1, 2, 3, 4, 5]]
    code = (1, *(1,) * 6, *(1,) * 6)
    assert space.canonical(code) == (1, 1, 0, 1, 0, 0, 1, 1, 0, 1, 0, 0, 1)
    ids, mask = tokens()
    hidden = network.eval().embeddings(ids)
    for at in (0, 2, 5):
        hidden = network.feed_forwards[at](network.attentions[at](hidden, mask))
    expected = network.head(hidden, mask)
    assert torch.allclose(space(ids, mask, code), expected, atol=1e-6)
    plain = space.eval().slice(code)
    assert len(plain.attentions) == 3 and torch.allclose(plain(ids, mask), expected, atol=1e-6)
    first = ElasticBert(network, config, layers=(3, 6), heads=(4,), hidden=(32,))
    assert first.kept((0,) * 13) == [0, 1, 2]  # as published
    with pytest.raises(SettingError, match="depth is 'last'"):
        ElasticBert(network, config, layers=(3, 6), heads=(4,), hidden=(32,), depth="last")  # type: ignore[arg-type]


def test_sub_networks_may_be_drawn_by_the_caller() -> None:
    space, asked = space_of(), []
    before = space.network.attentions[2].joint.weight.clone(), space.network.attentions[1].joint.weight.clone()

    def smallest(generator: np.random.Generator) -> tuple[int, ...]:
        asked.append(generator)
        return space.canonical((0,) * len(space.slots))

    instatune(space, learnable(32), epochs=2, batch_size=16, alpha=0.0, learning_rate=1e-3, drawn=smallest)
    assert len(asked) == 4
    # Of the smallest, taught by a detached network, the third layer is no part: only its decay changes it.
    decayed = torch.allclose(space.network.attentions[2].joint.weight / before[0], torch.ones(()), atol=1e-4)
    assert decayed and not torch.allclose(space.network.attentions[1].joint.weight, before[1], atol=1e-4)


def test_without_a_teacher_a_network_is_fine_tuned_from_its_labels() -> None:
    rows, space = learnable(16), space_of()
    found, expected = space.slice(space.largest), space.slice(space.largest)
    tune_slice(found, rows, teacher=None, epochs=1, batch_size=16, learning_rate=1e-3, warm_up=1.0)
    optimizer = make_optimizer(expected.train(), 1e-3, 10.0, 0.01)
    ids, mask, labels = next(batches(rows, 16, seed=0, epoch=0))
    torch.nn.functional.cross_entropy(expected(ids, mask), labels).backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(expected.parameters(), 1.0)
    optimizer.step()
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_the_source_is_reproduced_and_other_architectures_are_named() -> None:
    from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=50, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=32,
            max_position_embeddings=16,
        )
    ).eval()  # fmt: skip
    network, config = from_bert(model, outputs=2)
    ids, mask = tokens()
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).last_hidden_state
        hidden = network.embeddings(ids)
        for attention, forward in zip(network.attentions, network.feed_forwards, strict=True):
            hidden = forward(attention(hidden, mask))
    assert torch.allclose(hidden[mask.bool()], expected[mask.bool()], atol=1e-5)
    assert torch.count_nonzero(network(ids, mask)) == 0  # the head is fresh
    space = elastic_bert(model, outputs=2, length=8)
    assert space.layers == (2, 3) and space.heads == (2, 3, 4) and space.hidden == (16, 24, 32)
    assert config["layers"][0] == {"heads": 4, "hidden": 32}
    small = DistilBertModel(DistilBertConfig(dim=12, n_layers=1, n_heads=2, hidden_dim=8, vocab_size=20))
    with pytest.raises(SettingError, match="DistilBertModel cannot be sliced"):
        from_bert(small, outputs=2)


def test_macs_by_hand_and_equal_networks_have_equal_codes() -> None:
    space = space_of()
    code = space.canonical((0, 0, 2, 1, 0, 1, 1))
    assert code == (0, 0, 2, 0, 0, 1, 0)  # two layers: what the third has is 0
    heads, neurons, tokens_, width, d = (2, 4), (16, 32), 8, 24, 6
    expected = sum(
        tokens_ * width * h * d * 4 + 2 * tokens_ * tokens_ * h * d + 2 * tokens_ * width * n
        for h, n in zip(heads, neurons, strict=True)
    )
    assert space.macs(code) == expected + 24 * 3
    assert count(space) == 2 * 3**3 * 2**3
    with pytest.raises(SettingError, match="heads is"):
        ElasticBert(SlimBert(CONFIG), CONFIG, layers=(2, 3), heads=(2, 5), hidden=(16,))


def test_the_loss_by_hand() -> None:
    torch.manual_seed(0)
    full, part, teacher = torch.randn(4, 3), torch.randn(4, 3), torch.randn(4, 3)
    labels = torch.tensor([0, 1, 2, 1])

    def kl(student: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        p, q = torch.softmax(of, 1), torch.softmax(student, 1)
        return (p * (p / q).log()).sum(1).mean()

    ce = F.cross_entropy(full, labels) + F.cross_entropy(part, labels)
    assert float(divergence(part, full, 1.0)) == pytest.approx(float(kl(part, full)), rel=1e-5)
    cheap = instatune_loss(full, part, None, labels, alpha=0.3, gamma=0.0)
    assert float(cheap) == pytest.approx(float(0.3 * ce + 0.7 * kl(part, full)), rel=1e-5)
    strong = instatune_loss(full, part, teacher, labels, alpha=0.3, gamma=1.0)
    assert float(strong) == pytest.approx(float(0.3 * ce + 0.7 * (kl(full, teacher) + kl(part, teacher))), rel=1e-5)
    # The full network is detached where it teaches: with the labels' weight at 0 nothing reaches it.
    full.requires_grad_()
    part.requires_grad_()
    instatune_loss(full, part, None, labels, alpha=0.0, gamma=0.0).backward()
    assert full.grad is None or torch.count_nonzero(full.grad) == 0
    assert part.grad is not None and torch.count_nonzero(part.grad) > 0


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_a_step_is_one_of_the_whole_loss(gamma: float) -> None:
    """S and s are passed backward one after the other: as if the sum of the loss were."""
    rows, found, expected = learnable(16), space_of(), space_of()
    teacher = space_of(seed=5).eval()

    def taught(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return teacher(ids, mask, teacher.largest)  # type: ignore[no-any-return]

    instatune(found, rows, teacher=taught, gamma=gamma, epochs=1, batch_size=16, learning_rate=1e-3, warm_up=1.0)
    optimizer = make_optimizer(expected.train().network, 1e-3, 10.0, 0.01)
    ids, mask, labels = next(batches(rows, 16, seed=0, epoch=0))
    code = draw(expected, np.random.default_rng(0))
    full, part = expected(ids, mask, expected.largest), expected(ids, mask, code)
    loss = instatune_loss(full, part, taught(ids, mask).detach(), labels, alpha=0.3, gamma=gamma)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(expected.parameters(), 1.0)
    optimizer.step()
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_slice_tuned_by_itself_learns_from_labels_and_teacher_alike() -> None:
    """One step by hand; with the labels' weight at 0 the teacher's scores alone are learnt, wrong as they may be."""
    rows, space, teacher = learnable(16), space_of(), space_of(seed=5).eval()
    code = space.canonical((0,) * len(space.slots))
    taught = teacher.slice(teacher.largest).eval()
    found, expected = space.slice(code), space.slice(code)
    tune_slice(found, rows, teacher=taught, epochs=1, batch_size=16, learning_rate=1e-3, warm_up=1.0)
    optimizer = make_optimizer(expected.train(), 1e-3, 10.0, 0.01)
    ids, mask, labels = next(batches(rows, 16, seed=0, epoch=0))
    scores = expected(ids, mask)
    wanted = torch.nn.functional.kl_div(scores.log_softmax(1), taught(ids, mask).detach().softmax(1),
                                        reduction="batchmean")  # fmt: skip
    loss = 0.3 * torch.nn.functional.cross_entropy(scores, labels) + 0.7 * wanted
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(expected.parameters(), 1.0)
    optimizer.step()
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    student = space.slice(code)
    curve = tune_slice(student, rows, teacher=taught, epochs=30, batch_size=16, learning_rate=1e-2, alpha=0.0)
    assert not student.training and curve[-1] < 0.5 * curve[0]
    with pytest.raises(SettingError, match="alpha is 2"):
        tune_slice(student, rows, teacher=taught, epochs=1, alpha=2.0)


def test_sorting_keeps_the_full_networks_scores_and_puts_the_most_important_first() -> None:
    space = space_of().eval()
    ids, mask = tokens(12)
    labels = torch.arange(12) % 3
    with torch.no_grad():  # a head and neurons that do nothing come first
        for attention in space.network.attentions:
            attention.output.weight[:, :6] = 0
        for forward in space.network.feed_forwards:
            forward.outer.weight[:, :16] = 0
    before = space(ids, mask, space.largest)
    sort_by_importance(space, TensorDataset(ids, mask, labels), batch_size=6)
    assert torch.allclose(space(ids, mask, space.largest), before, atol=1e-5)
    for attention in space.network.attentions:
        assert torch.count_nonzero(attention.output.weight[:, -6:]) == 0
    for forward in space.network.feed_forwards:
        assert torch.count_nonzero(forward.outer.weight[:, 16:]) == 0


def test_a_head_of_zeros_is_fitted_so_that_importance_is_told() -> None:
    """One neuron alone carries the class: it has to come first, and does not under a head of zeros."""
    rows = learnable(240)
    space = space_of().eval()
    with torch.no_grad():
        space.network.head.linear.weight.zero_()
        space.network.head.linear.bias.zero_()
        for forward in space.network.feed_forwards:
            forward.outer.weight[:, :-1] *= 1e-3
    ids, mask, labels = rows.tensors
    likely = torch.nn.functional.cross_entropy(space(ids, mask, space.largest), labels)
    last = [forward.outer.weight[:, -1].clone() for forward in space.network.feed_forwards]
    fit_head(space, rows)
    assert torch.nn.functional.cross_entropy(space(ids, mask, space.largest), labels) < 0.9 * likely
    sort_by_importance(space, rows)
    for forward, column in zip(space.network.feed_forwards, last, strict=True):
        assert torch.equal(forward.outer.weight[:, 0], column)


def learnable(rows: int = 96) -> TensorDataset:
    """The class is which of three tokens occurs."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(10, 50, (rows, 8), generator=generator)
    labels = torch.arange(rows) % 3
    ids[torch.arange(rows), torch.randint(0, 8, (rows,), generator=generator)] = labels
    return TensorDataset(ids, torch.ones_like(ids), labels)


def test_training_teaches_slices_and_repeats_itself() -> None:
    rows = learnable()
    spaces = [space_of(), space_of()]
    results = [
        instatune(space, rows, epochs=12, batch_size=16, learning_rate=3e-3, head_factor=3.0) for space in spaces
    ]
    assert results[0].history == results[1].history
    assert results[0].history[-1]["part"] < 0.7 * results[0].history[0]["part"]
    assert results[0].steps == 72 and not spaces[0].training
    ids, mask, labels = rows.tensors
    smallest = spaces[0].canonical((0,) * len(spaces[0].slots))
    with torch.inference_mode():
        found = (spaces[0].slice(smallest)(ids, mask).argmax(1) == labels).float().mean()
    assert found > 0.6


def test_a_killed_training_goes_on_as_if_it_had_not_been_killed(tmp_path: Path) -> None:
    rows, whole = learnable(48), space_of()
    expected = instatune(whole, rows, epochs=3, batch_size=16, learning_rate=1e-3)

    def dying(done: int, total: int, what: str) -> None:
        if done == 5:
            raise KeyboardInterrupt

    state = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        instatune(space_of(), rows, epochs=3, batch_size=16, learning_rate=1e-3, checkpoint=state,
                  context=Context(progress=dying))  # fmt: skip
    again = space_of(seed=4)
    found = instatune(again, rows, epochs=3, batch_size=16, learning_rate=1e-3, checkpoint=state)
    assert found.history == expected.history
    assert all(torch.equal(one, other) for one, other in zip(again.state_dict().values(), whole.state_dict().values()))


def test_an_epoch_that_a_deadline_cuts_short_is_told_by_the_steps_taken() -> None:
    rows = learnable(96)
    long, short = (Context(deadline=deadline) for deadline in (None, 0.0))  # 0: long past
    whole = instatune(space_of(), rows, epochs=1, batch_size=16, learning_rate=0.0, context=long)
    cut = instatune(space_of(), rows, epochs=3, batch_size=16, learning_rate=0.0, context=short)
    assert (whole.steps, cut.steps, len(cut.history)) == (6, 1, 1)
    ids, mask, labels = next(batches(rows, 16, seed=0, epoch=0))
    space = space_of().eval()
    with torch.inference_mode():
        expected = float(F.cross_entropy(space(ids, mask, space.largest), labels))
    assert cut.history[0]["full"] == pytest.approx(expected, rel=1e-4)


def test_a_teacher_is_asked_only_where_gamma_says_so_and_is_demanded() -> None:
    rows, asked = learnable(32), []

    def teacher(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        asked.append(len(ids))
        return torch.zeros(len(ids), 3)

    instatune(space_of(), rows, teacher=teacher, gamma=lambda epoch: float(epoch < 1), epochs=2, batch_size=16)
    assert asked == [16, 16]
    with pytest.raises(SettingError, match="there is no teacher"):
        instatune(space_of(), rows, gamma=1.0)
    with pytest.raises(SettingError, match=r"alpha is 1\.5"):
        instatune(space_of(), rows, alpha=1.5)
    factor = linear_schedule(10, 0.2)
    assert [round(factor(step), 3) for step in (0, 1, 2, 6, 10)] == [0.5, 1.0, 1.0, 0.5, 0.0]
