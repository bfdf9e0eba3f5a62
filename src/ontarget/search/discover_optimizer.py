"""An optimizer discovery on a user's data: proxies from the rows, the search, and its files in a folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ontarget.errors import DataError
from ontarget.search.proxy_tasks import ProxyTask, mlp_tasks
from ontarget.search.symbolic_optimizer import FORMAT, Discovery, symbolic_optimizer
from ontarget.values import Array, Context


def discover_on_task(
    data: Any,
    folder: Path,
    *,
    source: str | None = None,
    programs: int = 300,
    context: Context = Context(),
    **fields: Any,
) -> Discovery:
    """`discover_optimizer` on a task. data, fields: as for `fit`.

    source: whose features stand for texts or images: WordLlama for texts and 16 x 16 pixels for images by default.
    Training rows train, validation rows judge; the test rows are not touched. Raises DataError for few labels.
    """
    from ontarget.data import load
    from ontarget.pool import load as load_source
    from ontarget.pool import resolve
    from ontarget.pool.features import cached_features
    from ontarget.task import load_task

    task = load(load_task(data, fields).task)
    if len(task.folds):
        raise DataError(
            f"{len(task.train)} labelled rows are too few: no validation rows are held out.",
            next_step="give more labelled rows, or use Lion or AdamW as they are",
        )
    if task.modality == "features":
        arrays = [np.asarray(part.inputs, dtype=np.float32) for part in (task.train, task.validation)]
    else:
        of = resolve(source or {"text": "zoo:wordllama", "image": "control:pixels"}[task.modality])
        loaded = load_source(of)
        arrays = [cached_features(of, loaded, part.inputs, context=context)[0]
                  for part in (task.train, task.validation)]  # fmt: skip
    mean, spread = arrays[0].mean(axis=0), np.maximum(arrays[0].std(axis=0), 1e-6)
    train, validation = (((part - mean) / spread).astype(np.float32) for part in arrays)
    return discover_optimizer(
        train, task.train.targets, folder, validation=(validation, task.validation.targets), programs=programs,
        context=context,
    )  # fmt: skip


def discover_optimizer(
    inputs: Array,
    targets: Array,
    folder: Path,
    *,
    validation: tuple[Array, Array] | None = None,
    sizes: Sequence[float] = (1, 10, 100),
    repeats: int = 4,
    programs: int = 300,
    context: Context = Context(),
    **settings: Any,
) -> Discovery:
    """`symbolic_optimizer` on the user's arrays, with everything written into ``folder``.

    inputs, targets, sizes, repeats: as `mlp_tasks` takes them. validation: (inputs, targets) that judge; a fifth of
    the rows, drawn by the seed, where left out. settings: further ones of `symbolic_optimizer`. Writes
    ``optimizer.py``, ``program.json``, ``report.html``, and ``journal.jsonl``, which the same call goes on from.
    Errors as of both.
    """
    from ontarget.plan.run_folder import to_json, write_atomic
    from ontarget.report.optimizer_page import optimizer_page

    inputs, targets = np.asarray(inputs), np.asarray(targets)
    if len(inputs) != len(targets) or len(inputs) < 10:
        raise DataError(f"{len(inputs)} rows with {len(targets)} targets.", allowed="as many of each, 10 or more")
    if validation is None:
        order = np.random.default_rng(context.seed).permutation(len(inputs))
        held, rest = order[: len(order) // 5], order[len(order) // 5 :]
        validation, inputs, targets = (inputs[held], targets[held]), inputs[rest], targets[rest]
    tasks = mlp_tasks(inputs, targets, *validation, sizes=sizes, repeats=repeats, seed=context.seed)
    found = symbolic_optimizer(
        tasks, programs=programs, journal=folder / "journal.jsonl", context=context, **settings
    )  # fmt: skip
    write_atomic(folder / "optimizer.py", found.source.encode())
    write_atomic(folder / "program.json", to_json(summary(found, tasks)))
    write_atomic(folder / "report.html", optimizer_page(found, tasks).encode("utf-8", "replace"))
    return found


def summary(found: Discovery, tasks: Iterable[ProxyTask]) -> dict[str, Any]:
    """A discovery as JSON-able data; ``from_json(summary["program"])`` gives the rule back."""
    rows = [
        {"name": row.name, "fitness": row.fitness, "rates": row.rates, "program": row.program and row.program.to_json()}
        for row in found.funnel
    ]
    return {
        "format": FORMAT, "program": found.program.to_json(), "lr": found.rate, "text": found.program.text(),
        "improved": found.improved, "finished": found.finished, "states": found.program.states, "funnel": rows,
        "found": found.found.to_json(), "adamw_rate": found.tuned_rate, "restarts": found.restarts,
        "history": found.history, "tasks": [task.name for task in tasks], "settings": found.settings,
    }  # fmt: skip
