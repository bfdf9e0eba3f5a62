"""Rank sources for a task: features from the cache, then every score of this room, with what each cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ontarget.errors import OnTargetError, SettingError
from ontarget.values import Array, Context, Ranked, Ranking, Score, TargetData

RANKING_ROWS = 2000  # rows that scores are computed on, at most (choice)


def ranking_rows(data: TargetData, limit: int = RANKING_ROWS, seed: int = 0) -> Array:
    """Positions in ``data.train`` to rank on: all, or a seeded stratified sample of ``limit``."""
    rows = len(data.train)
    if rows <= limit:
        return np.arange(rows)
    if data.kind == "regression":
        return np.sort(np.random.default_rng(seed).permutation(rows)[:limit])
    from sklearn.model_selection import StratifiedShuffleSplit

    splitter = StratifiedShuffleSplit(n_splits=1, train_size=limit, random_state=seed)
    chosen, _ = next(splitter.split(np.zeros(rows), data.train.targets))
    return np.sort(chosen)


def rank_sources(
    locators: Sequence[str],
    data: TargetData,
    *,
    max_length: int | None = None,
    rows: int = RANKING_ROWS,
    more_scores: Sequence[str] = (),
    context: Context = Context(),
) -> tuple[Ranking, dict[str, str]]:
    """The ranking of all sources that load, and locator -> reason for those that do not.

    more_scores: of `ranking.ON_REQUEST`, beside the usual ones.

    Raises SettingError where none loads.
    """
    from ontarget.pool import load, resolve
    from ontarget.pool.features import cached_features
    from ontarget.select.ranking import SCORES, rank_features

    sample = data.train.take(ranking_rows(data, rows, context.seed))
    features: dict[str, Array] = {}
    seconds: dict[str, float] = {}
    failed: dict[str, str] = {}
    for position, locator in enumerate(locators):
        if context.progress:
            context.progress(position, len(locators), f"features of {locator}")
        try:
            source = resolve(locator)
            start = time.monotonic()
            loaded = load(source, max_length=max_length)
            features[locator], seconds[locator], _ = cached_features(source, loaded, sample.inputs, context=context)
            seconds[locator] = seconds[locator] and time.monotonic() - start
        except OnTargetError as error:
            failed[locator] = str(error)
    if not features:
        reasons = "; ".join(f"{locator}: {reason}" for locator, reason in failed.items())
        raise SettingError(f"No source of the pool can be used ({reasons}).", option="--pool")
    scores = (*SCORES, *more_scores)
    ranking = rank_features(features, sample.targets, kind=data.kind, scores=scores, context=context)
    entries = tuple(_with_seconds(entry, seconds[entry.source]) for entry in ranking.entries)
    return Ranking(ranking.decided_by, entries), failed


def _with_seconds(entry: Any, seconds: float) -> Any:
    from dataclasses import replace

    return replace(entry, features_s=seconds)


def rank(
    task: Any,
    pool: Sequence[str] | str | None = None,
    *,
    more_scores: Sequence[str] = (),
    threads: int | None = None,
    progress: Any = None,
    **fields: Any,
) -> Ranking:
    """Rank the sources of ``pool`` for a task; nothing is trained.

    task: a Task, a ``task.toml``, or data with the fields of `Task` as keywords. pool: locators; the installed zoo
    of the task's modality by default. more_scores: of `ontarget.select.ranking.ON_REQUEST`, beside the usual ones.
    ``device="cuda"`` computes features there.
    Raises DataError, SettingError, MissingExtra.
    """
    from ontarget.data import load as load_data
    from ontarget.device import check_device
    from ontarget.pool import candidates
    from ontarget.task import load_task

    request = load_task(task, {**fields, **({"pool": pool} if pool else {})})
    check_device(request.device)
    data = load_data(request.task)
    locators = candidates(request.pool or (), data.modality, columns=data.columns)
    key = _ranking_key(locators, data, request.task.max_length, more_scores)
    if key is None:
        return _rank_now(locators, data, request.task, more_scores, threads, request.device, progress)

    from dataclasses import asdict

    from ontarget.pool.cache import cached_json

    stored, _ = cached_json(
        key, lambda: asdict(_rank_now(locators, data, request.task, more_scores, threads, request.device, progress)),
        room="rankings",
    )  # fmt: skip
    return Ranking(stored["decided_by"], tuple(_as_ranked(entry) for entry in stored["entries"]))


def _rank_now(
    locators: Sequence[str],
    data: TargetData,
    task: Any,
    more_scores: Sequence[str],
    threads: int | None,
    device: str,
    progress: Any,
) -> Ranking:
    if threads:
        import torch

        torch.set_num_threads(threads)
    context = Context(seed=task.seed, device=device, progress=progress)
    return rank_sources(locators, data, max_length=task.max_length, more_scores=more_scores, context=context)[0]


def _ranking_key(
    locators: Sequence[str], data: TargetData, max_length: int | None, more_scores: Sequence[str]
) -> str | None:
    """Key of a stored ranking: the rows, the sources' files and this version; None where a source has no stamp."""
    from ontarget import __version__
    from ontarget.pool import resolve
    from ontarget.pool.cache import key_of
    from ontarget.pool.source import stamp

    stamps = [stamp(resolve(locator)) for locator in locators]
    if any(entry is None for entry in stamps):
        return None
    return key_of(
        "ranking-3", __version__, data.fingerprint, list(locators), stamps, max_length, RANKING_ROWS, list(more_scores)
    )


def _as_ranked(entry: dict[str, Any]) -> Ranked:
    scores = {name: Score(**score) for name, score in entry["scores"].items()}
    return Ranked(**{**entry, "scores": scores, "notes": tuple(entry["notes"])})
