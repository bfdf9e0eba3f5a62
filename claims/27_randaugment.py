"""RandAugment, tuned on the target itself, beats flip and crop.

The spec's honest check: EfficientNet-Lite0 with ImageNet weights on Fashion-MNIST at 96 px, 50 and 500 images a class,
5 epochs; N in {1, 2}, M in {3, 6, 9}, chosen on validation rows; against flip alone, the untuned default (2, 9), and as
many random trials on the learning rate. Scaled down: 20 and 100 images a class, 64 px, all weights but the batch
statistics are trained (choice). "Flip" stands for flip and crop: clothes fill these frames, a crop would cut them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ontarget.values import Context, Examples

NUMBER = 27
NAME = "randaugment"
TITLE = "RandAugment tuned on the target"
KIND = "direction"
STATEMENT = "RandAugment with N and M chosen on validation rows has a higher test accuracy than flip alone."
DATA = "Fashion-MNIST: 20 and 100 training images a class, 500 validation, 2,000 test images"
BUDGET = "5 epochs a training; six settings tried by the tuned arms, RandAugment's and the learning rate's alike"
ARMS = ("tuned", "flip", "default (2, 9)", "learning rate tuned")
SEEDS = 3
MEASURE = "accuracy"

SIZES, EPOCHS, RATE = (20, 100), 5, 1e-3
SETTINGS = tuple((n, m) for n in (1, 2) for m in (3, 6, 9))


@lru_cache(maxsize=2)
def splits(seed: int) -> dict[Any, Examples]:
    """Training rows by size a class, validation and test rows, drawn anew for each seed."""
    from ontarget.data.samples import fashion_mnist

    images, labels, test_images, test_labels = fashion_mnist()
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    by_class = [order[labels[order] == number] for number in range(10)]

    def rows(chosen: Any, pixels: Any, classes: Any) -> Examples:
        return Examples([pixels[row] for row in chosen], classes[chosen].astype(np.int64), np.asarray(chosen))

    found: dict[Any, Examples] = {
        size: rows(np.concatenate([members[:size] for members in by_class]), images, labels) for size in SIZES
    }
    found["validation"] = rows(np.concatenate([members[-50:] for members in by_class]), images, labels)
    found["test"] = rows(generator.permutation(len(test_labels))[:2000], test_images, test_labels)
    return found


def trained(seed: int, size: int, augment: str, rate: float, context: Context) -> tuple[float, float]:
    """(validation, test) accuracy after EPOCHS epochs."""
    from ontarget.adapt.metric import metric_value
    from ontarget.adapt.predict import predict_scores
    from ontarget.adapt.tune.finetune import finetune
    from ontarget.pool import load, resolve

    loaded = load(resolve("zoo:efficientnet-lite0@64"))
    rows = splits(seed)
    result = finetune(
        loaded, rows[size], rows["validation"], outputs=10, kind="classification", metric="accuracy", mode="full",
        total_epochs=EPOCHS, batch_size=32, learning_rate=rate, augment=augment, early_stopping=False, context=context,
    )  # fmt: skip
    scores = predict_scores(result.network, loaded.preprocess, rows["test"].inputs, context=context)
    return result.validation_metric, metric_value("accuracy", scores, rows["test"].targets)


def run(seed: int, context: Context) -> dict[str, dict[str, Any]]:
    """Test accuracy averaged over the sizes; the choices of the tuned arms beside it."""
    results: dict[str, dict[str, Any]] = {arm: {"by_size": {}} for arm in ARMS}
    for size in SIZES:
        tried = {(n, m): trained(seed, size, f"randaugment-{n}-{m}", RATE, context) for n, m in SETTINGS}
        best = max(tried, key=lambda key: tried[key][0])
        results["tuned"]["by_size"][size] = tried[best][1]
        results["tuned"].setdefault("chosen", {})[size] = best
        results["default (2, 9)"]["by_size"][size] = tried[2, 9][1]
        flipped = trained(seed, size, "flip", RATE, context)
        results["flip"]["by_size"][size] = flipped[1]
        rates = np.exp(np.random.default_rng(seed).uniform(np.log(2e-4), np.log(4e-3), len(SETTINGS) - 1))
        found = {RATE: flipped, **{float(rate): trained(seed, size, "flip", float(rate), context) for rate in rates}}
        rate = max(found, key=lambda key: found[key][0])
        results["learning rate tuned"]["by_size"][size] = found[rate][1]
        results["learning rate tuned"].setdefault("chosen", {})[size] = rate
    for arm in ARMS:
        results[arm][MEASURE] = float(np.mean(list(results[arm]["by_size"].values())))
    return results
