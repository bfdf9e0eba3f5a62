"""Choose an ensemble of sources by OSBORN and evaluate it for real: linear heads on each, probabilities averaged.

Brings `osborn` to a pool of frozen encoders. Such sources come without their own data and often without classes of
their own: then W_D is 0, and a source's predictions for the target rows are those of its linear head, out of fold
(choice; notes say so). Checked in tests/select/test_choose_ensemble.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ontarget.errors import DataError, SettingError
from ontarget.select._contract import RowScores
from ontarget.select.intervals import bootstrap_counts, difference_interval, interval
from ontarget.select.osborn import osborn, terms
from ontarget.values import Array, Context, Score

SIZE = 3


@dataclass(frozen=True)
class EvaluatedEnsemble:
    """chosen: sources in the order in which OSBORN added them. osborn: its score of the set, lower is better.

    value: metric of the averaged probabilities, out of fold. best_single: the best source by its own head, with
    best_value. gain: value - best_value with its interval, paired by rows. single: metric of every source's head.
    """

    chosen: tuple[str, ...]
    osborn: float
    metric: str
    value: Score
    best_single: str
    best_value: float
    gain: Score
    single: Mapping[str, float]
    notes: tuple[str, ...]


def choose_ensemble(
    features: Mapping[str, Array],
    targets: Array,
    *,
    outputs: int,
    size: int = SIZE,
    metric: str = "accuracy",
    predictions: Mapping[str, Array] | None = None,
    folds: Array | None = None,
    context: Context = Context(),
) -> EvaluatedEnsemble:
    """The ensemble of ``size`` sources that OSBORN chooses, and what it is worth on the same rows, out of fold.

    features: source -> (N, D) float of the same rows. targets: (N,) int. predictions: source -> (N,) int, classes that
    the sources themselves give; those of their heads where left out. folds: (N,); five stratified ones by default.
    Raises DataError: fewer sources than ``size``, row counts that differ; SettingError: a size below 2.
    """
    from ontarget.adapt.metric import metric_value, row_scores
    from ontarget.adapt.tune.held_out import make_folds
    from ontarget.adapt.tune.linear_head import linear_head

    if size < 2:
        raise SettingError(f"size is {size}.", allowed="2 or more", option="--ensemble")
    if len(features) < size:
        raise DataError(f"The pool has {len(features)} sources that can be used.", allowed=f"{size} or more")
    if folds is None or not len(folds):
        folds = make_folds(targets, kind="classification", seed=context.seed)
    probabilities, single = {}, {}
    for done, (name, rows) in enumerate(features.items()):
        if context.progress:
            context.progress(done, len(features), f"fitting a head on {name}")
        head = linear_head(
            np.asarray(rows), targets, outputs=outputs, kind="classification", metric=metric, folds=folds
        )
        logits = head.scores.astype(np.float64)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities[name] = shares / shares.sum(axis=1, keepdims=True)
        single[name] = metric_value(metric, head.scores, targets)
    own = predictions or {name: part.argmax(axis=1) for name, part in probabilities.items()}
    sources = [terms(name, np.asarray(features[name]), targets, own[name]) for name in features]
    found = osborn(sources, size=size)
    together = np.mean([probabilities[name] for name in found.chosen], axis=0)
    best = max(single, key=lambda name: single[name])
    rows_of = {}
    for name, part in (("ensemble", together), ("best", probabilities[best])):
        shares = row_scores(metric, part, targets)
        rows_of[name] = RowScores(float(shares.mean()), shares)
    counts = bootstrap_counts(len(targets), seed=context.seed)
    value, gain = metric_value(metric, together, targets), rows_of["ensemble"].value - rows_of["best"].value
    notes = ["no source rows, so W_D is 0"]
    if predictions is None:
        notes.append("sources without classes of their own: their heads' predictions, out of fold")
    return EvaluatedEnsemble(
        found.chosen, found.score, metric, Score(value, *interval(rows_of["ensemble"], counts)), best, single[best],
        Score(gain, *difference_interval(rows_of["ensemble"], rows_of["best"], counts)), single, tuple(notes),
    )  # fmt: skip


def ensemble(
    task: Any, pool: Sequence[str] | str | None = None, *, size: int = SIZE, progress: Any = None, **fields: Any
) -> EvaluatedEnsemble:
    """`choose_ensemble` for a task and a pool, as `ontarget.rank` takes them; random controls take no part.

    Raises DataError: a regression, too few sources; SettingError, MissingExtra as `ontarget.rank`.
    """
    from ontarget.data import load as load_data
    from ontarget.device import check_device
    from ontarget.pool import candidates, load, resolve
    from ontarget.pool.features import cached_features
    from ontarget.select.rank_sources import ranking_rows
    from ontarget.task import load_task

    request = load_task(task, {**fields, **({"pool": pool} if pool else {})})
    data = load_data(request.task)
    if data.kind != "classification":
        raise DataError("Ensembles are chosen for classifications.", option="--ensemble")
    check_device(request.device)
    context = Context(request.task.seed, request.device, progress)
    chosen = ranking_rows(data, seed=context.seed)
    rows = data.train.take(chosen)
    features = {}
    for locator in candidates(request.pool or (), data.modality, columns=data.columns):
        if locator.startswith("control:random"):
            continue
        source = resolve(locator)
        loaded = load(source, max_length=request.task.max_length)
        features[locator], _, _ = cached_features(source, loaded, rows.inputs, context=context)
    folds = data.folds[chosen] if len(data.folds) else None
    return choose_ensemble(
        features, rows.targets, outputs=data.outputs, size=size, metric=data.metric, folds=folds, context=context
    )
