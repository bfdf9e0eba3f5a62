"""ProxylessNAS: gate gradients against an independent sum over paths, the paper's softmax rule, latency by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from ontarget.errors import DataError, LimitError, RunError, SettingError
from ontarget.latency_table import LatencyTable, Setting
from ontarget.search.mobile_space import CHOICES, ZERO, MobileSpace, build
from ontarget.search.proxyless import (
    Costs,
    LatencyLoss,
    draw_code,
    full_step,
    joined_loss,
    most_probable,
    proxyless,
    reinforce_step,
    sampled_scores,
    straight_through,
    two_step,
)
from ontarget.search.space import draw
from ontarget.values import Context


def small(seed: int = 0) -> MobileSpace:
    torch.manual_seed(seed)
    return MobileSpace(
        image_size=8, channels=1, outputs=3, stages=((4, 2, 2), (6, 1, 1)), stem_width=(4, 1), first=4, head_width=8
    )


def table_of(space: MobileSpace, scale: float = 1.0) -> LatencyTable:
    """One microsecond for each unit of kernel * expansion, 5 for each fixed operator, 2 for every call."""
    entries = {operator.key: 0.005 for operator in space.fixed_operators()}
    for at, edge in enumerate(space.edges):
        for choice, (kernel, expansion) in enumerate(CHOICES):
            found = space.edge_operator(at, choice)
            assert found is not None and edge.choices
            entries[found.key] = 0.001 * kernel * expansion * scale
    return LatencyTable({}, Setting(), entries, constant_ms=0.002)


def test_a_sampled_path_gives_the_scores_of_its_plain_network() -> None:
    space = small().eval()
    images = torch.randn(5, 1, 8, 8)
    generator = np.random.default_rng(1)
    for _ in range(6):
        code = draw(space, generator)
        plain = space.slice(code).eval()
        assert torch.allclose(space(images, code), plain(images), atol=1e-6)
        gates = [torch.zeros(edge.choices) for edge in space.edges]
        among = [range(edge.choices) for edge in space.edges]
        assert torch.allclose(sampled_scores(space, images, gates, code, among), plain(images), atol=1e-6)
        fresh = build(space.config(code))
        assert {name: tuple(value.shape) for name, value in fresh.state_dict().items()} == {
            name: tuple(value.shape) for name, value in plain.state_dict().items()
        }


@pytest.mark.parametrize("code", [(2, 1, 4), (0, ZERO, 3)])
def test_gate_gradients_equal_those_of_an_explicit_sum_over_all_paths(code: tuple[int, ...]) -> None:
    # An independent formula: y = [x +] sum_k g_k o_k(x) with every path in the graph, at the one-hot gate.
    space = small().eval()
    images, labels = torch.randn(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    gates = [
        torch.nn.functional.one_hot(torch.tensor(choice), edge.choices).float().requires_grad_()
        for edge, choice in zip(space.edges, code, strict=True)
    ]
    hidden = space.first(space.stem(images))
    for edge, gate in zip(space.edges, gates, strict=True):
        total = sum(gate[k] * candidate(hidden) for k, candidate in enumerate(edge.candidates))
        hidden = hidden + total if edge.residual else total
    expected = torch.autograd.grad(torch.nn.functional.cross_entropy(space.head(hidden), labels), gates)
    scores = sampled_scores(space, images, gates, code, [range(edge.choices) for edge in space.edges])
    found = torch.autograd.grad(torch.nn.functional.cross_entropy(scores, labels), gates)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    # The official code drops an edge's whole gradient when "none" is sampled; here the other gates get theirs.
    if ZERO in code:
        assert found[code.index(ZERO)][:ZERO].abs().max() > 0
    assert all(weight.grad is None for weight in space.parameters())


def test_logits_follow_the_papers_softmax_rule() -> None:
    logits = torch.tensor([0.3, -0.2, 0.5], requires_grad=True)
    probabilities = torch.softmax(logits, 0)
    gate = straight_through(probabilities, 1)
    assert torch.allclose(gate.detach(), torch.tensor([0.0, 1.0, 0.0]), atol=1e-7)
    upstream = torch.tensor([1.0, -2.0, 0.5])
    (found,) = torch.autograd.grad((gate * upstream).sum(), logits)
    p = probabilities.detach()
    expected = torch.stack([sum(upstream[j] * p[j] * (float(i == j) - p[i]) for j in range(3)) for i in range(3)])
    assert torch.allclose(found, expected, atol=1e-7)


def test_expected_latency_by_hand() -> None:
    space = small()
    costs = Costs(space, table_of(space))
    assert costs.fixed_ms == pytest.approx(3 * 0.005 + 0.002)
    # kernels 3, 5, 7 with expansions 3 and 6: mean 5 * 4.5 = 22.5 us; where none is a choice, 6/7 of that.
    uniform = [torch.full((edge.choices,), 1 / edge.choices) for edge in space.edges]
    residual = [edge.residual for edge in space.edges]
    assert residual == [False, True, False]
    assert float(costs.expected(uniform)) == pytest.approx(0.017 + 0.0225 * (1 + 6 / 7 + 1), rel=1e-5)
    assert costs.of((0, ZERO, 5)) == pytest.approx(0.017 + 0.009 + 0.042)
    assert costs.fastest() == (0, ZERO, 0)


def steps(kind: str, seed: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    space = small().train()
    logits = [torch.zeros(edge.choices, requires_grad=True) for edge in space.edges]
    before = [values.detach().clone() for values in logits]
    adam = torch.optim.Adam(logits, lr=0.1, betas=(0.0, 0.999))
    images, labels = torch.randn(8, 1, 8, 8), torch.randint(0, 3, (8,))
    generator = np.random.default_rng(seed)
    criterion = torch.nn.CrossEntropyLoss()

    def joined(loss: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
        return loss + expected

    update = full_step if kind == "full" else two_step
    update(space, logits, adam, criterion, images, labels, Costs(space, table_of(space)), joined, generator)
    return before, logits


def test_the_two_path_update_moves_two_logits_and_keeps_the_others_probabilities() -> None:
    before, after = steps("two")
    for old, new in zip(before, after, strict=True):
        moved = ((old - new.detach()).abs() > 1e-9).nonzero().flatten()
        assert len(moved) == 2
        p, q = torch.softmax(old, 0), torch.softmax(new.detach(), 0)
        others = [at for at in range(len(old)) if at not in moved.tolist()]
        assert torch.allclose(p[others], q[others], atol=1e-6)
        assert float(p[moved].sum()) == pytest.approx(float(q[moved].sum()), abs=1e-6)


def test_the_full_update_moves_all_logits() -> None:
    before, after = steps("full")
    assert all(bool(((old - new.detach()).abs() > 1e-9).all()) for old, new in zip(before, after, strict=True))


def test_reinforce_prefers_the_faster_of_equally_right_networks() -> None:
    space = small().eval()
    costs = Costs(space, table_of(space))
    logits = [torch.zeros(edge.choices, requires_grad=True) for edge in space.edges]
    adam = torch.optim.Adam(logits, lr=0.05, betas=(0.0, 0.999))
    images = torch.randn(4, 1, 8, 8)
    labels = torch.zeros(4, dtype=torch.int64)
    with torch.no_grad():  # every network is right, so that latency alone decides
        space.head.linear.weight.zero_()
        space.head.linear.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    baseline, generator = None, np.random.default_rng(0)
    for _ in range(60):
        baseline = reinforce_step(space, logits, adam, images, labels, costs, 0.05, baseline, generator)
    start = [torch.full((edge.choices,), 1 / edge.choices) for edge in space.edges]
    assert costs.expected([torch.softmax(values.detach(), 0) for values in logits]) < 0.85 * costs.expected(start)


def test_a_strong_latency_term_finds_the_fastest_network_and_none_does_not() -> None:
    space = small()
    images, labels = torch.randn(48, 1, 8, 8), torch.randint(0, 3, (48,))
    rows = TensorDataset(images, labels)
    table = table_of(space, scale=20.0)
    common = {
        "table": table, "latency_ms": 0.05, "epochs": 8, "warm_up_epochs": 1, "batch_size": 16,
        "architecture_rate": 0.2, "architecture_every": 1, "latency_loss": "add",
    }  # fmt: skip
    found = proxyless(space, rows, rows, strength=(50.0, 0.0), **common)  # type: ignore[arg-type]
    assert found.code == Costs(space, table).fastest()
    assert len(found.history) == 9 and found.history[-1]["expected_ms"] < found.history[0]["expected_ms"]
    again = proxyless(small(), rows, rows, strength=(50.0, 0.0), **common)  # type: ignore[arg-type]
    assert again.probabilities == found.probabilities or again.code == found.code


def test_the_limit_counts_latency_above_it_alone() -> None:
    of = joined_loss("limit", (2.0, 0.0), 0.5)
    for expected, loss, slope in ((0.4, 1.0, 0.0), (0.75, 2.0, 4.0)):
        ms = torch.tensor(expected, requires_grad=True)
        found = of(torch.tensor(1.0), ms)
        (gradient,) = torch.autograd.grad(found, ms)
        assert found.item() == pytest.approx(loss) and gradient.item() == pytest.approx(slope)


def test_a_search_with_a_limit_ends_at_it_and_not_at_the_fastest_network() -> None:
    space = small()
    rows = TensorDataset(torch.randn(48, 1, 8, 8), torch.randint(0, 3, (48,)))
    table = table_of(space, scale=20.0)
    costs = Costs(space, table)
    fastest = costs.of(costs.fastest())
    limit = 0.5 * (fastest + costs.of((5, 5, 5)))
    kinds: tuple[LatencyLoss, ...] = ("add", "limit")
    found = {
        kind: proxyless(
            small(), rows, rows, table=table, latency_ms=limit, epochs=8, warm_up_epochs=1, batch_size=16,
            architecture_rate=0.2, architecture_every=1, latency_loss=kind, strength=(50.0, 0.0),
        ).expected_ms
        for kind in kinds
    }  # fmt: skip
    assert found["add"] < fastest + 0.1 * (limit - fastest)
    assert fastest + 0.5 * (limit - fastest) < found["limit"] < 1.1 * limit


def test_same_seed_same_search() -> None:
    rows = TensorDataset(torch.randn(32, 1, 8, 8), torch.randint(0, 3, (32,)))
    runs = []
    for _ in range(2):
        space = small()
        runs.append(
            proxyless(
                space,
                rows,
                rows,
                table=table_of(space),
                latency_ms=0.06,
                epochs=2,
                warm_up_epochs=1,
                batch_size=16,
                architecture_rate=0.1,
            )
        )
    assert runs[0].probabilities == runs[1].probabilities
    assert runs[0].code == most_probable([torch.tensor(values) for values in runs[0].probabilities])
    assert draw_code([torch.tensor([50.0, 0.0])], np.random.default_rng(0)) == (0,)


@pytest.mark.parametrize("kill_at", [3, 6])
def test_a_killed_search_goes_on_as_if_it_had_not_been_killed(kill_at: int, tmp_path: Path) -> None:
    torch.manual_seed(5)
    rows = TensorDataset(torch.randn(32, 1, 8, 8), torch.randint(0, 3, (32,)))
    settings: dict[str, Any] = {
        "latency_ms": 0.06, "epochs": 3, "warm_up_epochs": 2, "batch_size": 16, "architecture_rate": 0.1,
        "architecture_every": 1, "mode": "two",
    }  # fmt: skip
    whole = small()
    expected = proxyless(whole, rows, rows, table=table_of(whole), **settings)
    calls = 0

    def dying(done: int, total: int, what: str) -> None:
        nonlocal calls
        calls += 1
        if calls == kill_at:
            raise KeyboardInterrupt

    state = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        proxyless(
            small(), rows, rows, table=table_of(whole), checkpoint=state, context=Context(progress=dying), **settings
        )
    torch.randn(7)  # another process has other randomness
    again = small(seed=9)
    found = proxyless(again, rows, rows, table=table_of(again), checkpoint=state, **settings)
    assert found.probabilities == expected.probabilities and len(found.history) == 5
    assert all(torch.equal(one, other) for one, other in zip(again.state_dict().values(), whole.state_dict().values()))
    state.write_bytes(b"cut")
    with pytest.raises(RunError, match="state is damaged"):
        proxyless(small(), rows, rows, table=table_of(whole), checkpoint=state, **settings)


def test_bad_settings_and_missing_operators_are_named() -> None:
    space = small()
    rows = TensorDataset(torch.randn(4, 1, 8, 8), torch.randint(0, 3, (4,)))
    with pytest.raises(SettingError, match="mode is 'gradient'"):
        proxyless(space, rows, rows, table=table_of(space), latency_ms=1.0, mode="gradient")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="latency_ms is 0"):
        proxyless(space, rows, rows, table=table_of(space), latency_ms=0.0)
    with pytest.raises(DataError, match="0 for the architecture"):
        proxyless(space, rows, TensorDataset(*rows[:0]), table=table_of(space), latency_ms=1.0)
    with pytest.raises(LimitError, match="no entry for stem"):
        proxyless(space, rows, rows, table=LatencyTable({}, Setting(), {}), latency_ms=1.0)
    with pytest.raises(SettingError, match="down to 1 x 1"):
        MobileSpace(image_size=8, channels=1, outputs=3, stages=((4, 1, 2), (4, 1, 2), (4, 1, 2)), stem_width=(4, 1))
