"""ProxylessNAS: path-sampled differentiable architecture search on the target task and device.

Cai, Zhu, Han, "ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware", ICLR 2019, arXiv
1812.00332. Official code: mit-han-lab/proxylessnas, folder search.
Claim: better than random architectures, and than search without a latency term, at equal measured latency, with the
memory of one ordinary network.
Left out: the paper's MobileNetV2-sized memory tricks (checkpointing), mixed precision, several GPUs.
Checked: tests/search/test_proxyless.py (gradients of gates against an independent sum over paths, latency by hand, the
two-path update's invariant), claims/01_proxyless.py.

Every mixed edge has logits a, p = softmax(a), and a gate g, one-hot, drawn from p: only that path runs. The gate's
gradient is dL/dg_k = <o_k(x), dL/dy> for every candidate k; the candidates that did not run are computed one after the
other during the backward pass and kept nowhere. dL/da_i = sum_j dL/dg_j p_j (delta_ij - p_i). Latency is added as
E = constant + sum over edges of sum_j p_j t_j, with t from the device's table: L = CE * alpha (log E / log ref)^beta,
or CE + lambda (E - ref) / ref. Both reward every millisecond less, also below the reference. CE + lambda max(0,
(E - ref) / ref) counts only what is above it (choice: the hard constraint of MnasNet's reward, for gradients).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ontarget.errors import DataError, SettingError
from ontarget.latency_table import LatencyTable
from ontarget.search.mobile_space import MixedEdge, MobileSpace
from ontarget.search.rows import Rows, batches, endless
from ontarget.search.space import Code
from ontarget.search.training_state import load_state, save_state
from ontarget.values import Context

Mode = Literal["full", "two", "reinforce"]
MODES = ("full", "two", "reinforce")
LatencyLoss = Literal["multiply", "add", "limit"]
LATENCY_LOSSES = ("multiply", "add", "limit")
BASELINE_MOMENTUM = 0.9  # of REINFORCE's mean reward (choice; the official code keeps 0.01 of the old one)
SAMPLES = 10  # networks a REINFORCE step


@dataclass(frozen=True)
class ProxylessResult:
    """code: the most probable choice of every edge. probabilities: those of each edge at the end.

    history: a mapping an epoch: epoch, loss, expected_ms, entropy (mean over edges, natural log), code.
    """

    code: Code
    probabilities: tuple[tuple[float, ...], ...]
    expected_ms: float
    history: tuple[dict[str, Any], ...] = field(default_factory=tuple)
    seconds: float = 0.0


def proxyless(
    space: MobileSpace,
    train: Rows,
    validation: Rows,
    *,
    table: LatencyTable,
    latency_ms: float,
    epochs: int = 120,
    warm_up_epochs: int = 40,
    mode: Mode = "full",
    batch_size: int = 256,
    learning_rate: float = 0.025,
    warm_up_rate: float = 0.05,
    weight_decay: float = 4e-5,
    label_smoothing: float = 0.1,
    architecture_rate: float = 1e-3,
    architecture_every: int = 5,
    latency_loss: LatencyLoss = "multiply",
    strength: tuple[float, float] = (0.2, 0.3),
    checkpoint: Path | None = None,
    context: Context = Context(),
) -> ProxylessResult:
    """Search the space for classification; its weights are trained on the way.

    train: rows that weights learn from. validation: rows that the architecture learns from; never the same.
    table: entries for every operator of the space. latency_ms: the reference of the latency term, above 0.
    mode: "full" computes all candidates for the gates' gradients, "two" draws two paths and updates those alone,
        "reinforce" rewards accuracy * (ref / latency)^0.1 of drawn networks.
    latency_loss: "multiply" with strength (alpha, beta), or "add" or "limit" with strength (lambda, unused); "limit"
        ends near the reference and not far below it. alpha scales the loss as a whole and so does nothing under Adam;
        without a latency term: ``("add", (0, 0))``.
    epochs of the joint search after ``warm_up_epochs`` with weights alone; both on a cosine from their own rate. The
        architecture is left alone in the first epoch and then takes one step of Adam every ``architecture_every``.
    checkpoint: a file in which the state is kept after each epoch, and from which a killed search goes on.
    Raises SettingError: settings out of range. DataError: fewer than 2 rows. LimitError: an operator that the table
    lacks.
    """
    _check(mode, latency_ms, epochs, warm_up_epochs, latency_loss)
    if min(len(train), len(validation)) < 2:
        raise DataError(
            f"{len(train)} rows for the weights and {len(validation)} for the architecture.",
            allowed="2 or more of each",
        )
    start = time.monotonic()
    torch.manual_seed(context.seed)
    generator = np.random.default_rng(context.seed)
    space.to(context.device).train()
    costs = Costs(space, table)
    logits = [torch.randn(edge.choices, device=context.device).mul_(1e-3).requires_grad_() for edge in space.edges]
    architecture = torch.optim.Adam(logits, lr=architecture_rate, betas=(0.0, 0.999), weight_decay=0.0)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=label_smoothing)
    per_epoch = math.ceil(len(train) / batch_size)
    history: list[dict[str, Any]] = []
    baseline: float | None = None
    total = (warm_up_epochs + epochs) * per_epoch
    stored = load_state(checkpoint, generator)
    if stored is not None:
        space.load_state_dict(stored["space"])
        architecture.load_state_dict(stored["architecture"])
        for values, old in zip(logits, stored["logits"], strict=True):
            values.data.copy_(old)
        baseline, history = stored["baseline"], stored["history"]
    for phase, count, rate in (("warm-up", warm_up_epochs, warm_up_rate), ("search", epochs, learning_rate)):
        optimizer = torch.optim.SGD(space.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, count * per_epoch))
        before = 0 if phase == "warm-up" else warm_up_epochs  # epochs of the earlier phase
        first = min(count, max(0, len(history) - before))
        if stored is not None and stored["phase"] == phase:
            optimizer.load_state_dict(stored["optimizer"])
            schedule.load_state_dict(stored["schedule"])
        for epoch in range(first, count):
            losses = []
            done = len(history) * per_epoch
            held_out = endless(validation, batch_size, seed=context.seed + 1 + len(history))
            for step, (images, labels) in enumerate(batches(train, batch_size, seed=context.seed, epoch=len(history))):
                code = draw_code(logits, generator)
                loss = criterion(space(images.to(context.device), code), labels.to(context.device))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(float(loss.detach()))
                done += 1
                if phase == "search" and epoch > 0 and step % architecture_every == 0:
                    images, labels = (value.to(context.device) for value in next(held_out))
                    if mode == "reinforce":
                        baseline = reinforce_step(
                            space, logits, architecture, images, labels, costs, latency_ms, baseline, generator
                        )
                    else:
                        update = full_step if mode == "full" else two_step
                        update(
                            space, logits, architecture, criterion, images, labels, costs,
                            joined_loss(latency_loss, strength, latency_ms), generator,
                        )  # fmt: skip
                if context.progress is not None:
                    context.progress(done, total, f"ProxylessNAS: {phase}")
                if context.deadline is not None and time.monotonic() > context.deadline:
                    break
            probabilities = [torch.softmax(values.detach(), 0).cpu() for values in logits]
            history.append(
                {
                    "epoch": len(history) + 1, "phase": phase, "loss": float(np.mean(losses)),
                    "expected_ms": float(costs.expected(probabilities)),
                    "entropy": float(np.mean([_entropy(values) for values in probabilities])),
                    "code": list(most_probable(logits)),
                }
            )  # fmt: skip
            if context.deadline is not None and time.monotonic() > context.deadline:
                break
            if checkpoint is not None:
                save_state(
                    checkpoint, generator, space=space.state_dict(), architecture=architecture.state_dict(),
                    logits=[values.detach() for values in logits], baseline=baseline, history=history, phase=phase,
                    optimizer=optimizer.state_dict(), schedule=schedule.state_dict(),
                )  # fmt: skip
    probabilities = [torch.softmax(values.detach(), 0).cpu() for values in logits]
    return ProxylessResult(
        most_probable(logits), tuple(tuple(values.tolist()) for values in probabilities),
        float(costs.expected(probabilities)), tuple(history), time.monotonic() - start,
    )  # fmt: skip


class Costs:
    """Milliseconds of every choice on every edge, and of what all networks share, from the device's table."""

    def __init__(self, space: MobileSpace, table: LatencyTable) -> None:
        self.fixed_ms = table.predict(space.fixed_operators())
        self.edges = []
        for at, edge in enumerate(space.edges):
            found = [space.edge_operator(at, choice) for choice in range(edge.choices)]
            values = [0.0 if entry is None else table.predict((entry,)) - table.constant_ms for entry in found]
            self.edges.append(torch.tensor(values))

    def expected(self, probabilities: Sequence[Tensor]) -> Tensor:
        """Expected latency: fixed part plus sum over edges of sum_j p_j t_j; differentiable."""
        parts = [(values * times.to(values)).sum() for values, times in zip(probabilities, self.edges, strict=True)]
        return torch.stack(parts).sum() + self.fixed_ms

    def of(self, code: Code) -> float:
        """Latency of one network."""
        return self.fixed_ms + sum(float(times[choice]) for times, choice in zip(self.edges, code, strict=True))

    def fastest(self) -> Code:
        """The network with the lowest latency: edges add up, so it is the fastest choice of each."""
        return tuple(int(times.argmin()) for times in self.edges)


class _SampledEdge(torch.autograd.Function):
    """One edge of which only the sampled candidate runs; backward gives the gradient of every gate.

    No gradient goes to the candidates' weights. A sampled "none" is a candidate like any other: the others' gates get
    their gradients all the same (the official code skips the whole edge then).
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, gates: Tensor, edge: MixedEdge, sampled: int, among: Sequence[int]) -> Tensor:
        """images (N, C, H, W); gates (choices,), of which those in ``among`` get a gradient -> the edge's output."""
        ctx.edge, ctx.sampled, ctx.among = edge, sampled, among
        with torch.enable_grad():
            inner = images.detach().requires_grad_()
            made = edge.candidate(sampled, inner)
        ctx.inner, ctx.made = inner, made
        return images.clone() if made is None else (images + made.detach() if edge.residual else made.detach().clone())

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        gradient = upstream[0]
        edge, inner, made = ctx.edge, ctx.inner, ctx.made
        gates = gradient.new_zeros(edge.choices)
        for choice in ctx.among:
            with torch.no_grad():
                if choice == ctx.sampled:
                    output = made
                else:
                    output = edge.candidate(choice, inner)
                if output is not None:
                    gates[choice] = (output * gradient).sum()
        to_images = gradient if edge.residual else torch.zeros_like(inner)
        if made is not None:
            (through,) = torch.autograd.grad(made, inner, gradient)
            to_images = to_images + through
        ctx.made = ctx.inner = None
        return to_images, gates, None, None, None


def sampled_scores(
    space: MobileSpace, images: Tensor, gates: Sequence[Tensor], sampled: Code, among: Sequence[Sequence[int]]
) -> Tensor:
    """Scores (N, C) of the sampled path, differentiable with respect to the gates alone."""
    with torch.no_grad():
        hidden = space.first(space.stem(images))
    for edge, gate, choice, choices in zip(space.edges, gates, sampled, among, strict=True):
        hidden = _SampledEdge.apply(hidden, gate, edge, choice, choices)  # type: ignore[no-untyped-call]
    scores: Tensor = space.head(hidden)
    return scores


def straight_through(probabilities: Tensor, sampled: int) -> Tensor:
    """The one-hot gate in the forward direction; backward dL/dp_j = dL/dg_j, so that softmax gives the paper's rule."""
    one_hot = torch.nn.functional.one_hot(torch.tensor(sampled), len(probabilities)).to(probabilities)
    return probabilities + (one_hot - probabilities).detach()


def full_step(
    space: MobileSpace,
    logits: Sequence[Tensor],
    architecture: torch.optim.Optimizer,
    criterion: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    costs: Costs,
    joined: Callable[[Tensor, Tensor], Tensor],
    generator: np.random.Generator,
) -> None:
    """One step of all logits, by the gradients of all gates and of the expected latency."""
    sampled = draw_code(logits, generator)
    probabilities = [torch.softmax(values, 0) for values in logits]
    gates = [straight_through(values, choice) for values, choice in zip(probabilities, sampled, strict=True)]
    scores = sampled_scores(space, images, gates, sampled, [range(len(values)) for values in logits])
    loss = joined(criterion(scores, labels), costs.expected(probabilities))
    architecture.zero_grad(set_to_none=True)
    for values, gradient in zip(logits, torch.autograd.grad(loss, list(logits)), strict=True):
        values.grad = gradient
    architecture.step()


def two_step(
    space: MobileSpace,
    logits: Sequence[Tensor],
    architecture: torch.optim.Optimizer,
    criterion: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    costs: Costs,
    joined: Callable[[Tensor, Tensor], Tensor],
    generator: np.random.Generator,
) -> None:
    """One step of two drawn logits an edge; the others keep their values and their probabilities.

    Two paths are drawn without replacement, p is renormalised over them, one of the two runs. Afterwards
    log(sum exp new / sum exp old) over the two is taken off both. Latency moves the same two (choice).
    """
    pairs = []
    for values in logits:
        shares = torch.softmax(values.detach().double(), 0).cpu().numpy()
        if (shares > 0).sum() < 2:  # one path has all the probability
            shares = np.full(len(shares), 1 / len(shares))
        pairs.append(tuple(int(at) for at in generator.choice(len(shares), 2, replace=False, p=shares / shares.sum())))
    sampled, gates = [], []
    for values, pair in zip(logits, pairs, strict=True):
        of_pair = torch.softmax(values[list(pair)], 0)
        drawn = int(generator.random() >= float(of_pair[0].detach()))
        gate = torch.zeros_like(values).index_put((torch.tensor(pair),), straight_through(of_pair, drawn))
        sampled.append(pair[drawn])
        gates.append(gate)
    scores = sampled_scores(space, images, gates, tuple(sampled), pairs)
    expected = costs.expected([torch.softmax(values, 0) for values in logits])
    loss = joined(criterion(scores, labels), expected)
    gradients = torch.autograd.grad(loss, list(logits))
    architecture.zero_grad(set_to_none=True)
    before = [values.detach().clone() for values in logits]
    for values, gradient, pair in zip(logits, gradients, pairs, strict=True):
        mask = torch.zeros_like(values)
        mask[list(pair)] = 1.0
        values.grad = gradient * mask
    architecture.step()
    with torch.no_grad():
        for values, old, pair in zip(logits, before, pairs, strict=True):
            chosen = list(pair)
            moved = values[chosen]
            shift = torch.logsumexp(moved, 0) - torch.logsumexp(old[chosen], 0)
            values.copy_(old)  # Adam moves by momentum what has no gradient
            values[chosen] = moved - shift


def reinforce_step(
    space: MobileSpace,
    logits: Sequence[Tensor],
    architecture: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    costs: Costs,
    latency_ms: float,
    baseline: float | None,
    generator: np.random.Generator,
) -> float:
    """One step by the rewards of drawn networks, accuracy * (ref / latency)^0.1; returns the new mean reward."""
    codes, rewards = [], []
    with torch.no_grad():
        for _ in range(SAMPLES):
            code = draw_code(logits, generator)
            accuracy = float((space(images, code).argmax(1) == labels).float().mean())
            codes.append(code)
            rewards.append(accuracy * (latency_ms / costs.of(code)) ** 0.1)
    mean = float(np.mean(rewards))
    against = mean if baseline is None else baseline
    loss = torch.zeros((), device=images.device)
    for code, reward in zip(codes, rewards, strict=True):
        chances = [
            torch.log_softmax(values, 0)[choice].to(images.device) for values, choice in zip(logits, code, strict=True)
        ]
        loss = loss - (reward - against) * torch.stack(chances).sum() / SAMPLES
    architecture.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    architecture.step()
    return mean if baseline is None else BASELINE_MOMENTUM * baseline + (1 - BASELINE_MOMENTUM) * mean


def draw_code(logits: Sequence[Tensor], generator: np.random.Generator) -> Code:
    """One choice of each edge by its probabilities."""
    found = []
    for values in logits:
        shares = torch.softmax(values.detach().double(), 0).cpu().numpy()
        found.append(int(generator.choice(len(shares), p=shares / shares.sum())))
    return tuple(found)


def most_probable(logits: Sequence[Tensor]) -> Code:
    """The choice with the highest logit on each edge."""
    return tuple(int(values.argmax()) for values in logits)


def joined_loss(kind: str, strength: tuple[float, float], reference_ms: float) -> Callable[[Tensor, Tensor], Tensor]:
    def multiply(loss: Tensor, expected_ms: Tensor) -> Tensor:
        # In microseconds, so that logarithms of small latencies are positive (choice; the paper's are 80 ms and more).
        ratio = torch.log(1000 * expected_ms) / math.log(1000 * reference_ms)
        return strength[0] * loss * ratio.clamp(min=1e-6) ** strength[1]

    def add(loss: Tensor, expected_ms: Tensor) -> Tensor:
        return loss + strength[0] * (expected_ms - reference_ms) / reference_ms

    def limit(loss: Tensor, expected_ms: Tensor) -> Tensor:
        return loss + strength[0] * ((expected_ms - reference_ms) / reference_ms).clamp(min=0.0)

    return {"multiply": multiply, "add": add, "limit": limit}[kind]


def _entropy(probabilities: Tensor) -> float:
    return float(-(probabilities * probabilities.clamp(min=1e-12).log()).sum())


def _check(mode: str, latency_ms: float, epochs: int, warm_up_epochs: int, latency_loss: str) -> None:
    if mode not in MODES:
        raise SettingError(f"mode is '{mode}'.", allowed=", ".join(MODES), option="mode")
    if latency_loss not in LATENCY_LOSSES:
        raise SettingError(
            f"latency_loss is '{latency_loss}'.", allowed=", ".join(LATENCY_LOSSES), option="latency_loss"
        )
    if not latency_ms > 0.001:
        raise SettingError(f"latency_ms is {latency_ms}.", allowed="more than 0.001", option="latency_ms")
    if epochs < 1 or warm_up_epochs < 0:
        raise SettingError(
            f"epochs is {epochs} and warm_up_epochs {warm_up_epochs}.", allowed="1 or more, 0 or more", option="epochs"
        )
