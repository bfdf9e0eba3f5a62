"""Breadcrumbs against task arithmetic, TIES and the average: settings found on two tasks, then frozen for six.

The spec's honest check: MiniLM fine-tuned on 600 texts for 2 epochs on each of six tasks: polarity of film reviews,
product reviews, tweets and editorials, sections of Debian packages (five largest, by their one-line descriptions) and
topics of quotations (five largest); the last two stand for rater disagreement and man pages (choice). Heads stay with
their tasks. On 200 validation texts of the first two tasks each method's settings are searched with equally many trials
(choice), 40, drawn from its grid; then they are frozen while N grows from 2 to 6. The measure is the mean over the
tasks merged of accuracy over that of the task's own fine-tuned model, on 500 test texts a task, at N = 6.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from ontarget.values import Context, Examples

NUMBER = 5
NAME = "breadcrumbs"
TITLE = "Model Breadcrumbs merges six tasks"
KIND = "direction"
STATEMENT = (
    "With settings found on two tasks and frozen, Breadcrumbs of six fine-tuned models keeps more of their accuracy "
    "than task arithmetic does."
)
DATA = "Six tasks on texts: 600 training, 200 validation and 500 test texts each"
BUDGET = "the same fine-tuned models, the same two tasks and 40 trials for the settings of every method"
ARMS = ("breadcrumbs", "task arithmetic", "ties", "average")
PAIRS = (("breadcrumbs", "task arithmetic"),)
SEEDS = 3
MEASURE = "normalised accuracy"

TASKS = ("movies", "products", "tweets", "editorials", "sections", "fortunes")
TRAIN, VALIDATION, TEST, LENGTH, EPOCHS, RATE, TRIALS = 600, 200, 500, 32, 2, 1e-4, 40
# The official search's ranges; alpha of all methods from the same ones.
ALPHAS = (0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
GRIDS: dict[str, dict[str, tuple[float, ...]]] = {
    "breadcrumbs": {"alpha": ALPHAS, "density": (0.05, 0.1, 0.15, 0.2), "gamma": (0.001, 0.003, 0.006, 0.01)},
    "task arithmetic": {"alpha": tuple(np.linspace(0.025, 1.0, TRIALS).round(3).tolist())},
    "ties": {"lambda": (0.3, 0.5, 0.7, 0.9, 1.1, 1.4, 1.7, 2.0, 2.5, 3.0), "density": (0.05, 0.1, 0.2, 0.3)},
    "average": {},
}  # fmt: skip

State = dict[str, torch.Tensor]


def texts(name: str) -> tuple[list[str], list[str]]:
    """Texts and classes."""
    from ontarget.data import samples

    if name == "sections":
        table = samples.package_sections(sections=5)
    elif name == "fortunes":
        table = samples.fortunes(topics=5)
    else:
        table = samples.polarity(name)  # type: ignore[arg-type]
    return table.iloc[:, 0].tolist(), table.iloc[:, 1].tolist()


def splits(name: str, seed: int) -> list[Examples]:
    """Training, validation, test."""
    inputs, classes = texts(name)
    targets = np.unique(classes, return_inverse=True)[1].astype(np.int64)
    order = np.random.default_rng((seed, TASKS.index(name))).permutation(len(inputs))
    parts = np.split(order[: TRAIN + VALIDATION + TEST], [TRAIN, TRAIN + VALIDATION])
    return [Examples([inputs[int(at)] for at in rows], targets[rows], rows) for rows in parts]


def merged(method: str, base: State, models: list[State], settings: Mapping[str, float]) -> State:
    """Encoder weights of a merge. Buffers are the base's."""
    from ontarget.merge.average import average
    from ontarget.merge.breadcrumbs import breadcrumbs
    from ontarget.merge.task_arithmetic import task_arithmetic
    from ontarget.merge.ties import ties

    found = {}
    for name, start in base.items():
        tuned = [model[name] for model in models]
        if not start.is_floating_point() or all(torch.equal(value, start) for value in tuned):
            found[name] = start
            continue
        weights = [settings.get("alpha", 1.0)] * len(models)
        if method == "average":
            found[name] = average(tuned, weights=weights)
        elif method == "ties":
            given = {"density": settings["density"], "scale": settings["lambda"]}
            found[name] = ties(start, tuned, weights=[1.0] * len(models), **given)
        elif method == "breadcrumbs":
            given = {"density": settings["density"], "gamma": settings["gamma"]}
            found[name] = breadcrumbs(start, tuned, weights=weights, **given)
        else:
            found[name] = task_arithmetic(start, tuned, weights=weights)
    return found


def run(seed: int, context: Context) -> dict[str, dict[str, Any]]:
    """Mean normalised accuracy of every method at N = 2 to 6."""
    from ontarget.adapt.predict import predict_scores
    from ontarget.adapt.tune.finetune import finetune
    from ontarget.pool import load, resolve

    source = load(resolve("zoo:minilm"), max_length=LENGTH)
    base: State = {name: value.clone() for name, value in source.encoder.state_dict().items()}
    rows, networks, models = {}, {}, []
    for name in TASKS:
        rows[name] = splits(name, seed)
        loaded = load(resolve("zoo:minilm"), max_length=LENGTH)
        tuned = finetune(
            loaded, rows[name][0], None, outputs=int(rows[name][0].targets.max()) + 1, kind="classification",
            metric="accuracy", total_epochs=EPOCHS, batch_size=16, learning_rate=RATE, context=context,
        )  # fmt: skip
        network: Any = tuned.network
        networks[name] = network
        models.append({key: value.clone() for key, value in network.encoder.state_dict().items()})

    def accuracy(name: str, state: State, part: int) -> float:
        networks[name].encoder.load_state_dict(state)
        examples = rows[name][part]
        scores = predict_scores(networks[name], source.preprocess, examples.inputs)
        return float((scores.argmax(1) == examples.targets).mean())

    own = {part: {name: accuracy(name, models[at], part) for at, name in enumerate(TASKS)} for part in (1, 2)}

    def normalised(state: State, count: int, part: int) -> float:
        return float(np.mean([accuracy(name, state, part) / own[part][name] for name in TASKS[:count]]))

    results: dict[str, dict[str, Any]] = {}
    for method, grid in GRIDS.items():

        def of(settings: dict[str, float], count: int = 2, part: int = 1, method: str = method) -> float:
            return normalised(merged(method, base, models[:count], settings), count, part)

        settings = chosen(grid, seed, of)
        by_count = {count: of(settings, count, 2) for count in range(2, 7)}
        results[method] = {MEASURE: by_count[6], "by_count": by_count, "settings": settings}
    results["breadcrumbs"] |= {"own_accuracy": own[2], "base": normalised(base, 6, 2)}
    return results


def chosen(
    grid: Mapping[str, tuple[float, ...]], seed: int, value: Callable[[dict[str, float]], float]
) -> dict[str, float]:
    """The best of 40 settings drawn from a grid, or of all where there are fewer."""
    every = [dict(zip(grid, one, strict=True)) for one in itertools.product(*grid.values())]
    if len(every) == 1:
        return every[0]
    order = np.random.default_rng(seed).permutation(len(every))[:TRIALS]
    return max((every[at] for at in order), key=value)
