"""InstaTune: fine-tuning of a pretrained transformer as super-network training, so that its slices can be searched.

Sridhar, Kundu, Sundaresan, Szankin, Sarah, "InstaTune: Instantaneous Neural Architecture Search During Fine-Tuning",
ICCV 2023 workshop, arXiv 2308.15609. Training code was not released; elastic layers: IntelLabs/DyNAS-T.
Claim: slices of a model tuned so are better than those of an ordinarily tuned one, at equal cost.
Left out: vision transformers and BEiT-3; a pretraining of the super-network, which the method does without.
Checked: tests/search/test_instatune.py (slices equal the super-network's own forward pass, the loss by hand),
claims/30_instatune.py.

Each step runs the full network S and M = 1 random sub-network s on one batch, with CE weight alpha, a frozen,
ordinarily fine-tuned teacher T of full size, and gamma in {0, 1}:
loss = alpha [CE(S) + CE(s)] + (1 - alpha) { gamma KL(S, T) + (1 - gamma) KL(s, S) + gamma KL(s, T) }.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ontarget.errors import SettingError
from ontarget.search.elastic_transformer import ElasticTransformer
from ontarget.search.rows import Rows, batches, ordered
from ontarget.search.space import Code, draw
from ontarget.search.training_state import load_state, save_state
from ontarget.values import Context


@dataclass(frozen=True)
class InstaTuned:
    """history: a mapping an epoch: epoch, loss, full (CE of the full network), part (CE of the sub-networks)."""

    history: tuple[dict[str, Any], ...] = field(default_factory=tuple)
    steps: int = 0
    seconds: float = 0.0


def instatune(
    space: ElasticTransformer,
    train: Rows,
    *,
    teacher: Callable[[Tensor, Tensor], Tensor] | None = None,
    gamma: Callable[[int], float] | float = 0.0,
    alpha: float = 0.3,
    temperature: float = 1.0,
    epochs: int = 4,
    batch_size: int = 32,
    learning_rate: float = 5e-5,
    head_factor: float = 10.0,
    weight_decay: float = 0.01,
    warm_up: float = 0.1,
    drawn: Callable[[np.random.Generator], Code] | None = None,
    checkpoint: Path | None = None,
    context: Context = Context(),
) -> InstaTuned:
    """Tune the super-network's weights on (input_ids, attention_mask, labels) rows; ``space`` is changed.

    teacher: scores of a frozen, fine-tuned model of full size; needed wherever gamma is not 0. gamma: 0 or 1, or a
    function of the epoch, counted from 0: the paper's cheap form is 1 in early epochs alone, its better one 1
    throughout. alpha: weight of the labels, in [0, 1]. temperature rho > 0 of the KL terms (1; choice); their gradients
    are not rescaled. Where S teaches s it is detached (choice). AdamW, linear warm-up over ``warm_up`` of the steps,
    then linear decay; the head learns ``head_factor`` times as fast (choice). drawn: gives the code of s, instead of a
    uniform draw; with a limit on latency, one within it (choice). checkpoint: a file in which the state is
    kept after each epoch, and from which a killed training goes on. Raises SettingError.
    """
    if not 0 <= alpha <= 1 or temperature <= 0 or epochs < 1:
        raise SettingError(
            f"alpha is {alpha}, temperature {temperature}, epochs {epochs}.",
            allowed="alpha in [0, 1], a temperature above 0, 1 epoch or more",
        )
    of_epoch = gamma if callable(gamma) else lambda epoch: float(gamma)
    if teacher is None and any(of_epoch(epoch) for epoch in range(epochs)):
        raise SettingError("gamma is not 0 and there is no teacher.", option="teacher", next_step="give one")
    start = time.monotonic()
    torch.manual_seed(context.seed)
    generator = np.random.default_rng(context.seed)
    space.to(context.device).train()
    optimizer = make_optimizer(space.network, learning_rate, head_factor, weight_decay)
    per_epoch = len(train) // batch_size + (len(train) % batch_size > 1)
    total = epochs * per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, linear_schedule(total, warm_up))
    history: list[dict[str, Any]] = []
    stored = load_state(checkpoint, generator)
    if stored is not None:
        space.load_state_dict(stored["space"])
        optimizer.load_state_dict(stored["optimizer"])
        schedule.load_state_dict(stored["schedule"])
        history = stored["history"]
    done = len(history) * per_epoch
    for epoch in range(len(history), epochs):
        sums, taken = np.zeros(3), 0
        switch = of_epoch(epoch)
        for *inputs, labels in batches(train, batch_size, seed=context.seed, epoch=epoch):
            ids, mask, labels = (value.to(context.device) for value in (*inputs, labels))
            taught = None
            if switch and teacher is not None:
                with torch.no_grad():
                    taught = teacher(ids, mask)
            settings: dict[str, float] = {"alpha": alpha, "gamma": switch, "temperature": temperature}
            optimizer.zero_grad(set_to_none=True)
            # One after the other: no gradient goes from s to S, and only one network's activations are held.
            full = space(ids, mask, space.largest)
            of_full = full_loss(full, taught, labels, **settings)
            of_full.backward()  # type: ignore[no-untyped-call]
            full = full.detach()
            part = space(ids, mask, drawn(generator) if drawn else draw(space, generator))
            of_part = part_loss(part, full, taught, labels, **settings)
            of_part.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(space.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                sums += [
                    float(of_full + of_part),
                    float(F.cross_entropy(full, labels)),
                    float(F.cross_entropy(part, labels)),
                ]
            done, taken = done + 1, taken + 1
            if context.progress is not None:
                context.progress(done, total, "InstaTune")
            if context.deadline is not None and time.monotonic() > context.deadline:
                break
        loss_, full_, part_ = (sums / max(1, taken)).tolist()  # a deadline may cut an epoch short
        history.append({"epoch": epoch + 1, "loss": loss_, "full": full_, "part": part_})
        if context.deadline is not None and time.monotonic() > context.deadline:
            break
        if checkpoint is not None:
            save_state(
                checkpoint, generator, space=space.state_dict(), optimizer=optimizer.state_dict(),
                schedule=schedule.state_dict(), history=history,
            )  # fmt: skip
    space.eval()
    return InstaTuned(tuple(history), done, time.monotonic() - start)


def instatune_loss(
    full: Tensor,
    part: Tensor,
    teacher: Tensor | None,
    labels: Tensor,
    *,
    alpha: float,
    gamma: float,
    temperature: float = 1.0,
) -> Tensor:
    """The loss of one batch from the scores (N, C) of S, s and T, and labels (N,); see the file's head."""
    settings = {"alpha": alpha, "gamma": gamma, "temperature": temperature}
    return full_loss(full, teacher, labels, **settings) + part_loss(part, full, teacher, labels, **settings)


def full_loss(
    full: Tensor, teacher: Tensor | None, labels: Tensor, *, alpha: float, gamma: float, temperature: float
) -> Tensor:
    """The terms through which S learns."""
    loss = alpha * F.cross_entropy(full, labels)
    if gamma:
        assert teacher is not None
        loss = loss + (1 - alpha) * gamma * divergence(full, teacher, temperature)
    return loss


def part_loss(
    part: Tensor, full: Tensor, teacher: Tensor | None, labels: Tensor, *, alpha: float, gamma: float,
    temperature: float,
) -> Tensor:  # fmt: skip
    """The terms through which s learns; S, which teaches it, is detached."""
    distilled = (1 - gamma) * divergence(part, full.detach(), temperature)
    if gamma:
        assert teacher is not None
        distilled = distilled + gamma * divergence(part, teacher, temperature)
    return alpha * F.cross_entropy(part, labels) + (1 - alpha) * distilled


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean over rows of KL(teacher || student) of scores (N, C) softened by the temperature."""
    return F.kl_div(
        F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1), reduction="batchmean",
        log_target=True,
    )  # fmt: skip


def trained_weights(network: Any) -> dict[str, Tensor]:
    """Name -> weight of all that training changes. Word vectors are frozen here: they get no gradient (choice)."""
    network.embeddings.words.weight.requires_grad_(False)
    return {name: weight for name, weight in network.named_parameters() if weight.requires_grad}


def make_optimizer(
    network: Any, learning_rate: float, head_factor: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW for a plain encoder; biases, norms and positions are not decayed, word vectors stay as they are."""
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, weight in trained_weights(network).items():
        decayed = weight.ndim > 1 and "positions" not in name
        groups.setdefault((name.startswith("head."), decayed), []).append(weight)
    return torch.optim.AdamW(
        [
            {"params": weights, "lr": learning_rate * (head_factor if head else 1.0),
             "weight_decay": weight_decay if decayed else 0.0}
            for (head, decayed), weights in groups.items()
        ]
    )  # fmt: skip


def linear_schedule(total: int, warm_up: float) -> Callable[[int], float]:
    """Factor of the learning rate at a step: up over the first share of the steps, then down to 0."""
    rising = max(1, int(total * warm_up))
    return lambda step: (step + 1) / rising if step < rising else max(0.0, (total - step) / max(1, total - rising))


def fit_head(space: ElasticTransformer, rows: Rows, *, batch_size: int = 64, device: str = "cpu") -> None:
    """Set the linear head, in place, to a logistic regression on the full network's pooled states of ``rows``.

    A head of zeros passes no gradient on: without this nothing could be told of the importance of what lies below.
    """
    from ontarget.adapt.tune.linear_head import fit_weighted

    network: Any = space.network.to(device).eval()
    linear, states, targets = network.head.linear, [], []
    network.head.linear = nn.Identity()
    try:
        with torch.no_grad():
            for ids, mask, labels in ordered(rows, batch_size):
                states.append(network(ids.to(device), mask.to(device)).double().cpu())
                targets.append(labels)
    finally:
        network.head.linear = linear
    classes = torch.cat(targets).numpy()
    weight, bias = fit_weighted(
        torch.cat(states).numpy(), classes, np.ones(len(classes)), outputs=linear.out_features, l2=1.0
    )
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight))
        linear.bias.copy_(torch.from_numpy(bias))


def sort_by_importance(space: ElasticTransformer, rows: Rows, *, batch_size: int = 32, device: str = "cpu") -> None:
    """Bring heads and neurons into the order of their importance, in place; the full network's scores do not change.

    Importance (choice; the paper slices in the given order): |sum of gradient * weight| of the loss over ``rows``, of a
    head's columns of the output projection and of a neuron's column of the outer layer: the first-order change of the
    loss without it. Needs a head that tells classes apart, see `fit_head`.
    """
    network: Any = space.network.to(device).eval()
    layers: list[Any] = [*network.attentions, *network.feed_forwards]
    weights: list[Tensor] = [(layer.output if hasattr(layer, "output") else layer.outer).weight for layer in layers]
    sums = [torch.zeros(weight.shape[1], device=device) for weight in weights]
    for *inputs, labels in batches(rows, batch_size, seed=0, epoch=0):
        ids, mask, labels = (value.to(device) for value in (*inputs, labels))
        loss = F.cross_entropy(network(ids, mask), labels)
        for total, weight, gradient in zip(sums, weights, torch.autograd.grad(loss, weights), strict=True):
            total += (gradient * weight.detach()).sum(0)
    depth = len(network.attentions)
    for at in range(depth):
        per_head = sums[at].view(-1, space.head_columns()).sum(1).abs()
        heads, neurons = (torch.argsort(values, descending=True) for values in (per_head, sums[depth + at].abs()))
        space.reorder(at, heads, neurons)
