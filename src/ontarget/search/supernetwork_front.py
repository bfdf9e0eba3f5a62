"""The super-network's training and the front of quality against latency of its networks, each in its share of time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ontarget.errors import RunError
from ontarget.latency_table import LatencyTable
from ontarget.plan.run_folder import Clock, write_atomic
from ontarget.search.example_rows import Part, drawn
from ontarget.search.network_kind import NetworkKind
from ontarget.search.population_store import StoreWriter
from ontarget.search.shrink_space import codes_inside, whole_code
from ontarget.search.space import Code, ElasticNetwork
from ontarget.values import Array, Context

WEIGHTS = "supernetwork.safetensors"
TRAINING_SHARE = 0.45  # of the budget, for the super-network (choice)
EVALUATION_SHARE = 0.2  # for the front (choice)
EVALUATION_ROWS = 1000  # validation rows that a network of the front is scored on, at most (choice)
LEAST_EVALUATION_ROWS = 100  # and at least, where evaluations are slow (choice)
LEAST_EVALUATIONS, MOST_EVALUATIONS = 60, 400  # of the search of the front (choice)


def planned(kind: NetworkKind, clock: Clock, slowest: Code, seed: int) -> dict[str, Any]:
    """Seconds for the super-network and for the front, and its epochs, such that one network can be finished after."""
    free = max(0.3 * clock.budget_s, clock.remaining_s() - kind.seconds_to_finish(slowest))
    shares = TRAINING_SHARE + EVALUATION_SHARE
    training_s, front_s = (min(share * clock.budget_s, free * share / shares)
                           for share in (TRAINING_SHARE, EVALUATION_SHARE))  # fmt: skip
    one_s = max(kind.seconds_of_one(drawn(kind.validation, EVALUATION_ROWS, seed)), 1e-3)
    affordable = EVALUATION_ROWS * front_s / (LEAST_EVALUATIONS * one_s)
    rows = int(np.clip(affordable, LEAST_EVALUATION_ROWS, EVALUATION_ROWS))
    return {"training_s": training_s, "front_s": front_s, "epochs": kind.epochs(training_s), "rows": rows}


def train_supernetwork(
    kind: NetworkKind,
    table: LatencyTable,
    latency_ms: float | None,
    plan: Mapping[str, Any],
    folder: Path,
    clock: Clock,
    context: Context,
) -> dict[str, Any]:
    """Train as planned, from the checkpoint in ``folder`` on; what the kind's training gave. The weights are kept."""
    from safetensors.torch import save

    if context.progress is not None:
        context.progress(0, 1, "training the super-network")
    checkpoint = folder / "training.state"
    limited = replace(context, deadline=clock.deadline(plan["training_s"]))
    result = kind.train(table, latency_ms, plan["epochs"], checkpoint, limited)
    weights = {name: value.contiguous() for name, value in kind.space.state_dict().items()}
    write_atomic(folder / WEIGHTS, save(weights))
    checkpoint.unlink(missing_ok=True)
    return result


def restore_weights(kind: NetworkKind, folder: Path) -> None:
    """The super-network as it was trained, in evaluation mode. Raises RunError where its weights cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    try:
        kind.space.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise RunError(f"{path} is missing or damaged.", next_step="delete stages/training.json beside it") from error
    kind.space.eval()


def evaluations(kind: NetworkKind, rows: Part, seconds: float) -> int:
    """Networks that can be evaluated in so many seconds."""
    return int(np.clip(seconds / max(kind.seconds_of_one(rows), 1e-3), LEAST_EVALUATIONS, MOST_EVALUATIONS))


def find_front(
    kind: NetworkKind,
    space: ElasticNetwork,
    table: LatencyTable,
    *,
    rows: Part,
    budget: int,
    start: Sequence[Code],
    journal: Path,
    writer: StoreWriter | None,
    clock: Clock,
    seconds: float,
    context: Context,
) -> dict[str, Any]:
    """Codes evaluated, their values (1 - quality, predicted milliseconds) and the history, by ConcurrentNAS.

    space: the one searched, ``kind.space`` or a part of it; all codes here are of the whole space. rows: of validation.
    budget: evaluations at most. start: codes of the first population.
    """
    from ontarget.search.concurrent_nas import concurrent_nas

    def evaluate(codes: Sequence[Code]) -> Array:
        values = []
        for code in (whole_code(space, code) for code in codes):
            values.append([1 - kind.quality(code, rows), table.predict(kind.space.operators(code))])
            if writer is not None:
                writer.add(code, values[-1])
        return np.array(values)

    if writer is not None:
        writer.begin()
    found = concurrent_nas(
        space, evaluate, budget=budget, population=min(50, budget // 3), start=codes_inside(space, start),
        journal=journal, context=replace(context, deadline=clock.deadline(seconds)),
    )  # fmt: skip
    return {"codes": [whole_code(space, code) for code in found.codes], "values": found.values,
            "history": found.history}  # fmt: skip
