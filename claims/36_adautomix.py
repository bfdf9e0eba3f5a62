"""AdAutoMix is above Mixup at equal CPU time.

The spec's honest check: 2,000 training images of Fashion-MNIST, a narrow ResNet of three stages; here 38 epochs of the
full method, not 20, in a network whose first convolution has stride 2 (choice: more epochs for the same time, as the
method is made for long training). The other arms get as many more steps as their steps are cheaper. COST holds the CPU
seconds of a step of each arm, measured once on one core and fixed, so that a seed gives the same steps everywhere; the
seconds that each arm took are recorded. All arms share network, batch, augmentation, SGD and schedule. "automix-like"
trains the mixer by the odd steps' loss alone. Mixup and CutMix are timm's, alpha 1. As in the official code the mixing
arms predict with the teacher; their classifier's numbers stand beside.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ontarget.values import Context

NUMBER = 36
NAME = "adautomix"
TITLE = "AdAutoMix mixes against its classifier"
KIND = "direction"
STATEMENT = "At equal CPU time, a classifier trained with AdAutoMix has a higher test accuracy than one with Mixup."
DATA = "Fashion-MNIST: 2,000 training, 10,000 test images; FGSM at 4/255 on 2,000 of these"
BUDGET = "equal CPU time: 38 epochs of the full method, 210 of vanilla, Mixup and CutMix; besides, Mixup for 38"
ARMS = ("full", "mixup", "cutmix", "automix-like", "vanilla", "mixup, equal epochs")
SEEDS = 3
MEASURE = "accuracy"

TRAIN, BATCH, STEPS, ATTACKED, EPSILON = 2000, 100, 760, 2000, 4 / 255
COST = {"full": 0.104, "automix-like": 0.104, "mixup": 0.0188, "cutmix": 0.0188, "vanilla": 0.0188}
RATE, LAST_RATE, DECAY = 0.1, 0.0, 1e-4
MEAN, DEVIATION = 0.286, 0.353


class Block(nn.Module):
    """Two 3 x 3 convolutions with batch norm, and the way around them."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside),
        )  # fmt: skip
        around = (nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
        self.around = nn.Identity() if (inside, stride) == (outside, 1) else nn.Sequential(*around)

    def forward(self, maps: Tensor) -> Tensor:
        return functional.relu(self.inner(maps) + self.around(maps))


class NarrowResNet(nn.Module):
    """Images (N, 1, 28, 28) -> (map of the third stage (N, 32, 7, 7), pooled features (N, 32))."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stages = nn.Sequential(
            Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 1)
        )  # fmt: skip

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.stages(self.stem(images))
        return maps, maps.mean((2, 3))


class OneHead(nn.Module):
    """The same network with one head, for vanilla, Mixup and CutMix."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = NarrowResNet(), nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(images)[1])
        return logits


@lru_cache(maxsize=1)
def data(seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Training rows (drawn anew for each seed), other training rows for choosing settings, and the test rows."""
    from ontarget.data.samples import fashion_mnist

    images, labels, test_images, test_labels = fashion_mnist()
    order = np.random.default_rng(seed).permutation(len(labels))

    def tensors(pixels: Any, codes: Any) -> tuple[Tensor, Tensor]:
        scaled = (torch.from_numpy(pixels.astype(np.float32)) / 255 - MEAN) / DEVIATION
        return scaled[:, None], torch.from_numpy(codes.astype(np.int64))

    train, validation = order[:TRAIN], order[TRAIN : TRAIN + 5000]
    return {
        "train": tensors(images[train], labels[train]),
        "validation": tensors(images[validation], labels[validation]),
        "test": tensors(test_images, test_labels),
    }


def augment(batch: Tensor, generator: np.random.Generator) -> Tensor:
    """Each image moved by up to two pixels; every second one mirrored."""
    rows = len(batch)
    padded = functional.pad(batch, (2, 2, 2, 2), value=-MEAN / DEVIATION)
    top, left = (torch.from_numpy(generator.integers(0, 5, (rows, 1))) for _ in range(2))
    span = torch.arange(batch.shape[2])
    moved = padded[torch.arange(rows)[:, None, None], :, (top + span)[:, :, None], (left + span)[:, None, :]]
    moved = moved.permute(0, 3, 1, 2)
    mirrored = torch.from_numpy(generator.random(rows) < 0.5)
    return torch.where(mirrored[:, None, None, None], moved.flip(3), moved)


def trained_plainly(arm: str, steps: int, images: Tensor, labels: Tensor, seed: int) -> nn.Module:
    """Vanilla, Mixup or CutMix: cross-entropy with the (mixed) labels."""
    from timm.data import Mixup

    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - timm's Mixup draws from NumPy's global state
    network, generator = OneHead().train(), np.random.default_rng(seed)
    mixing = {
        "mixup": Mixup(mixup_alpha=1.0, label_smoothing=0.0, num_classes=10),
        "cutmix": Mixup(mixup_alpha=0.0, cutmix_alpha=1.0, label_smoothing=0.0, num_classes=10),
    }.get(arm)
    engine = torch.optim.SGD(network.parameters(), lr=RATE, momentum=0.9, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(engine, steps, eta_min=LAST_RATE)
    order = np.zeros(0, dtype=np.int64)
    for _ in range(steps):
        if len(order) < BATCH:
            order = generator.permutation(len(images))
        rows, order = torch.from_numpy(order[:BATCH]), order[BATCH:]
        batch, targets = augment(images[rows], generator), labels[rows]
        if mixing is not None:
            batch, targets = mixing(batch, targets)
        loss = functional.cross_entropy(network(batch), targets)
        engine.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        engine.step()
        schedule.step()
    return network.eval()


def judged(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, expected calibration error (15 bins of equal width) and error under FGSM on the first ATTACKED rows."""
    with torch.inference_mode():
        logits = torch.cat([network(images[at : at + 500]) for at in range(0, len(images), 500)])
    sure, guess = logits.softmax(1).max(1)
    right = (guess == labels).float()
    bins = (sure * 15).long().clamp(max=14)
    gaps = [(right[bins == one] - sure[bins == one]).sum().abs() for one in range(15)]
    survived = 0.0
    for at in range(0, min(ATTACKED, len(images)), 500):
        batch, codes = images[at : at + 500].clone().requires_grad_(True), labels[at : at + 500]
        (slope,) = torch.autograd.grad(functional.cross_entropy(network(batch), codes), batch)
        moved = batch.detach() + EPSILON / DEVIATION * slope.sign()
        moved = moved.clamp(-MEAN / DEVIATION, (1 - MEAN) / DEVIATION)
        with torch.inference_mode():
            survived += float((network(moved).argmax(1) == codes).sum())
    return {
        MEASURE: float(right.mean()),
        "calibration_error": float(sum(gaps)) / len(labels),
        "fgsm_error": 1 - survived / min(ATTACKED, len(images)),
    }


def arm_result(arm: str, seed: int, context: Context, split: str = "test") -> dict[str, Any]:
    """One arm, trained and judged; the classifier's numbers beside the teacher's where there is one."""
    from ontarget.augment.adautomix import adautomix, momentum_for

    images, labels = data(seed)["train"]
    kind, _, equal_epochs = arm.partition(", ")
    steps = STEPS if equal_epochs else round(STEPS * COST["full"] / COST[kind])
    start, found = time.process_time(), {}
    if kind in ("full", "automix-like"):
        torch.manual_seed(seed)
        result = adautomix(
            NarrowResNet(), images, labels, classes=10, steps=steps, batch_size=BATCH, adversarial=kind == "full",
            momentum=momentum_for(steps), learning_rate=RATE, last_rate=LAST_RATE, weight_decay=DECAY,
            augment=augment, context=context,
        )  # fmt: skip
        seconds = time.process_time() - start
        network: nn.Module = result.teacher
        found = {f"classifier_{name}": value for name, value in judged(result.classifier, *data(seed)[split]).items()}
        with torch.no_grad():  # 0 would be even masks: a mixer that has learnt nothing
            maps = result.teacher.mixed(images[:300])[0]
            parts = [maps[at : at + 100] for at in (0, 100, 200)]
            found["mask_deviation"] = float(result.mixer(parts, torch.ones(3) / 3, (28, 28)).std())
    else:
        network = trained_plainly(kind, steps, images, labels, seed)
        seconds = time.process_time() - start
    shares = {"steps": steps, "epochs": steps * BATCH / TRAIN, "step_cost": COST[kind], "cpu_seconds": seconds}
    return {**judged(network, *data(seed)[split]), **found, **shares}


def run(seed: int, context: Context) -> dict[str, dict[str, Any]]:
    """Test accuracy, FGSM error and calibration error of every arm, with its steps and CPU seconds."""
    return {arm: arm_result(arm, seed, context) for arm in ARMS}
