"""AdAutoMix: a learned mixer makes mixed images that are hard for the classifier, which trains on them meanwhile.

Qin, Jin, Jiang, El-Yacoubi, Gao, "Adversarial AutoMixup", ICLR 2024, arXiv 2312.11954. Official code:
JinXins/Adversarial-AutoMixup (for OpenMixup); the defaults are those of its CIFAR-100 ResNet-18 settings.
Claim: a classifier that generalises better and is better calibrated than with Mixup, CutMix or AutoMix at equal epochs,
at no cost in use (CIFAR-100, ResNet-18: 82.32 against 79.12, 78.17 and 82.04).
Left out: random numbers of mixed images, loss weights that change over time, half precision, several devices.
Checked in tests/augment/test_adautomix.py (losses, masks and schedule by hand) and claims/36_adautomix.py.

Classifier q and teacher k, the moving average of q's weights, have a one-hot head and a mix head each. S permutations
of the batch give x_1..x_S with labels y_1..y_S; r_s ~ Beta(a, a), divided by their sum. The mixer sees k's maps.

    m_i = masks of the mixer (ontarget.augment.mixer);  x_mix = sum_i m_i x_i;  CEmix(f(x)) = sum_i r_i CE(f(x), y_i)
    q minimises CEmix(q(x_mix)) + w CEmix(q(sum_i r_i x_i)) + (1 - w) CE(q(x), y), the masks constant, w = 1/2
    the mixer minimises, through the frozen k,  -b CEmix(k(x_mix)) + (1 - b) sum_i r_i cos(k(x_mix), k(x_i))  in even
    steps and  CEmix(k(x_mix))  in odd ones; signs as in the code

The code evaluates k on each permuted batch; k(x) permuted is the same, and is computed once. As in the code the two
players have permutations of their own and share r, and k's batch norm has its own statistics: of clean batches alone
here, of four clean to one mixed batch there (choice). The published numbers are those of k's one-hot head.

>>> [round(ema_momentum(step, 400_000), 6) for step in (0, 39_999, 400_000)]
[0.999, 0.999, 0.999999]
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ontarget.augment.mixer import (
    Mixer,
    TwoHeads,
    backbone_widths,
    classifier_masks,
    draw_permutations,
    draw_ratios,
    mix,
    statistics_kept,
)
from ontarget.errors import DataError, SettingError
from ontarget.values import Array, Context

MOMENTUM = (0.999, 0.999999)
WARM = 0.1  # share of the steps with the first momentum
PUBLISHED_STEPS = 400_000  # 800 epochs of 500 batches


@dataclass(frozen=True)
class TrainedOnMixes:
    """classifier: q, teacher: k, both in evaluation mode; mixer; curve: one mapping every tenth of the steps.

    The official code predicts with the teacher. With a rate that ends at 0 the classifier is as fit for it.
    """

    classifier: TwoHeads
    teacher: TwoHeads
    mixer: Mixer
    curve: tuple[dict[str, float], ...]


def mixed_cross_entropy(logits: Tensor, labels: Tensor, permutations: Tensor, ratios: Tensor) -> Tensor:
    """sum_s ratios[s] CE(logits, labels[permutations[s]]), mean over rows. logits (N, C), labels (N,) int64."""
    parts = [ratio * functional.cross_entropy(logits, labels[rows]) for rows, ratio in zip(permutations, ratios)]
    return torch.stack(parts).sum()


def classifier_loss(
    network: TwoHeads, images: Tensor, labels: Tensor, mixed: Tensor, permutations: Tensor, ratios: Tensor,
    *, plain: float = 0.5,
) -> Tensor:  # fmt: skip
    """CEmix of the mixed images, ``plain`` CEmix of the plain Mixup and 1 - ``plain`` CE of the clean images.

    Three passes, one after the other, so that batch norm sees each kind by itself, as in the code.
    """
    clean = functional.cross_entropy(network(images), labels)
    blended = network.mixed(mix(images, permutations, ratios.view(1, -1, 1, 1)))[1]
    hard = mixed_cross_entropy(network.mixed(mixed)[1], labels, permutations, ratios)
    return hard + plain * mixed_cross_entropy(blended, labels, permutations, ratios) + (1 - plain) * clean


def mixer_loss(
    mixed: Tensor, clean: Tensor, labels: Tensor, permutations: Tensor, ratios: Tensor, *, beta: float = 0.3,
    adversarial: bool,
) -> Tensor:  # fmt: skip
    """What the mixer minimises: adversarial in even steps, CEmix in odd ones.

    mixed: (N, C) logits of the teacher's mix head for the mixed images, clean: (N, C) for the unmixed batch.
    """
    entropy = mixed_cross_entropy(mixed, labels, permutations, ratios)
    if not adversarial:
        return entropy
    parts = [r * functional.cosine_similarity(mixed, clean[rows], dim=-1) for rows, r in zip(permutations, ratios)]
    return -beta * entropy + (1 - beta) * torch.stack(parts).sum(0).mean()


def ema_momentum(step: int, steps: int, momentum: tuple[float, float] = MOMENTUM, *, warm: float = WARM) -> float:
    """The teacher's momentum: the first for a ``warm`` share of the steps, then the cosine from step 0 to the last."""
    first, last = momentum
    if step < int(warm * steps):
        return first
    return last - (last - first) * (math.cos(math.pi * step / steps) + 1) / 2


def momentum_for(steps: int) -> tuple[float, float]:
    """Momenta that average over the same share of a short run as the published ones do of 400,000 steps (choice)."""
    shorter = max(PUBLISHED_STEPS / steps, 1.0)
    return max(0.0, 1 - (1 - MOMENTUM[0]) * shorter), max(0.0, 1 - (1 - MOMENTUM[1]) * shorter)


@torch.no_grad()
def update_teacher(teacher: nn.Module, classifier: nn.Module, momentum: float) -> None:
    """teacher = momentum teacher + (1 - momentum) classifier, weights alone: buffers stay the teacher's own."""
    for old, new in zip(teacher.parameters(), classifier.parameters(), strict=True):
        old.lerp_(new, 1 - momentum)


def adautomix(
    backbone: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    classes: int,
    steps: int,
    batch_size: int = 100,
    samples: int = 3,
    alpha: float = 1.0,
    beta: float = 0.3,
    margin: float = 0.03,
    adversarial: bool = True,
    shared_ratios: bool = True,
    with_ratios: bool = False,
    momentum: tuple[float, float] = MOMENTUM,
    learning_rate: float = 0.1,
    last_rate: float = 0.05,
    weight_decay: float = 1e-4,
    augment: Callable[[Tensor, np.random.Generator], Tensor] | None = None,
    context: Context = Context(),
) -> TrainedOnMixes:
    """Train ``backbone`` (changed in place) with two heads, its teacher and a mixer, all by one SGD.

    backbone: as in `TwoHeads`. images: (N, C, H, W) float, standardised; labels: (N,) int64 in 0..classes-1.
    samples: images in a mix, 2 or more. beta: of the even steps' cross-entropy, 0 to 1; adversarial=False trains the
    mixer by the odd steps' loss alone, as AutoMix does. shared_ratios=False draws the ratios anew for the classifier.
    momentum: of the teacher, first and last; in runs far shorter than 10,000 steps it stays near its start, and so does
    the mixer: see `momentum_for`. The rate goes from learning_rate to last_rate as a cosine, by step (choice).
    augment(batch, generator): crops, flips. Ends early, at a safe point, at ``context.deadline``.
    Raises SettingError: values out of range, a backbone that does not return two tensors; DataError: images and labels
    that do not fit, a loss that is not finite. Source: arXiv 2312.11954, section 3 and the official code.
    """
    _check(images, labels, classes)
    _check_settings(steps, batch_size, samples, alpha, beta, margin, momentum)
    torch.manual_seed(context.seed)
    generator, device, size = np.random.default_rng(context.seed), torch.device(context.device), images.shape[2:]
    channels, pooled = backbone_widths(backbone, images)
    classifier = TwoHeads(backbone, pooled, classes).to(device).train()
    teacher = copy.deepcopy(classifier).requires_grad_(False)
    mixer = Mixer(channels, with_ratios=with_ratios).to(device)
    engine = torch.optim.SGD(
        [*classifier.parameters(), *mixer.parameters()], lr=learning_rate, momentum=0.9, weight_decay=weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(engine, steps, eta_min=last_rate)
    stream = _batches(len(images), batch_size, generator)
    curve: list[dict[str, float]] = []
    for step in range(steps):
        rows = torch.from_numpy(next(stream))
        batch = images[rows] if augment is None else augment(images[rows], generator)
        batch, targets = batch.to(device), labels[rows].to(device)
        for_mixer, for_classifier = (draw_permutations(len(rows), samples, generator).to(device) for _ in range(2))
        ratios = draw_ratios(samples, alpha, generator).to(device)
        others = ratios if shared_ratios else draw_ratios(samples, alpha, generator).to(device)
        with torch.no_grad():
            stage, clean = teacher.mixed(batch)
            fixed = mixer([stage[line] for line in for_classifier], others, size)
        masks = mixer([stage[line] for line in for_mixer], ratios, size)
        with statistics_kept(teacher):
            _, mixed = teacher.mixed(mix(batch, for_mixer, masks))
        hard = adversarial and step % 2 == 0
        made = mixer_loss(mixed, clean, targets, for_mixer, ratios, beta=beta, adversarial=hard)
        inputs = mix(batch, for_classifier, classifier_masks(fixed, others, margin))
        learnt = classifier_loss(classifier, batch, targets, inputs, for_classifier, others)
        engine.zero_grad()
        (learnt + made).backward()  # type: ignore[no-untyped-call]
        engine.step()
        schedule.step()
        update_teacher(teacher, classifier, ema_momentum(step, steps, momentum))
        if step % max(1, steps // 10) == 0 or step == steps - 1:
            if not torch.isfinite(learnt + made):
                raise DataError(f"The loss is not finite after step {step}.", next_step="lower the learning rate")
            curve.append({"step": step + 1, "classifier": learnt.item(), "mixer": made.item()})
            if context.progress:
                context.progress(step + 1, steps, "training on mixed images")
        if context.deadline is not None and time.monotonic() > context.deadline:
            break
    return TrainedOnMixes(classifier.eval(), teacher.eval(), mixer.eval(), tuple(curve))


def _check(images: Tensor, labels: Tensor, classes: int) -> None:
    if images.ndim != 4 or not images.is_floating_point() or len(images) < 2 or labels.shape != images.shape[:1]:
        raise DataError(
            f"images are {tuple(images.shape)} {images.dtype}, labels {tuple(labels.shape)}.",
            allowed="float images (N, C, H, W), labels (N,), N of 2 or more",
        )
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise DataError(
            f"labels are in {int(labels.min())}..{int(labels.max())}.", allowed=f"0..{classes - 1}", option="classes"
        )


def _check_settings(
    steps: int, batch: int, samples: int, alpha: float, beta: float, margin: float, momentum: tuple[float, float]
) -> None:
    ranges = {
        "steps": (steps, steps >= 1, "1 or more"),
        "batch_size": (batch, batch >= 2, "2 or more"),
        "samples": (samples, samples >= 2, "2 or more"),
        "alpha": (alpha, alpha > 0, "above 0"),
        "beta": (beta, 0 <= beta <= 1, "0 to 1"),
        "margin": (margin, 0 <= margin < 0.5, "0 to below 0.5"),
        "momentum": (momentum, 0 <= momentum[0] <= momentum[1] <= 1, "0 <= first <= last <= 1"),
    }
    for option, (given, fits, allowed) in ranges.items():
        if not fits:
            raise SettingError(f"{option} is {given}.", allowed=allowed, option=option)


def _batches(rows: int, size: int, generator: np.random.Generator) -> Iterator[Array]:
    """Endless batches of row numbers; every row once before any comes again."""
    left = np.zeros(0, dtype=np.int64)
    while True:
        while len(left) < size:
            left = np.concatenate([left, generator.permutation(rows)])
        yield left[:size]
        left = left[size:]
