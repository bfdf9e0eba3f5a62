"""Which label next? The worth of more labels, and the labels at hand that a person should look at again.

Brings `label_worth` and `inffeed` to a task: features of the best source of the pool, its training rows, its validation
rows as what labels should help with. Checked in tests/select/test_next_labels.py.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ontarget.errors import SettingError
from ontarget.plan.run_folder import write_atomic
from ontarget.select.inffeed import LARGEST, harm
from ontarget.select.label_worth import LabelWorth, label_worth
from ontarget.values import Array, Context, TargetData

COUNT = 100


@dataclass(frozen=True)
class NextLabels:
    """source: whose features were used. worth: of more labels, None where there are too few for a curve.

    recheck: rows to look at again, the most harmful first: row, input, label, suggested, probability, harm (how much
    the summed loss of the validation rows would fall without the row, nats). Empty for regression.
    """

    source: str
    worth: LabelWorth | None
    recheck: tuple[Mapping[str, Any], ...]
    metric: str


def next_labels(
    task: Any,
    pool: Sequence[str] | str | None = None,
    *,
    count: int = COUNT,
    output: str | Path | None = None,
    context: Context = Context(),
    **fields: Any,
) -> NextLabels:
    """The worth of more labels for a task, and its ``count`` training rows whose labels should be checked first.

    task, pool, fields: as for `ontarget.rank`; the best-ranked source's features are used. output: a CSV to write the
    list to, with an empty column "corrected"; `fit` takes it back by ``corrections``.
    Raises DataError, SettingError as `ontarget.rank`.
    """
    from ontarget.data import load
    from ontarget.device import check_device
    from ontarget.pool import candidates, resolve
    from ontarget.pool import load as load_source
    from ontarget.pool.features import cached_features
    from ontarget.select.rank_sources import rank_sources
    from ontarget.task import load_task

    if count < 1:
        raise SettingError(f"count is {count}.", allowed="1 or more", option="--count")
    request = load_task(task, {**fields, **({"pool": pool} if pool else {})})
    check_device(request.device)
    data = load(request.task)
    context = Context(request.task.seed, request.device, context.progress, context.deadline)
    locators = candidates(request.pool or (), data.modality, columns=data.columns)
    named = [locator for locator in locators if not locator.startswith("control:random")]
    ranking, _ = rank_sources(named or locators, data, max_length=request.task.max_length, context=context)
    best = ranking.entries[0].source
    source = resolve(best)
    loaded = load_source(source, max_length=request.task.max_length)
    train, _, _ = cached_features(source, loaded, data.train.inputs, context=context)
    held = train
    if not len(data.folds):
        held, _, _ = cached_features(source, loaded, data.validation.inputs, context=context)
    worth = worth_of_labels(data, np.asarray(train), seed=context.seed)
    listed: list[dict[str, Any]] = []
    if data.kind == "classification":
        listed = rows_to_recheck(np.asarray(train), np.asarray(held), data, count=count)
    if output is not None:
        write_list(listed, Path(output))
    return NextLabels(best, worth, tuple(listed), data.metric)


def worth_of_labels(data: TargetData, train: Array, *, seed: int = 0) -> LabelWorth | None:
    """`label_worth` of a task's training rows with these features (N, D); None where no curve can be drawn."""
    if len(train) < 16 or data.metric in ("neg_mae", "neg_rmse"):
        return None
    return label_worth(train, data.train.targets, outputs=data.outputs, kind=data.kind, metric=data.metric, seed=seed)


def worth_in_a_run(data: TargetData, source: str | None, *, max_length: int | None, context: Context) -> dict[str, Any]:
    """What a run keeps of `worth_of_labels` with the features of ``source``; empty where there is nothing to say.

    source, metric, rows; now and after[number of further labels]: value, low, high.
    """
    from dataclasses import asdict

    from ontarget.pool import load, resolve
    from ontarget.pool.features import cached_features

    if source is None:
        return {}
    found = resolve(source)
    train, _, _ = cached_features(found, load(found, max_length=max_length), data.train.inputs, context=context)
    worth = worth_of_labels(data, np.asarray(train), seed=context.seed)
    if worth is None:
        return {}
    return {
        "source": source,
        "metric": worth.metric,
        "rows": len(train),
        "now": asdict(worth.now),
        "after": {str(more): asdict(score) for more, score in worth.after.items()},
    }


def rows_to_recheck(train: Array, held: Array, data: TargetData, *, count: int = COUNT) -> list[dict[str, Any]]:
    """The rows of ``data.train`` whose labels harm the most, most harmful first; rows that help are not listed.

    train: (N, D), held: (V, D) features of the training and validation rows. Cross-fitted data has no validation rows:
    each fold's rows are judged by the others, with a head trained on all.
    """
    from ontarget.adapt.tune.linear_head import linear_head

    labels = data.train.targets
    folds = data.folds if len(data.folds) else None
    head = linear_head(train, labels, outputs=data.outputs, kind="classification", folds=folds, class_weight=None)
    reduced, reduced_held = _reduced(train, held, data.outputs)
    if folds is None:
        harms = harm(reduced, labels, reduced_held, data.validation.targets, l2=head.l2)
    else:
        harms = np.zeros(len(labels))
        for fold in np.unique(folds):
            inside, others = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
            harms[inside] = harm(reduced, labels, reduced[others], labels[others], l2=head.l2)[inside]
    scores = _out_of_sample(train, labels, head.l2, data)
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    chosen = [int(row) for row in np.argsort(-harms, kind="stable")[:count] if harms[row] > 0]
    return [
        {
            "row": int(data.train.rows[row]),
            "input": _shown(data.train.inputs[row]),
            "label": data.classes[int(labels[row])],
            "suggested": data.classes[int(shares[row].argmax())],
            "probability": float(shares[row].max()),
            "harm": float(harms[row]),
        }
        for row in chosen
    ]


def write_list(listed: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The list as CSV with an empty column "corrected", for a person to fill."""
    stream = io.StringIO(newline="")
    names = ["row", "input", "label", "suggested", "probability", "harm", "corrected"]
    writer = csv.DictWriter(stream, names, restval="")
    writer.writeheader()
    for row in listed:
        writer.writerow({**row, "probability": f"{row['probability']:.3f}", "harm": f"{row['harm']:.5f}"})
    write_atomic(path, stream.getvalue().encode("utf-8", "replace"))


def _out_of_sample(features: Array, labels: Array, l2: float, data: TargetData) -> Array:
    """(N, C) scores of each row by a head that was not fitted on it."""
    from ontarget.adapt.tune.held_out import make_folds
    from ontarget.adapt.tune.linear_head import linear_head

    folds = data.folds if len(data.folds) else make_folds(labels, kind="classification")
    return linear_head(
        features, labels, outputs=data.outputs, kind="classification", l2_grid=(l2,), folds=folds, class_weight=None
    ).scores


def _reduced(train: Array, held: Array, classes: int) -> tuple[Array, Array]:
    """Principal components where the head would have more parameters than its Hessian can be held for."""
    most = LARGEST // max(2, classes) - 1
    if train.shape[1] <= most:
        return train, held
    from sklearn.decomposition import PCA

    model = PCA(max(1, min(most, len(train) - 1)), svd_solver="randomized", random_state=0).fit(train)
    return model.transform(train), model.transform(held)


def _shown(value: Any) -> str:
    """An input as a person can find it: a text, a path, or nothing for what has no name."""
    if isinstance(value, tuple):
        return " | ".join(map(str, value))
    return str(value) if isinstance(value, (str, Path)) else ""
