"""ConcurrentNAS against other searches on a space of which every network was evaluated and timed.

The spec's honest check: a super-network of mobile CNNs with four mixed edges (1,764 networks), trained on 6,000 images
of Fashion-MNIST one random path at a time; the validation accuracy of every network (BatchNorm recalibrated) and its
measured latency at 1 and 2 threads make a table, once for all seeds, so that the true front is known. Latency is the
mean over several builds of a network: one build alone may be a tenth off for as long as it lives. Every search has
a population of 20 (choice; 60 evaluations are three of them) and minimises error and latency at 1 thread. The measure
is the hypervolume at 60 real evaluations over that of the true front, up to the table's worst error and latency. Also:
evaluations until 95% of it, 400 at most, and the same at 2 threads from the last population of the search at 1 thread
(warm) and from drawn networks (cold).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ontarget.values import Array, Context

NUMBER = 31
NAME = "concurrent_nas"
TITLE = "ConcurrentNAS finds the front with few evaluations"
KIND = "direction"
STATEMENT = (
    "At 60 real evaluations ConcurrentNAS has a larger share of the true front's hypervolume than NSGA-II (pymoo, "
    "Optuna) on real evaluations, random search and regularised evolution."
)
DATA = "Fashion-MNIST: 6,000 training, 1,000 validation images; latency measured on this device"
BUDGET = "60 real evaluations"
ARMS = ("concurrent", "nsga2 pymoo", "nsga2 optuna", "random", "regularised evolution")
PAIRS = tuple(("concurrent", arm) for arm in ARMS[1:])
SEEDS = 10
MEASURE = "share of the hypervolume"

BUDGET_EVALUATIONS, MOST, POPULATION, ENOUGH = 60, 400, 20, 0.95
TRAIN, VALIDATION, EPOCHS, CALIBRATION = 6000, 1000, 24, 512
SPACE: dict[str, Any] = {
    "image_size": 28, "channels": 1, "outputs": 10, "stages": ((16, 2, 2), (32, 2, 2)), "stem_width": (16, 1),
    "first": 16, "head_width": 64,
}  # fmt: skip

Code = tuple[int, ...]


class Enough(Exception):
    """The search has what it is measured by."""


def space_of() -> Any:
    from ontarget.search.mobile_space import MobileSpace

    torch.manual_seed(0)
    return MobileSpace(**SPACE)


@lru_cache(maxsize=1)
def tabulated() -> dict[Code, list[float]]:
    """Code -> error, milliseconds at 1 thread, at 2 threads; made once and kept in the cache."""
    import inspect

    from ontarget.device import describe
    from ontarget.pool.cache import cached_json, key_of

    sizes = str((SPACE, TRAIN, VALIDATION, EPOCHS, CALIBRATION))
    device = describe()
    here = str([device[name] for name in ("cpu", "cores", "onnxruntime")])
    errors, _ = cached_json(key_of("31 errors", sizes, inspect.getsource(_errors)), _errors, room="claims")
    times, _ = cached_json(key_of("31 times", sizes, here, inspect.getsource(_times)), _times, room="claims")
    return {code: [error, *ms] for code, error, ms in zip(every_code(), errors, times, strict=True)}


def every_code() -> list[Code]:
    import itertools

    return list(itertools.product(*(range(slot.choices) for slot in space_of().slots)))


def _errors() -> list[float]:
    from torch.utils.data import TensorDataset

    from ontarget.data.samples import fashion_mnist
    from ontarget.search.retrain import accuracy, recalibrate
    from ontarget.search.rows import batches
    from ontarget.search.space import draw

    images, labels, *_ = fashion_mnist()
    order = np.random.default_rng(0).permutation(len(labels))

    def rows(positions: Array) -> TensorDataset:
        scaled = (torch.from_numpy(images[positions].astype(np.float32)) / 255 - 0.286) / 0.353
        return TensorDataset(scaled[:, None], torch.from_numpy(labels[positions].astype(np.int64)))

    train, validation = rows(order[:TRAIN]), rows(order[TRAIN : TRAIN + VALIDATION])
    calibration = rows(order[:CALIBRATION])
    space, generator = space_of(), np.random.default_rng(0)
    optimizer = torch.optim.SGD(space.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=4e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * -(-TRAIN // 64))
    space.train()
    for epoch in range(EPOCHS):
        for pixels, classes in batches(train, 64, seed=0, epoch=epoch):
            loss = torch.nn.functional.cross_entropy(space(pixels, draw(space, generator)), classes)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    errors = []
    for code in every_code():
        network = space.slice(code)
        recalibrate(network, calibration)
        errors.append(1 - accuracy(network, validation))
    return errors


def _times() -> list[list[float]]:
    """Milliseconds at 1 and 2 threads; all networks in turn, so that what disturbs one disturbs all.

    In groups one after the other, networks of different groups were up to a tenth apart for the machine's sake.
    """
    from ontarget.latency_table import Setting
    from ontarget.time_networks import Maker, time_builds

    space, times = space_of().eval(), []
    for threads in (1, 2):
        setting = Setting(threads=threads)
        makers = [Maker(space.slice(code), space.example(1), setting) for code in every_code()]
        times.append(time_builds(makers, setting))
    return [list(pair) for pair in zip(*times, strict=True)]


class Asked:
    """Real evaluations: looks values up, counts each network once, and keeps the share of the front's hypervolume."""

    def __init__(self, column: int) -> None:
        from ontarget.search.genetic import hypervolume, non_dominated

        self.column, self.table = column, tabulated()
        self.known: dict[Code, Array] = {}
        everything = np.array([[row[0], row[column]] for row in self.table.values()])
        self.corner = everything.max(axis=0)
        self.whole = hypervolume(everything[non_dominated(everything)], self.corner)
        self.shares: list[float] = []

    def __call__(self, codes: Sequence[Code]) -> Array:
        from ontarget.search.genetic import hypervolume

        for code in codes:
            if code not in self.known:
                row = self.table[code]
                self.known[code] = np.array([row[0], row[self.column]])
                share = hypervolume(np.array(list(self.known.values())), self.corner) / self.whole
                self.shares.append(share)
                count = len(self.shares)
                if count >= MOST or (count >= BUDGET_EVALUATIONS and share >= ENOUGH):
                    raise Enough
        return np.array([self.known[code] for code in codes])

    @property
    def until_enough(self) -> int:
        """Evaluations until 95% of the hypervolume; 400 where it was not reached."""
        return next((at + 1 for at, share in enumerate(self.shares) if share >= ENOUGH), MOST)


def searched(search: Callable[[Asked], Any], column: int = 1) -> Asked:
    asked = Asked(column)
    try:
        search(asked)
    except Enough:
        pass
    return asked


def concurrent(space: Any, seed: int, start: Sequence[Code] = ()) -> Callable[[Asked], Any]:
    from ontarget.search.concurrent_nas import concurrent_nas

    return lambda asked: concurrent_nas(
        space, asked, budget=MOST + 1, population=POPULATION, start=start, context=Context(seed=seed)
    )


def pymoo_search(space: Any, seed: int) -> Callable[[Asked], Any]:
    from ontarget.search.genetic import genetic_search

    # Networks that were evaluated before cost nothing, so more generations than evaluations allow are let run.
    return lambda asked: genetic_search(
        space, asked, objectives=2, population=POPULATION, evaluations=20 * MOST, seed=seed
    )


def optuna_search(space: Any, seed: int) -> Callable[[Asked], Any]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def search(asked: Asked) -> None:
        sampler = optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=seed)
        study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)

        def objective(trial: Any) -> tuple[float, float]:
            code = tuple(trial.suggest_categorical(slot.name, list(range(slot.choices))) for slot in space.slots)
            error, ms = asked([code])[0]
            return float(error), float(ms)

        study.optimize(objective, n_trials=4 * MOST)

    return search


def random_search(space: Any, seed: int) -> Callable[[Asked], Any]:
    from ontarget.search.space import draw

    def search(asked: Asked) -> None:
        generator = np.random.default_rng(seed)
        while True:
            asked([draw(space, generator)])

    return search


def evolution(space: Any, seed: int) -> Callable[[Asked], Any]:
    """Regularised evolution: the oldest leaves; a tournament of 5 by a weighted sum with weights drawn each time."""
    from ontarget.search.space import draw

    def search(asked: Asked) -> None:
        generator = np.random.default_rng(seed)
        ring = [draw(space, generator) for _ in range(POPULATION)]
        values = list(asked(ring))
        for _ in range(20 * MOST):
            scale = np.ptp(np.array(values), axis=0) + 1e-12
            weight = generator.random()
            some = generator.choice(len(ring), 5, replace=False)
            best = min(some, key=lambda at: float((values[at] / scale) @ (weight, 1 - weight)))
            child = list(ring[best])
            at = int(generator.integers(len(child)))
            child[at] = int(generator.integers(space.slots[at].choices))
            code = space.canonical(tuple(child))
            ring.append(code)
            values.append(asked([code])[0])
            ring.pop(0)
            values.pop(0)

    return search


def run(seed: int, context: Context) -> dict[str, dict[str, Any]]:
    """Share of the true front's hypervolume at 60 evaluations, and evaluations until 95%."""
    space = space_of()
    makers = {
        "concurrent": concurrent, "nsga2 pymoo": pymoo_search, "nsga2 optuna": optuna_search, "random": random_search,
        "regularised evolution": evolution,
    }  # fmt: skip
    results: dict[str, dict[str, Any]] = {}
    for arm, maker in makers.items():
        asked = searched(maker(space, seed))
        at = min(BUDGET_EVALUATIONS, len(asked.shares)) - 1
        results[arm] = {MEASURE: asked.shares[at], "until_95_percent": asked.until_enough}
        if arm == "concurrent":
            last = list(asked.known)[-POPULATION:]
            warm = searched(concurrent(space, seed + 1000, last), column=2)
            cold = searched(concurrent(space, seed + 1000), column=2)
            results[arm] |= {"warm_until_95_percent": warm.until_enough, "cold_until_95_percent": cold.until_enough}
    return results
