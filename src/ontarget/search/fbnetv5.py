"""FBNetV5: one run of a super-network finds a topology for each of several tasks.

Bichen Wu, Chaojian Li, Hang Zhang, Xiaoliang Dai, Peizhao Zhang, Matthew Yu, Jialiang Wang, Yingyan Lin, Peter Vajda,
"FBNetV5: Neural Architecture Search for Multiple Tasks in One Run", 2021, arXiv 2111.10007. Official code: none.
Claim: one search, at a cost that does not grow with the number of tasks, matches a search for each task and beats
random topologies; on ImageNet +1.3 points over FBNetV3 at equal FLOPs.
Left out: pseudo-labels for tasks that an image has no labels for (label them first); the full training afterwards.
Checked in tests/search/test_fbnetv5.py (ratios and gradients against full enumeration, hand-worked steps) and
claims/11_fbnetv5.py. The search space is ontarget.search.multi_resolution.

Task t has logits theta_t (B,) of independent bits: pi_t = sigmoid(theta_t),

    p_t(a) = prod_b pi_tb^a_b (1 - pi_tb)^(1 - a_b)        q(a) = 1/T sum_s p_s(a)        r_t = p_t(a) / q(a) <= T

Each step draws one a ~ q, trains the shared weights on sum_t loss_t / (running mean of loss_t) with it, and then, on a
held-out batch, moves all tasks with that one sample:

    R_t = -loss_t - lambda_t cost(a) / cost(all bits)      theta_t += eta r_t (R_t - baseline_t) (a - pi_t)

where (a - pi_t) is the gradient of log p_t(a). With r_t = 1 all tasks would follow the mixture's gradient instead.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from ontarget.errors import DataError, SettingError
from ontarget.search.retrain import recalibrate
from ontarget.search.rows import Rows, endless, ordered
from ontarget.search.space import Code, ElasticNetwork
from ontarget.search.training_state import load_state, save_state
from ontarget.values import Array, Context

Losses = Mapping[str, Callable[[Tensor, Tensor], Tensor]]
Cost = Callable[[Code], float]
PRICE_RATE = 0.05  # of the ascent that finds lambda_t for a limit (choice)
KEPT = 50  # times that a search writes its checkpoint (choice)
CALIBRATION = 4  # training batches that renew BatchNorm statistics before a topology is validated (choice)


@dataclass(frozen=True)
class Searched:
    """topologies: task -> its code. probabilities: (T, B) of each bit, tasks in the order of ``tasks``.

    losses: task -> its topology's loss on all held-out rows with shared weights. costs: task -> cost of its topology.
    prices: (T,) lambda at the end. steps: that were run. curve: one mapping every tenth of the steps, each task's mean
    training loss since the one before. ranked: task -> its topologies that were validated, the best first.
    """

    tasks: tuple[str, ...]
    topologies: dict[str, Code]
    probabilities: Array
    losses: dict[str, float]
    costs: dict[str, float]
    prices: Array
    steps: int
    curve: tuple[dict[str, float], ...]
    ranked: dict[str, tuple[Code, ...]]


def log_probabilities(logits: Array, code: Sequence[int]) -> Array:
    """(T,) log p_t(a) for one code a of B bits. logits: (T, B)."""
    signs = 2.0 * np.asarray(code, dtype=np.float64) - 1.0
    found: Array = -np.logaddexp(0.0, -signs * np.asarray(logits, dtype=np.float64)).sum(axis=1)
    return found


def importance_ratios(logits: Array, code: Sequence[int]) -> Array:
    """(T,) r_t = p_t(a) / q(a) with q the even mixture; between 0 and T, and T in sum. logits: (T, B).

    In logarithms: with many bits every p_t(a) is too small for a float.
    """
    logs = log_probabilities(logits, code)
    ratios: Array = np.exp(logs - np.logaddexp.reduce(logs) + math.log(len(logs)))
    return ratios


def policy_step(
    logits: Array, code: Sequence[int], rewards: Array, baselines: Array, *, rate: float, importance: bool = True
) -> Array:
    """(T, B) new logits after one sample a ~ q. rewards, baselines: (T,) of the tasks, for this same sample."""
    ratios = importance_ratios(logits, code) if importance else np.ones(len(logits))
    scores = np.asarray(code, dtype=np.float64) - _sigmoid(logits)
    moved: Array = logits + rate * (ratios * (rewards - baselines))[:, None] * scores
    return moved


def fbnetv5(
    network: ElasticNetwork,
    losses: Losses,
    train: Rows,
    held_out: Rows,
    *,
    cost: Cost | Mapping[str, Cost],
    steps: int,
    limit: float | Mapping[str, float | None] | None = None,
    price: float | None = None,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    rate: float = 0.01,
    decay: float = 0.9,
    warm_up: float = 0.2,
    samples: int = 20,
    importance: bool = True,
    checkpoint: Path | None = None,
    context: Context = Context(),
) -> Searched:
    """Train ``network`` (in place) and find a topology for each task of ``losses``.

    network: a torch module, (inputs, code) -> {task: output}, whose slots are bits, such as `MultiResolution`.
    losses: task -> loss(output, targets), a mean over the batch, 0 or more. train, held_out: rows[positions] ->
    (inputs, targets of the first task, of the second, ...) in the order of ``losses``. cost: of a canonical code, e.g.
    MACs or milliseconds; one for all tasks, or task -> its own. steps: of the whole search. limit: the most a topology
    may cost, of all tasks or task -> its own. price: lambda of all tasks;
    None finds lambda_t, 0 or more, for which the mean cost under p_t meets the limit, by ascent on the violation
    (choice), and is 0 without a limit. rate: eta. decay: of running means and baselines, 0 to 1. warm_up: share of
    steps that train weights alone, with even bits. samples: of each task, from which, with its mode, the one of least
    held-out loss within the limit is taken. importance: False sets r_t = 1, for comparison. checkpoint: a file in which
    the state is kept now and then, and from which a killed search goes on to the result that it would have had.
    Weights: AdamW with a cosine schedule (choice). The reward's loss is divided by its own running mean too (choice):
    one eta and one lambda then fit all tasks. At ``context.deadline`` the search ends and chooses with what it has.
    Raises SettingError: values out of range, slots of other than 2 choices, a limit that no topology meets; DataError:
    tasks without targets, no rows, losses that are not finite.
    Source: arXiv 2111.10007, section 3.3 (recalled; choices marked).
    """
    module = _checked(network, losses, train, held_out)
    if steps < 1 or samples < 0 or batch_size < 1 or not (0 <= decay < 1 and 0 <= warm_up < 1 and rate > 0):
        raise SettingError(
            f"steps {steps}, samples {samples}, batch_size {batch_size}, decay {decay}, warm_up {warm_up}, rate {rate}",
            allowed="1 or more steps and rows a batch; decay and warm_up from 0 to below 1; rate above 0",
            option="fbnetv5",
        )
    tasks, bits = tuple(losses), len(network.slots)
    costs = cost if isinstance(cost, Mapping) else dict.fromkeys(tasks, cost)
    given = limit if isinstance(limit, Mapping) else dict.fromkeys(tasks, limit)
    limits = {task: math.inf if (value := given.get(task)) is None else float(value) for task in tasks}
    most = np.array(list(limits.values()))
    cheapest, full = (_spent(costs, tasks, network.canonical((bit,) * bits)) for bit in (0, 1))
    for task, least in zip(tasks, cheapest):
        if least > limits[task]:
            raise SettingError(
                f"The limit is {limits[task]:g}.", allowed=f"{least:g} (no blocks) or more for {task}", option="limit"
            )
    torch.manual_seed(context.seed)
    generator = np.random.default_rng(context.seed)
    module.to(context.device)
    engine = torch.optim.AdamW(module.parameters(), lr=learning_rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(engine, steps)
    logits, prices = np.zeros((len(tasks), bits)), np.full(len(tasks), price or 0.0)
    train_means, held_means, baselines = (RunningMean(decay) for _ in range(3))
    means = (train_means, held_means, baselines)
    curve: list[dict[str, float]] = []
    step, steered, since = 0, 0, np.zeros((0, len(tasks)))  # since: losses since the curve's last point
    stored = load_state(checkpoint, generator)
    if stored is not None:
        module.load_state_dict(stored["module"])
        engine.load_state_dict(stored["engine"])
        schedule.load_state_dict(stored["schedule"])
        logits, prices, since = (stored[name].numpy() for name in ("logits", "prices", "since"))
        for mean, value in zip(means, stored["means"]):
            mean.value = None if value is None else value.numpy()
        step, steered, curve = stored["step"], stored["steered"], stored["curve"]

    def keep(**more: Any) -> None:
        if checkpoint is not None:
            save_state(
                checkpoint, generator, module=module.state_dict(), engine=engine.state_dict(),
                schedule=schedule.state_dict(), logits=torch.from_numpy(logits), prices=torch.from_numpy(prices),
                since=torch.from_numpy(since), step=step, steered=steered, curve=curve,
                means=[None if mean.value is None else torch.from_numpy(mean.value) for mean in means], **more,
            )  # fmt: skip

    streams = [
        endless(rows, batch_size, seed=context.seed, skip=skip) for rows, skip in ((train, step), (held_out, steered))
    ]
    while step < steps and not _late(context):
        code = _sample(logits[generator.integers(len(tasks))], generator)
        inputs, *targets = (part.to(context.device) for part in next(streams[0]))
        module.train()
        found = _task_losses(module(inputs, code), losses, targets)
        values = found.detach().cpu().numpy().astype(np.float64)
        if not np.isfinite(values).all():
            raise DataError(f"A loss is not finite in step {step + 1}.", next_step="lower the learning rate")
        train_means.update(values)
        engine.zero_grad()
        (found / torch.as_tensor(train_means.value, dtype=found.dtype, device=found.device)).sum().backward()  # type: ignore[no-untyped-call]
        engine.step()
        schedule.step()
        if step >= warm_up * steps:
            _calibrate(module, code, inputs, batch_size, context.device)
            fresh, *wanted = (part.to(context.device) for part in next(streams[1]))
            steered += 1
            with torch.no_grad():
                loss = _task_losses(module(fresh, code), losses, wanted).cpu().numpy().astype(np.float64)
            spent = _spent(costs, tasks, network.canonical(code))
            rewards = -loss / held_means.update(loss) - prices * spent / full
            before = rewards if baselines.value is None else baselines.value
            if price is None:
                ratios = importance_ratios(logits, code) if importance else 1.0
                over = np.where(np.isfinite(most), spent - np.where(np.isfinite(most), most, 0.0), 0.0)
                prices = np.maximum(0.0, prices + PRICE_RATE * ratios * over / full)
            logits = policy_step(logits, code, rewards, before, rate=rate, importance=importance)
            baselines.update(rewards)
        step += 1
        since = np.concatenate([since, values[None]])
        if step % max(1, steps // 10) == 0 or step == steps:
            curve.append({"step": float(step), **dict(zip(tasks, since.mean(0).tolist()))})
            since = since[:0]
            if context.progress:
                context.progress(step, steps, "searching topologies")
        if step % max(1, steps // KEPT) == 0 or step == steps:
            keep()
    if stored is not None and "candidates" in stored:
        candidates = [[tuple(code) for code in codes] for codes in stored["candidates"]]
    else:
        candidates = [
            _candidates(network, row, samples, costs[task], limits[task], generator) for task, row in zip(tasks, logits)
        ]
    queue = dict.fromkeys(code for rank in zip_longest(*candidates) for code in rank if code is not None)
    validated: dict[Code, Array] = {}
    if stored is not None and "candidates" in stored:
        validated = {tuple(code): np.array(values) for code, values in stored["validated"]}
    for done, code in enumerate(queue):
        if code in validated:
            continue
        if _late(context) and all(found_codes[0] in validated for found_codes in candidates):
            break
        validated[code] = _validated(module, code, losses, train, held_out, batch_size, context.device)
        keep(
            candidates=[[list(other) for other in codes] for codes in candidates],
            validated=[[list(other), values.tolist()] for other, values in validated.items()],
        )
        if context.progress:
            context.progress(done + 1, len(queue), "validating topologies")
    ranked = [
        sorted((code for code in codes if code in validated), key=lambda code: float(validated[code][row]))
        for row, codes in enumerate(candidates)
    ]
    best = [codes[0] for codes in ranked]
    return Searched(
        tasks,
        dict(zip(tasks, best)),
        _sigmoid(logits),
        {task: float(validated[code][row]) for row, (task, code) in enumerate(zip(tasks, best))},
        {task: float(costs[task](code)) for task, code in zip(tasks, best)},
        prices,
        step,
        tuple(curve),
        {task: tuple(codes) for task, codes in zip(tasks, ranked)},
    )


def _spent(costs: Mapping[str, Cost], tasks: Sequence[str], code: Code) -> Array:
    """(T,) what a canonical code costs each task."""
    each = {cost: float(cost(code)) for cost in {costs[task]: None for task in tasks}}  # often one for all tasks
    return np.array([each[costs[task]] for task in tasks])


def _late(context: Context) -> bool:
    return context.deadline is not None and time.monotonic() > context.deadline


class Chosen(torch.nn.Module):
    """A super-network held to one code."""

    def __init__(self, network: torch.nn.Module, code: Code) -> None:
        super().__init__()
        self.network, self.code = network, code

    def forward(self, inputs: Tensor) -> Any:
        return self.network(inputs, self.code)


class RunningMean:
    """Exponential mean of arrays; the first value starts it."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.value: Array | None = None

    def update(self, new: Array) -> Array:
        """The mean with ``new`` in it."""
        self.value = new if self.value is None else self.decay * self.value + (1 - self.decay) * new
        return self.value


def _candidates(
    network: ElasticNetwork, logits: Array, samples: int, cost: Cost, limit: float,
    generator: np.random.Generator,
) -> list[Code]:  # fmt: skip
    """The task's mode and samples within the limit; else its mode without its least likely blocks (choice)."""
    mode = tuple(int(value > 0) for value in logits)
    drawn = [network.canonical(code) for code in (mode, *(_sample(logits, generator) for _ in range(samples)))]
    kept = [code for code in dict.fromkeys(drawn) if math.isinf(limit) or cost(code) <= limit]
    if kept:
        return kept
    shrunk = list(mode)
    for slot in np.argsort(logits, kind="stable"):
        shrunk[slot] = 0
        if cost(network.canonical(tuple(shrunk))) <= limit:
            break
    return [network.canonical(tuple(shrunk))]


def _validated(
    module: torch.nn.Module, code: Code, losses: Losses, train: Rows, held_out: Rows, batch_size: int, device: str
) -> Array:
    """(T,) losses on all held-out rows, with the BatchNorm statistics of this topology on training rows."""
    first, *_ = train[torch.arange(min(len(train), CALIBRATION * batch_size))]
    _calibrate(module, code, first, batch_size, device)
    total = np.zeros(len(losses))
    for inputs, *targets in ordered(held_out, batch_size):
        with torch.no_grad():
            found = _task_losses(module(inputs.to(device), code), losses, [target.to(device) for target in targets])
        total += len(inputs) * found.cpu().numpy()
    mean: Array = total / len(held_out)
    return mean


def _calibrate(module: torch.nn.Module, code: Code, inputs: Tensor, batch_size: int, device: str) -> None:
    """BatchNorm statistics of this topology alone; the module is then in evaluation mode."""
    recalibrate(Chosen(module, code), TensorDataset(inputs), batch_size=batch_size, device=device)


def _task_losses(outputs: Mapping[str, Tensor], losses: Losses, targets: Sequence[Tensor]) -> Tensor:
    return torch.stack([losses[task](outputs[task], target) for task, target in zip(losses, targets, strict=True)])


def _sample(logits: Array, generator: np.random.Generator) -> Code:
    return tuple(int(bit) for bit in generator.random(len(logits)) < _sigmoid(logits))


def _sigmoid(logits: Array) -> Array:
    found: Array = np.exp(-np.logaddexp(0.0, -logits))
    return found


def _checked(network: ElasticNetwork, losses: Losses, train: Rows, held_out: Rows) -> torch.nn.Module:
    if any(slot.choices != 2 for slot in network.slots) or not len(network.slots):
        raise SettingError("The super-network's slots are not bits.", allowed="2 choices each", option="network")
    for name, rows in (("train", train), ("held_out", held_out)):
        if not len(rows):
            raise DataError(f"{name} has no rows.", option=name)
        given = len(rows[torch.arange(1)]) - 1
        if not losses or given != len(losses):
            raise DataError(
                f"A row of {name} has {given} targets for {len(losses)} losses.",
                allowed="inputs, then one target for each task", option=name,
            )  # fmt: skip
    if not isinstance(network, torch.nn.Module):
        raise SettingError(f"network is a {type(network).__name__}.", allowed="a torch module", option="network")
    return network
