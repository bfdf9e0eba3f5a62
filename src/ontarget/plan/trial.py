"""One trial: a recipe trained and scored on validation rows. A pure function from job to outcome.

Runs in this process or on a cluster's node alike: what it needs comes with the job, what it made goes back as
bytes, and a trained network is rebuilt from the source and the trial's small files by `assemble`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ontarget.errors import OnTargetError, RunError, out_of_memory
from ontarget.values import Array, Context, Examples, Recipe, TargetData

if TYPE_CHECKING:
    import torch

    from ontarget.runtime.preprocess import Preprocess


@dataclass(frozen=True)
class TrialJob:
    """What to train. seconds: how long it may take at most; None for no limit.

    checkpoint, stop_epoch: continue a fine-tuning from ``checkpoint`` up to ``stop_epoch`` (successive halving).
    refit: train on the validation rows too, with nothing left to choose; see plan/refit.py.
    """

    number: int
    recipe: Recipe
    seed: int
    device: str = "cpu"
    threads: int = 0
    seconds: float | None = None
    max_length: int | None = None
    checkpoint: bytes | None = None
    stop_epoch: int | None = None
    total_epochs: int = 1
    refit: bool = False


@dataclass(frozen=True)
class TrialOutcome:
    """What came of it. state: "complete" or "failed" (reason says why, in words).

    scores: (N_validation, C or 1) on the validation rows, out of fold where the data has folds.
    files: what `assemble` needs, by file name. checkpoint: to go on from.
    """

    number: int
    state: str
    reason: str = ""
    metric: float = -math.inf
    scores: Array | None = None
    curve: tuple[Mapping[str, float], ...] = ()
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    files: Mapping[str, bytes] = field(default_factory=dict)
    checkpoint: bytes | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fitted:
    """What a method's runner gives back; see TrialOutcome."""

    scores: Array
    files: Mapping[str, bytes]
    curve: tuple[Mapping[str, float], ...] = ()
    checkpoint: bytes | None = None
    peak_memory_mb: float = 0.0
    notes: Mapping[str, Any] = field(default_factory=dict)


def run_trial(job: TrialJob, data: TargetData, progress: Any = None) -> TrialOutcome:
    """Train ``job.recipe`` on ``data.train`` and score it on ``data.validation``. Never raises for a bad recipe."""
    import torch

    from ontarget.adapt.metric import metric_value
    from ontarget.runtime.preprocess import InputError

    start = time.monotonic()
    if job.threads:
        torch.set_num_threads(job.threads)
    deadline = None if job.seconds is None else start + job.seconds
    context = Context(seed=job.seed, device=job.device, progress=progress, deadline=deadline)
    try:
        fitted = _RUNNERS[job.recipe.method](job, data, context)
        if not np.isfinite(fitted.scores).all():
            raise RunError("The model gives scores that are not finite.", next_step="lower the learning rate")
    except (OnTargetError, InputError) as error:
        return TrialOutcome(job.number, "failed", str(error), seconds=time.monotonic() - start)
    except (MemoryError, RuntimeError) as error:
        return TrialOutcome(job.number, "failed", _explained(error), seconds=time.monotonic() - start)
    return TrialOutcome(
        job.number,
        "complete",
        metric=metric_value(data.metric, fitted.scores, data.validation.targets),
        scores=fitted.scores,
        curve=fitted.curve,
        seconds=time.monotonic() - start,
        peak_memory_mb=fitted.peak_memory_mb,
        files=fitted.files,
        checkpoint=fitted.checkpoint,
        notes=fitted.notes,
    )


def _explained(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}"
    if out_of_memory(error):
        return f"Out of memory ({text}). Next: lower batch_size or max_length, or leave large sources out of the pool."
    return text


# --- one runner a method -------------------------------------------------------------------------------------


def _majority(job: TrialJob, data: TargetData, context: Context) -> Fitted:
    from ontarget.adapt.tune.majority import majority

    network = majority(data.train.targets, outputs=data.outputs, kind=data.kind)
    return Fitted(_constant_scores(network, len(data.validation)), {"network.safetensors": state_bytes(network)})


def _tfidf_linear(job: TrialJob, data: TargetData, context: Context) -> Fitted:
    from ontarget.adapt.tune.tfidf_linear import tfidf_linear

    train = _training_rows(job, data)
    texts: Any = train.inputs
    held_out: Any = None if len(data.folds) else (data.validation.inputs, data.validation.targets)
    model = tfidf_linear(
        texts,
        train.targets,
        outputs=data.outputs,
        kind=data.kind,
        folds=data.folds if len(data.folds) else None,
        validation=held_out,
        metric=data.metric,
        **job.recipe.settings,
    )
    files = {"network.safetensors": state_bytes(model.network), **preprocess_bytes(model.preprocess)}
    return Fitted(model.scores, files, notes={"l2": model.l2, "terms": model.terms})


def _linear_head(job: TrialJob, data: TargetData, context: Context) -> Fitted:
    from ontarget.adapt.tune.linear_head import linear_head

    train, validation, _ = features(job, data, context)
    head = linear_head(
        train,
        _training_rows(job, data).targets,
        outputs=data.outputs,
        kind=data.kind,
        metric=data.metric,
        folds=data.folds if len(data.folds) else None,
        validation=None if len(data.folds) else (validation, data.validation.targets),
        **job.recipe.settings,
    )
    files = {"network.safetensors": tensors_bytes({"weight": head.weight, "bias": head.bias})}
    return Fitted(head.scores, files, notes={"l2": head.l2})


def _self_training(job: TrialJob, data: TargetData, context: Context) -> Fitted:
    from ontarget.adapt.shift.self_training import self_training
    from ontarget.pool import load, resolve
    from ontarget.pool.features import cached_features

    train, validation, _ = features(job, data, context)
    settings = dict(job.recipe.settings)
    source = resolve(job.recipe.source)
    order = np.random.default_rng(job.seed).permutation(len(data.unlabelled))
    guessed = data.unlabelled.take(np.sort(order[: settings.pop("rows")]))
    unlabelled, _, _ = cached_features(source, load(source, max_length=job.max_length), guessed.inputs, context=context)
    head = self_training(
        train,
        _training_rows(job, data).targets,
        unlabelled,
        outputs=data.outputs,
        metric=data.metric,
        folds=data.folds if len(data.folds) else None,
        validation=None if len(data.folds) else (validation, data.validation.targets),
        **settings,
    )
    files = {"network.safetensors": tensors_bytes({"weight": head.weight, "bias": head.bias})}
    return Fitted(head.scores, files, notes={"l2": head.l2})


def _nearest_neighbours(job: TrialJob, data: TargetData, context: Context) -> Fitted:
    from ontarget.adapt.tune.nearest_neighbours import nearest_neighbours

    train, validation, _ = features(job, data, context)
    model = nearest_neighbours(
        train,
        _training_rows(job, data).targets,
        outputs=data.outputs,
        kind=data.kind,
        metric=data.metric,
        folds=data.folds if len(data.folds) else None,
        validation=None if len(data.folds) else (validation, data.validation.targets),
        **job.recipe.settings,
    )
    return Fitted(
        model.scores,
        {"network.safetensors": state_bytes(model.network)},
        notes={"neighbours": model.neighbours},
    )


def features(job: TrialJob, data: TargetData, context: Context) -> tuple[Array, Array, float]:
    """Cached features of training and validation rows, and the seconds they took. Cross-fitted data: twice the same.

    For a refit the features of validation rows follow those of the training rows.
    """
    from ontarget.pool import load, resolve
    from ontarget.pool.features import cached_features

    source = resolve(job.recipe.source)
    loaded = load(source, max_length=job.max_length)
    train, seconds, _ = cached_features(source, loaded, data.train.inputs, context=context)
    if len(data.folds):
        return train, train, seconds
    validation, more, _ = cached_features(source, loaded, data.validation.inputs, context=context)
    return np.concatenate([train, validation]) if job.refit else train, validation, seconds + more


def _training_rows(job: TrialJob, data: TargetData) -> Examples:
    return data.train.join(data.validation) if job.refit else data.train


def _finetune(job: TrialJob, data: TargetData, context: Context) -> Fitted:
    from ontarget.adapt.predict import predict_scores
    from ontarget.adapt.tune.finetune import FEW_ROWS, finetune
    from ontarget.pool import load, resolve

    source = resolve(job.recipe.source)
    settings = {**job.recipe.settings, "total_epochs": job.total_epochs}
    shared: dict[str, Any] = {"outputs": data.outputs, "kind": data.kind, "metric": data.metric}

    def one(train: Examples, validation: Examples | None, **more: Any) -> Any:
        loaded = load(source, max_length=job.max_length)
        return finetune(loaded, train, validation, **shared, **settings, **more, context=context)

    if len(data.folds):
        scores, curves = _out_of_fold(data, lambda train, held: one(train, held, early_stopping=False))
        final = one(data.train, None, early_stopping=False)
        curve = tuple(_mean_curve(curves))
        return Fitted(scores, {"state.safetensors": final.state_bytes}, curve, peak_memory_mb=final.peak_memory_mb)
    if job.refit:
        final = one(
            _training_rows(job, data), None, early_stopping=False, stop_epoch=job.stop_epoch,
            freeze_statistics=len(data.train) <= FEW_ROWS,  # as it was, also where more rows pass the bound
        )  # fmt: skip
        scores = predict_scores(
            final.network, load(source, max_length=job.max_length).preprocess, data.validation.inputs, context=context
        )
        return Fitted(scores, {"state.safetensors": final.state_bytes}, peak_memory_mb=final.peak_memory_mb)
    # All epochs, and the last one's weights: with few validation rows the best epoch is mostly the luckiest, and the
    # first of them end in the middle of the schedule (benchmarks/few_rows_choice.py).
    result = one(
        data.train, data.validation, resume_from=job.checkpoint, stop_epoch=job.stop_epoch, early_stopping=False
    )
    return Fitted(
        result.validation_scores,
        {"state.safetensors": result.state_bytes},
        tuple(result.curve),
        checkpoint=result.checkpoint,
        peak_memory_mb=result.peak_memory_mb,
        notes={"stopped": result.stopped_reason},
    )


def _contrastive(job: TrialJob, data: TargetData, context: Context) -> Fitted:
    from ontarget.adapt.predict import predict_scores
    from ontarget.adapt.tune.contrastive import contrastive
    from ontarget.pool import load, resolve

    source = resolve(job.recipe.source)

    def one(train: Examples) -> Any:
        loaded = load(source, max_length=job.max_length)
        return contrastive(
            loaded,
            train,
            outputs=data.outputs,
            class_names=data.classes,
            context=context,
            **job.recipe.settings,
        )

    preprocess = load(source, max_length=job.max_length).preprocess

    def held_out(train: Examples, held: Examples) -> Any:
        network = one(train).network
        return _Scored(predict_scores(network, preprocess, held.inputs, context=context))

    if len(data.folds):
        scores, _ = _out_of_fold(data, held_out)
    final = one(data.train)
    if not len(data.folds):
        scores = predict_scores(final.network, preprocess, data.validation.inputs, context=context)
    return Fitted(scores, {"state.safetensors": final.state_bytes})


def _found_network(job: TrialJob, data: TargetData, context: Context) -> Fitted:
    """A network that a search trained on these rows, with its own head; a refit trains it anew."""
    from ontarget.adapt.predict import predict_scores
    from ontarget.pool.found_networks import load_network, network_bytes

    network, preprocess, info = load_network(Path(job.recipe.source.removeprefix("file:")))
    if job.refit:
        from ontarget.search.train_found import train_found

        network = train_found(info, preprocess, _training_rows(job, data), context=context)
    scores = predict_scores(network, preprocess, data.validation.inputs, context=context)
    notes = {"training_s": info.get("training", {}).get("seconds", 0.0)}
    return Fitted(scores, network_bytes(network, preprocess, info), notes=notes)


@dataclass(frozen=True)
class _Scored:
    validation_scores: Array
    curve: tuple[Mapping[str, float], ...] = ()


def _out_of_fold(data: TargetData, one: Callable[[Examples, Examples], Any]) -> tuple[Array, list[Any]]:
    """Scores of every training row by a model that has not seen it, and the learning curves."""
    scores = np.zeros((len(data.train), data.outputs), dtype=np.float32)
    curves = []
    for fold in np.unique(data.folds):
        held = np.flatnonzero(data.folds == fold)
        result = one(data.train.take(np.flatnonzero(data.folds != fold)), data.train.take(held))
        scores[held] = result.validation_scores
        curves.append(result.curve)
    return scores, curves


def _mean_curve(curves: list[Any]) -> list[dict[str, float]]:
    return [
        {name: float(np.mean([point[name] for point in points])) for name in points[0]}
        for points in zip(*curves, strict=False)
    ]


_RUNNERS: dict[str, Callable[[TrialJob, TargetData, Context], Fitted]] = {
    "majority": _majority,
    "tfidf_linear": _tfidf_linear,
    "linear_head": _linear_head,
    "self_training": _self_training,
    "nearest_neighbours": _nearest_neighbours,
    "finetune": _finetune,
    "contrastive": _contrastive,
    "found_network": _found_network,
}


# --- from a trial's files back to a network -------------------------------------------------------------------

PART_FOLDERS = ("part-0", "part-1")  # of a blend's files


def assemble(
    recipe: Recipe, folder: Path, data: TargetData, *, max_length: int | None
) -> tuple[Preprocess, torch.nn.Module]:
    """The trained network of a finished trial, in evaluation mode, and its preprocessing."""
    from safetensors.torch import load_file

    from ontarget.pool import load, resolve
    from ontarget.runtime.preprocess import Preprocess

    if recipe.method == "tfidf_linear":
        from ontarget.adapt.tune.tfidf_linear import network_from_state

        return Preprocess.load(folder), network_from_state(load_file(folder / "network.safetensors")).eval()
    if recipe.method == "tfidf_blend":
        from ontarget.adapt.tune.tfidf_blend import TfidfBlend, joined_preprocess

        parts = [
            assemble(Recipe(part["source"], part["method"], part["settings"]), folder / name, data,
                     max_length=max_length)
            for name, part in zip(PART_FOLDERS, recipe.settings["parts"], strict=True)
        ]  # fmt: skip
        (tokens, encoder), (tfidf, terms) = parts
        return joined_preprocess(tokens, tfidf), TfidfBlend(encoder, terms, recipe.settings["weights"]).eval()
    if recipe.method == "found_network":
        from ontarget.pool.found_networks import load_network

        network, preprocess, _ = load_network(folder)
        return preprocess, network
    loaded = load(resolve(recipe.source), max_length=max_length)
    if recipe.method in ("finetune", "contrastive"):
        state = load_file(folder / "state.safetensors")
        if recipe.method == "finetune":
            from ontarget.adapt.tune.finetune import network_from_state as rebuild
        else:
            from ontarget.adapt.tune.contrastive import network_from_state as rebuild
        return loaded.preprocess, rebuild(loaded, state, outputs=data.outputs, **recipe.settings).eval()
    state = load_file(folder / "network.safetensors")
    from ontarget.adapt.tune.assembled import Assembled

    if recipe.method in ("linear_head", "self_training"):
        from ontarget.adapt.tune.linear_head import head_from_state

        return loaded.preprocess, Assembled(loaded.encoder, head_from_state(state)).eval()
    from ontarget.adapt.tune import nearest_neighbours

    return loaded.preprocess, Assembled(loaded.encoder, nearest_neighbours.head_from_state(state)).eval()


def tensors_bytes(tensors: Mapping[str, Any]) -> bytes:
    """Safetensors bytes of arrays or tensors."""
    import torch
    from safetensors.torch import save

    content: bytes = save({name: torch.as_tensor(np.asarray(value)).contiguous() for name, value in tensors.items()})
    return content


def state_bytes(network: torch.nn.Module) -> bytes:
    """Safetensors bytes of a module's state."""
    return tensors_bytes({name: value.detach().cpu() for name, value in network.state_dict().items()})


def preprocess_bytes(preprocess: Preprocess) -> dict[str, bytes]:
    """The files that ``Preprocess.save`` would write, by name."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        preprocess.save(Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _constant_scores(network: torch.nn.Module, rows: int) -> Array:
    state = next(iter(network.state_dict().values())).detach().cpu().numpy()
    return np.repeat(state.reshape(1, -1), rows, axis=0).astype(np.float32)
