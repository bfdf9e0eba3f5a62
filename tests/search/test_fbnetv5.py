"""FBNetV5: ratios and gradients against full enumeration, hand-worked steps, searches with a known optimum."""

import itertools
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.utils.data import TensorDataset

from ontarget.errors import DataError, SettingError
from ontarget.search.fbnetv5 import RunningMean, fbnetv5, importance_ratios, log_probabilities, policy_step
from ontarget.search.multi_resolution import MultiResolution
from ontarget.search.retrain import recalibrate
from ontarget.search.rows import batch_count, endless
from ontarget.values import Context

LOGITS = st.lists(st.lists(st.floats(-4, 4), min_size=3, max_size=3), min_size=1, max_size=4)
CODES = list(itertools.product((0, 1), repeat=3))


def probabilities(logits, code):
    """The product of the definition, not in logarithms."""
    each = 1 / (1 + np.exp(-np.asarray(logits)))
    return np.where(np.array(code) == 1, each, 1 - each).prod(axis=1)


@settings(max_examples=40, deadline=None)
@given(LOGITS, st.sampled_from(CODES))
def test_ratios_are_those_of_the_definition(logits, code):
    expected = probabilities(logits, code)
    assert np.exp(log_probabilities(logits, code)) == pytest.approx(expected, rel=1e-9)
    ratios = importance_ratios(logits, code)
    assert ratios == pytest.approx(expected / expected.mean(), rel=1e-9)
    assert ratios.sum() == pytest.approx(len(logits)) and (ratios <= len(logits) * (1 + 1e-12)).all()


def test_ratios_of_many_bits_do_not_underflow():
    logits = np.array([[0.0] * 5000, [0.001] * 5000])
    assert math.exp(log_probabilities(logits, [1] * 5000)[0]) == 0.0
    gain = 5000 * (math.log(2) - math.log1p(math.exp(-0.001)))
    assert importance_ratios(logits, [1] * 5000)[1] == pytest.approx(2 / (1 + math.exp(-gain)), rel=1e-9)


def test_one_task_has_ratio_one():
    assert importance_ratios(np.array([[3.0, -2.0, 0.5]]), (0, 1, 1)) == pytest.approx([1.0])


def test_hand_worked_step():
    # Two tasks, one bit, pi = 0.5 and 0.75, a = 1: q = 0.625, r = 0.8 and 1.2.
    logits = np.array([[0.0], [math.log(3.0)]])
    moved = policy_step(logits, (1,), np.array([2.0, -1.0]), np.array([1.0, 1.0]), rate=0.1)
    assert moved - logits == pytest.approx(np.array([[0.1 * 0.8 * 1.0 * 0.5], [0.1 * 1.2 * -2.0 * 0.25]]))
    alike = policy_step(logits, (1,), np.array([2.0, -1.0]), np.array([1.0, 1.0]), rate=0.1, importance=False)
    assert alike - logits == pytest.approx(np.array([[0.1 * 1.0 * 0.5], [0.1 * -2.0 * 0.25]]))


@settings(max_examples=20, deadline=None)
@given(LOGITS, st.integers(0, 99))
def test_the_mean_step_is_each_tasks_own_gradient(logits, seed):
    """Over all a ~ q, whatever the baseline: the gradient of E_{p_t} R_t, here from automatic differentiation."""
    logits = np.array(logits)
    random = np.random.default_rng(seed)
    rewards = random.normal(size=(len(CODES), len(logits)))
    baselines = random.normal(size=len(logits))
    free = torch.tensor(logits, requires_grad=True)
    bits = torch.tensor(CODES, dtype=torch.float64)
    each = torch.sigmoid(free)[:, None]
    chances = (each * bits + (1 - each) * (1 - bits)).prod(-1)
    (chances * torch.from_numpy(rewards.T)).sum().backward()
    mean_step = sum(
        probabilities(logits, code).mean() * (policy_step(logits, code, reward, baselines, rate=1.0) - logits)
        for code, reward in zip(CODES, rewards, strict=True)
    )
    assert mean_step == pytest.approx(free.grad.numpy(), abs=1e-9)


def test_without_ratios_the_mean_step_is_another_one():
    logits = np.array([[2.0, 0.0, -1.0], [-2.0, 1.0, 0.0]])
    rewards = np.array([[sum(code), -sum(code)] for code in CODES], dtype=float)
    steps = {
        importance: sum(
            probabilities(logits, code).mean()
            * (policy_step(logits, code, reward, np.zeros(2), rate=1.0, importance=importance) - logits)
            for code, reward in zip(CODES, rewards, strict=True)
        )
        for importance in (True, False)
    }
    assert np.abs(steps[True] - steps[False]).max() > 0.3


def test_running_mean():
    mean = RunningMean(0.9)
    assert mean.update(np.array([2.0]))[0] == 2.0
    assert mean.update(np.array([1.0]))[0] == pytest.approx(1.9)


class Offsets(torch.nn.Module):
    """Task t's output is how many of its bits a code gets wrong, times a weight that training cannot lower."""

    def __init__(self, wanted):
        super().__init__()
        self.wanted = wanted
        self.slots = [SimpleNamespace(choices=2) for _ in next(iter(wanted.values()))]
        self.weight = torch.nn.Parameter(torch.ones(1))

    def canonical(self, code):
        return tuple(code)

    def forward(self, inputs, code):
        wrong = {task: sum(a != b for a, b in zip(code, bits, strict=True)) for task, bits in self.wanted.items()}
        return {task: 0.2 + count + 0.0 * self.weight * inputs for task, count in wrong.items()}


WANTED = {"first": (1, 1, 0, 0, 1, 0), "second": (0, 1, 1, 0, 0, 1), "third": (0, 0, 0, 1, 1, 1)}


def searched(wanted=WANTED, scale=1.0, **settings_):
    losses = {task: lambda output, target: (output * target).mean() for task in wanted}
    losses["first"] = lambda output, target: scale * (output * target).mean()
    rows = TensorDataset(torch.ones(40), *(torch.ones(40) for _ in wanted))
    options = {"cost": sum, "steps": 200, "rate": 0.5, "batch_size": 8, "samples": 0, **settings_}
    return fbnetv5(Offsets(wanted), losses, rows, rows, **options)


def test_each_task_finds_its_own_topology():
    found = searched()
    assert found.topologies == WANTED
    assert found.tasks == tuple(WANTED) and found.steps == 200
    assert ((found.probabilities > 0.5) == np.array(list(WANTED.values()))).all()
    assert found.losses == pytest.approx(dict.fromkeys(WANTED, 0.2))
    assert found.costs == {"first": 3, "second": 3, "third": 3}


def test_a_tasks_loss_scale_does_not_matter():
    same = searched(scale=1e4, steps=60).probabilities
    assert same == pytest.approx(searched(steps=60).probabilities, abs=1e-6)


def test_same_seed_same_search():
    first, again, other = (searched(steps=60, context=Context(seed=seed)) for seed in (4, 4, 5))
    assert np.array_equal(first.probabilities, again.probabilities)
    assert not np.array_equal(first.probabilities, other.probabilities)


def test_warm_up_moves_no_logit():
    found = searched(steps=10, warm_up=0.95)
    assert found.probabilities == pytest.approx(np.full((3, 6), 0.5))


def test_a_price_makes_topologies_cheaper():
    costs = [searched(price=price).probabilities.sum() for price in (0.0, 2.0, 20.0)]
    assert costs[0] > costs[1] + 0.5 and costs[1] > costs[2] + 0.5


def test_the_limit_is_kept_and_priced():
    found = searched(limit=2.0, samples=20)
    assert all(cost <= 2.0 for cost in found.costs.values())
    assert (found.prices > 0).all()
    assert found.losses == pytest.approx(dict.fromkeys(WANTED, 1.2))  # the best with two bits has one wrong
    assert (searched(limit=6.0, steps=20).prices == 0).all()


def test_a_mode_above_the_limit_loses_its_least_likely_blocks():
    found = searched(limit=1.0, price=0.0)
    for row, (task, wanted) in enumerate(WANTED.items()):
        likeliest = int(np.argmax(found.probabilities[row]))
        assert found.topologies[task] == tuple(int(slot == likeliest) for slot in range(6)) and wanted[likeliest]


def test_samples_are_chosen_by_held_out_loss():
    found = searched(steps=2, samples=200)
    assert found.topologies == WANTED  # all 64 codes are drawn, the right ones validated best


def test_validation_is_that_of_the_recalibrated_slice():
    """The whole path on a super-network with BatchNorm, and its losses by another way."""
    torch.manual_seed(0)
    network = MultiResolution({"class": ("classification", 3), "heat": ("heat_map", 1)}, widths=(4, 6), size=8)
    losses = {"class": cross_entropy, "heat": binary_cross_entropy_with_logits}
    pixels, classes, heat = torch.randn(80, 1, 8, 8), torch.arange(80) % 3, torch.rand(80, 1, 4, 4)
    train, held_out = (TensorDataset(pixels[rows], classes[rows], heat[rows]) for rows in (slice(48), slice(48, 80)))
    limit = network.macs((1,) * 7) / 2
    found = fbnetv5(
        network, losses, train, held_out, cost=network.macs, limit=limit, steps=12, batch_size=16, samples=3
    )
    for task, targets in (("class", classes), ("heat", heat)):
        code = found.topologies[task]
        plain = network.slice(code, [task])
        statistics = [value for name, value in plain.named_buffers() if "running_var" in name]
        for value in statistics:
            value.fill_(9.0)  # whatever they were, they are replaced
        recalibrate(plain, TensorDataset(pixels[:48]), batch_size=16)
        with torch.no_grad():
            expected = losses[task](plain(pixels[48:])[task], targets[48:]).item()
        assert found.losses[task] == pytest.approx(expected, rel=1e-4)
        assert found.costs[task] == network.macs(code) <= limit


def test_the_deadline_ends_the_search():
    found = searched(samples=20, context=Context(deadline=time.monotonic() - 1))
    assert found.steps == 0 and found.probabilities == pytest.approx(np.full((3, 6), 0.5))
    assert found.topologies == dict.fromkeys(WANTED, (0,) * 6)  # the mode of even bits; no sample is validated


def test_progress_and_curve():
    seen = []
    found = searched(steps=50, context=Context(progress=lambda done, total, what: seen.append((done, total))))
    assert [point["step"] for point in found.curve] == [done for done, total in seen[:10]] == list(range(5, 51, 5))
    assert all(total == 50 for _, total in seen[:10])
    assert seen[-1][0] == seen[-1][1] == len(seen) - 10 == len(set(found.topologies.values()))


class Killed(Exception):
    pass


@pytest.mark.parametrize(("count", "what"), [(3, "searching topologies"), (2, "validating topologies")])
def test_a_killed_search_goes_on_to_the_same_result(tmp_path, count, what):
    """Killed in the midst of the steps, and of the validation; the batches' order is part of the state."""
    pixels, classes = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(24) % 3
    rows = TensorDataset(pixels, classes, classes)

    def search(checkpoint=None, progress=None):
        torch.manual_seed(0)
        network = MultiResolution({"a": ("classification", 3), "b": ("classification", 3)}, widths=(4, 6), size=8)
        costs = {"a": lambda code: network.macs(code, ["a"]), "b": lambda code: network.macs(code, ["b"])}
        return fbnetv5(
            network, {"a": cross_entropy, "b": cross_entropy}, rows, rows, cost=costs,
            limit={"a": costs["a"]((1,) * 7) / 2}, steps=10, batch_size=5, samples=4, rate=1.0, checkpoint=checkpoint,
            context=Context(progress=progress),
        )  # fmt: skip

    calls = []

    def kill(done, total, now):
        calls.append(now)
        if calls.count(what) == count:
            raise Killed

    whole = search()
    with pytest.raises(Killed):
        search(tmp_path / "state", kill)
    again = []
    resumed = search(tmp_path / "state", lambda done, total, now: again.append((done, now)))
    assert again[0][0] > 1  # it did not begin anew
    assert np.array_equal(resumed.probabilities, whole.probabilities) and resumed.curve == whole.curve
    assert np.array_equal(resumed.prices, whole.prices) and whole.prices[1] == 0
    assert (resumed.ranked, resumed.losses) == (whole.ranked, whole.losses)


def test_each_task_keeps_its_own_limit_and_its_candidates_are_ranked():
    tasks = list(WANTED)
    found = searched(steps=400, samples=30, limit={tasks[0]: 1.0, tasks[2]: None}, cost=lambda code: float(sum(code)))
    assert found.costs[tasks[0]] <= 1.0 and found.topologies[tasks[2]] == WANTED[tasks[2]]
    assert all(codes[0] == found.topologies[task] for task, codes in found.ranked.items())
    assert all(sum(code) <= 1 for code in found.ranked[tasks[0]])
    with pytest.raises(SettingError, match=f"or more for {tasks[1]}"):
        searched(cost=lambda code: 1.0 + sum(code), limit={tasks[1]: 0.5})


def test_batches_passed_over_are_those_that_were_drawn():
    rows = TensorDataset(torch.arange(11))
    for batch_size in (2, 3, 5):  # 11 = 5 * 2 + 1: a batch of one row is left out
        drawn = [next_ for next_, _ in zip(endless(rows, batch_size, seed=3), range(25))]
        for skip in (1, batch_count(11, batch_size), 17):
            (first,) = next(endless(rows, batch_size, seed=3, skip=skip))
            assert torch.equal(first, drawn[skip][0])


def test_errors():
    with pytest.raises(SettingError, match="limit"):
        searched(cost=lambda code: 1 + sum(code), limit=0.5)
    for settings_ in ({"steps": 0}, {"decay": 1.0}, {"rate": 0.0}, {"warm_up": 1.0}):
        with pytest.raises(SettingError, match="fbnetv5"):
            searched(**settings_)

    def tried(rows=TensorDataset(torch.ones(4), torch.ones(4)), held_out=None, network=Offsets(WANTED), factor=1.0):
        loss = {"first": lambda output, target: output.mean() * factor}
        return fbnetv5(network, loss, rows, rows if held_out is None else held_out, cost=sum, steps=1)

    assert tried().steps == 1
    with pytest.raises(DataError, match="0 targets for 1 loss"):
        tried(TensorDataset(torch.ones(4)))
    with pytest.raises(DataError, match="held_out has no rows"):
        tried(held_out=TensorDataset(torch.ones(0), torch.ones(0)))
    with pytest.raises(DataError, match="not finite"):
        tried(factor=math.nan)
    network = Offsets(WANTED)
    network.slots[2].choices = 3
    with pytest.raises(SettingError, match="2 choices"):
        tried(network=network)
