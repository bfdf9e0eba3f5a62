"""DistillWeighted: similarity-weighted distillation of many source models into one small target model.

Kenneth Borup, Cheng Perng Phoo, Bharath Hariharan, "Distilling from Similar Tasks for Transfer Learning on a Budget",
ICCV 2023, arXiv 2304.12314. Official code: the repository Kennethborup/DistillWeighted holds a README only. The
similarity is PARC (ontarget.select.parc), checked against its official code.
Claim: over 8 targets it beats transfer from ImageNet by 5.6 points and FixMatch by 4.5 at the student's cost; choosing
the source well matters (DistillNearest is far above distilling a random source).
Left out: teachers run anew on augmented views (their probabilities are computed once).
Checked in tests/adapt/test_distill_weighted.py (hand-worked losses and weights) and claims/04_distill_weighted.py.

With similarities e_s, frozen sources s with linear heads h_s fitted on the target's labelled features, student f:

    a_s = max(e_s, 0)^p / sum_k max(e_k, 0)^p
    loss = balance * mean CE(y, f(x_labelled)) + (1 - balance) * mean sum_s a_s CE(softmax h_s(x), f(x_unlabelled))

p = 0 weights all sources alike; p -> infinity is DistillNearest, the most similar source alone.

>>> source_weights([0.5, 0.25, -0.1], power=1).tolist()
[0.666..., 0.333..., 0.0]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ontarget.errors import DataError, SettingError
from ontarget.values import Array, Context

POWER = 12.0  # (choice): the paper's form is recalled, its value is not
BALANCE = 0.8  # share of the labelled loss (choice)


@dataclass(frozen=True)
class Distilled:
    """network: the student in evaluation mode. curve: one mapping every tenth of the steps, with both losses."""

    network: torch.nn.Module
    curve: tuple[dict[str, float], ...]


def source_weights(similarities: Sequence[float] | Array, *, power: float = POWER) -> Array:
    """(M,) weights of the sources, with sum 1. power: 0 for equal weights, ``math.inf`` for the nearest alone.

    Where no similarity is positive nothing speaks for any source, and all weigh the same (choice).
    Raises DataError: NaN or none; SettingError: a negative power. Source: arXiv 2304.12314, section 3.3 (recalled).
    """
    found = np.asarray(similarities, dtype=np.float64)
    if found.ndim != 1 or not len(found) or not np.isfinite(found).all():
        raise DataError(f"similarities are {similarities}.", allowed="one finite number for each source")
    if not power >= 0:
        raise SettingError(f"power is {power}.", allowed="0 or more", option="power")
    positive = np.maximum(found, 0.0)
    if power == 0 or not positive.any():
        return np.full(len(found), 1 / len(found))
    relative = positive / positive.max()
    weights: Array = (relative == 1.0).astype(np.float64) if math.isinf(power) else relative**power
    shares: Array = weights / weights.sum()
    return shares


def teacher_probabilities(
    labelled: Array, targets: Array, unlabelled: Array, *, outputs: int, temperature: float = 1.0
) -> Array:
    """(U, C) one source's probabilities for unlabelled rows, by a linear head fitted on the labelled ones.

    labelled: (N, D) and unlabelled: (U, D) features of the frozen source. targets: (N,) int.
    """
    from ontarget.adapt.tune.linear_head import linear_head

    if temperature <= 0:
        raise SettingError(f"temperature is {temperature}.", allowed="more than 0", option="temperature")
    head = linear_head(labelled, targets, outputs=outputs, kind="classification")
    logits = (np.asarray(unlabelled, dtype=np.float64) @ head.weight.T + head.bias) / temperature
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: Array = (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
    return found


def mixed_teachers(probabilities: Sequence[Array], weights: Array) -> Array:
    """(U, C) sum_s a_s p_s. Cross-entropy is linear in the teacher, so one mixed teacher gives the weighted loss."""
    if len(probabilities) != len(weights):
        raise DataError(f"{len(probabilities)} teachers and {len(weights)} weights.")
    total: Array = np.sum([weight * np.asarray(part) for weight, part in zip(weights, probabilities)], axis=0)
    return total.astype(np.float32)


def distill_weighted(
    student: torch.nn.Module,
    labelled: Tensor,
    targets: Tensor,
    unlabelled: Tensor,
    teachers: Array | Tensor,
    *,
    steps: int,
    balance: float = BALANCE,
    batch_size: int = 64,
    learning_rate: float = 0.05,
    weight_decay: float = 5e-4,
    augment: Callable[[Tensor, np.random.Generator], Tensor] | None = None,
    context: Context = Context(),
) -> Distilled:
    """Train ``student`` (changed in place) on labels and on the mixed teachers' probabilities.

    student: maps a batch of inputs to logits (B, C). labelled: (N, ...) inputs, targets: (N,) int64. unlabelled:
    (U, ...) inputs, teachers: (U, C) from `mixed_teachers`. balance: of the labelled loss, 0 to 1. Batches of
    ``batch_size`` of each; SGD with momentum 0.9, cosine schedule (choices). augment(batch, generator): weak
    augmentation of either batch. Ends early, at a safe point, at ``context.deadline``.
    Raises DataError: shapes that do not fit; SettingError: balance outside 0 to 1, no step.
    Source: arXiv 2304.12314, eq. 3.
    """
    soft = torch.as_tensor(np.asarray(teachers), dtype=torch.float32)
    if len(labelled) != len(targets) or len(unlabelled) != len(soft) or not len(labelled) or not len(unlabelled):
        raise DataError(
            f"{len(labelled)} labelled inputs for {len(targets)} targets, {len(unlabelled)} unlabelled for {len(soft)} "
            "teacher rows.",
            allowed="as many of each, and at least one",
        )
    if not 0 <= balance <= 1 or steps < 1:
        raise SettingError(
            f"balance is {balance}, steps is {steps}.", allowed="0 to 1; 1 or more", option="balance, steps"
        )
    device = torch.device(context.device)
    student.to(device).train()
    torch.manual_seed(context.seed)
    generator = np.random.default_rng(context.seed)
    engine = torch.optim.SGD(student.parameters(), lr=learning_rate, momentum=0.9, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(engine, steps)
    streams = [_batches(len(part), batch_size, generator) for part in (labelled, unlabelled)]
    curve: list[dict[str, float]] = []
    for step in range(steps):
        rows, others = (torch.from_numpy(next(stream)) for stream in streams)
        inputs, guesses = labelled[rows], unlabelled[others]
        if augment is not None:
            inputs, guesses = augment(inputs, generator), augment(guesses, generator)
        logits = student(torch.cat([inputs, guesses]).to(device))
        from_labels = torch.nn.functional.cross_entropy(logits[: len(rows)], targets[rows].to(device))
        from_teachers = torch.nn.functional.cross_entropy(logits[len(rows) :], soft[others].to(device))
        loss = balance * from_labels + (1 - balance) * from_teachers
        engine.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        engine.step()
        schedule.step()
        if step % max(1, steps // 10) == 0 or step == steps - 1:
            if not torch.isfinite(loss):
                raise DataError(f"The loss is not finite after step {step}.", next_step="lower the learning rate")
            curve.append({"step": step + 1, "labels": from_labels.item(), "teachers": from_teachers.item()})
            if context.progress:
                context.progress(step + 1, steps, "distilling")
        if context.deadline is not None:
            import time

            if time.monotonic() > context.deadline:
                break
    return Distilled(student.eval(), tuple(curve))


def _batches(rows: int, size: int, generator: np.random.Generator) -> Iterator[Array]:
    """Endless batches of row numbers; every row once before any comes again."""
    left = np.zeros(0, dtype=np.int64)
    while True:
        while len(left) < size:
            left = np.concatenate([left, generator.permutation(rows)])
        yield left[:size]
        left = left[size:]
