"""Networks for texts: slices of a pretrained transformer, which InstaTune tunes together with them.

The model is fine-tuned first; it is then where InstaTune starts and its teacher (gamma 1), and with a limit on latency
only slices within it are drawn (choices; see benchmarks/instatune_half_latency.py).

One of the kinds that `search_networks` looks for.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from ontarget.adapt.metric import metric_value
from ontarget.errors import RunError, SettingError
from ontarget.latency_table import LatencyTable
from ontarget.plan.run_folder import write_atomic
from ontarget.pool import load, resolve
from ontarget.runtime.preprocess import Preprocess
from ontarget.search.elastic_transformer import ElasticTransformer
from ontarget.search.example_rows import ExampleRows, Part, drawn
from ontarget.search.instatune import fit_head, instatune, sort_by_importance, trained_weights
from ontarget.search.network_kind import NetworkKind, store_network
from ontarget.search.rows import batches
from ontarget.search.slice_pretrained import slice_pretrained
from ontarget.search.space import Code, draw
from ontarget.search.tune_slice import tune_slice
from ontarget.values import Array, Context, TargetData

IMPORTANCE_ROWS = 512  # training rows that the importance of heads and neurons is told from, at most (choice)
LEAST_IMPORTANCE_ROWS = 96  # and at least, where a pass is slow (choice)
IMPORTANCE_SHARE = 0.25  # of the super-network's time that this may take (choice)
FINE_TUNING_SHARE = 0.35  # of the training's time: a step of InstaTune takes twice as long (choice)
MOST_EPOCHS = 5  # of fine-tuning, and then of InstaTune (choice)
MOST_DRAWS = 500  # of a slice within the limit (choice)
MOST_TUNING_EPOCHS = 15  # of a slice by itself (choice; see benchmarks/instatune_half_latency.py)
BATCH = 32  # rows of a step of InstaTune (choice)


@dataclass(frozen=True)
class _Texts:
    """The task as the functions here share it. length: tokens at which operators are timed."""

    data: TargetData
    context: Context
    preprocess: Preprocess
    space: ElasticTransformer
    length: int
    train_rows: ExampleRows
    validation: ExampleRows


def text_slices(data: TargetData, source: str | None, max_length: int | None, context: Context) -> NetworkKind:
    """Slices of ``source``, a BERT or Llama (zoo:minilm), for the task's texts. Raises SettingError for another."""
    locator = source or "zoo:minilm"
    loaded = load(resolve(locator), max_length=max_length)
    model = getattr(loaded.encoder, "model", None)
    if model is None or loaded.preprocess.kind != "tokens":
        raise SettingError(
            f"'{locator}' cannot be sliced.", allowed="BERT and Llama encoders", option="--source",
            next_step="use zoo:minilm, zoo:smollm2-135m, or hub:/file: of a BertModel or LlamaModel",
        )  # fmt: skip
    train_rows = ExampleRows(loaded.preprocess, data.train)
    lengths = train_rows.source.lengths
    assert lengths is not None  # texts have been tokenized
    # Operators are timed at the length of nine rows in ten.
    length = int(np.clip(np.percentile(lengths, 90), 8, int(loaded.preprocess.settings["max_length"])))
    space = slice_pretrained(model, outputs=data.outputs, length=length)
    validation = ExampleRows(loaded.preprocess, data.validation)
    texts = _Texts(data, context, loaded.preprocess, space, length, train_rows, validation)
    return NetworkKind(
        space.full["network"], data, loaded.preprocess, space, validation, train=partial(_train, texts),
        epochs=partial(_epochs, texts), quality=partial(_quality, texts),
        seconds_of_one=partial(_seconds_of_one, texts), finish=partial(_finish, texts),
        seconds_to_finish=lambda _: 0.0, source=locator,
    )  # fmt: skip


def _train(
    texts: _Texts, table: LatencyTable, latency_ms: float | None, epochs: int, checkpoint: Path, context: Context
) -> dict[str, Any]:
    """Fine-tuning, then InstaTune for as many epochs."""
    space, few = texts.space, drawn(texts.train_rows, _importance_rows(texts, context), 0)
    fit_head(space, few, device=context.device)
    fine_tuned = checkpoint.with_name("fine-tuned.safetensors")
    _fine_tuned(texts, epochs, fine_tuned, context)
    teacher = space.slice(space.largest).to(context.device).eval()
    sort_by_importance(space, few, device=context.device)
    result = instatune(
        space, texts.train_rows, teacher=teacher, gamma=1.0, epochs=epochs, batch_size=BATCH,
        drawn=None if latency_ms is None else partial(_within, space, table, latency_ms), checkpoint=checkpoint,
        context=context,
    )  # fmt: skip
    space.cpu()
    fine_tuned.unlink(missing_ok=True)
    return {"codes": [space.largest], "history": result.history, "steps": result.steps}


def _fine_tuned(texts: _Texts, epochs: int, path: Path, context: Context) -> None:
    """Fine-tune the whole network, or take the weights that a killed training has kept in ``path``."""
    network, deadline = texts.space.network, context.deadline
    if path.exists():
        try:
            network.load_state_dict(load_file(path))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise RunError(f"{path} is damaged.", next_step="delete it: the training starts again") from error
        network.to(context.device)
        return
    if deadline is not None:
        now = time.monotonic()
        deadline = now + FINE_TUNING_SHARE * max(0.0, deadline - now)
    tune_slice(
        network, texts.train_rows, teacher=None, epochs=epochs, batch_size=BATCH, what="fine-tuning",
        context=replace(context, deadline=deadline),
    )  # fmt: skip
    write_atomic(path, save({name: value.cpu().contiguous() for name, value in network.state_dict().items()}))


def _within(space: ElasticTransformer, table: LatencyTable, latency_ms: float, generator: np.random.Generator) -> Code:
    """A code drawn from those within the limit; where none of `MOST_DRAWS` is, the fastest of them."""
    fastest, least = space.largest, np.inf
    for _ in range(MOST_DRAWS):
        code = draw(space, generator)
        predicted = table.predict(space.operators(code))
        if predicted <= latency_ms:
            return code
        if predicted < least:
            fastest, least = code, predicted
    return fastest


def _importance_rows(texts: _Texts, context: Context) -> int:
    """Rows that importance is told from: as many as `IMPORTANCE_SHARE` of the time allows, by one forward pass."""
    if context.deadline is None:
        return IMPORTANCE_ROWS
    rows, device = texts.train_rows, context.device
    ids, mask, _ = drawn(rows, BATCH, 0)[torch.arange(min(BATCH, len(rows)))]
    texts.space.to(device)
    begun = time.monotonic()
    with torch.inference_mode():
        texts.space(ids.to(device), mask.to(device), texts.space.largest).sum().item()
    # A row is passed forward for the head, and forward and backward for the importance.
    row_s = 4 * (time.monotonic() - begun) / len(ids)
    left = IMPORTANCE_SHARE * max(0.0, context.deadline - time.monotonic())
    return int(np.clip(left / max(row_s, 1e-6), LEAST_IMPORTANCE_ROWS, IMPORTANCE_ROWS))


def _epochs(texts: _Texts, seconds: float) -> int:
    """Epochs of fine-tuning and then of InstaTune that the seconds allow, from the time of a few steps."""
    space, generator, device = texts.space, np.random.default_rng(0), texts.context.device
    space.to(device)
    steps, weights = max(1, len(texts.train_rows) // BATCH), list(trained_weights(space.network).values())
    begun, done = time.monotonic(), 0
    for *inputs, labels in batches(texts.train_rows, BATCH, seed=0, epoch=0):
        ids, mask, labels = (value.to(device) for value in (*inputs, labels))
        for code in (space.largest, draw(space, generator)):
            loss = torch.nn.functional.cross_entropy(space(ids, mask, code), labels)
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            gradients[-1].sum().item()  # an accelerator has done its work when the clock is read
        done += 1
        if done >= 3:
            break
    step_s = (time.monotonic() - begun) / done
    space.cpu()
    return int(np.clip((1 - FINE_TUNING_SHARE) * seconds / (1.3 * step_s * steps), 1, MOST_EPOCHS))


def _quality(texts: _Texts, code: Code, sample: Part) -> float:
    targets = texts.data.validation.targets[sample.positions.numpy()]
    network, device = texts.space.slice(code), texts.context.device
    return metric_value(texts.data.metric, token_scores(network.to(device), sample, device=device), targets)


def _seconds_of_one(texts: _Texts, sample: Part) -> float:
    begun = time.monotonic()
    _quality(texts, texts.space.largest, sample)
    return 0.7 * (time.monotonic() - begun)


def _finish(texts: _Texts, code: Code, folder: Path, context: Context, seconds: float) -> None:
    """Slice, tune the slice by itself where there is time, keep what validation rows like better, and store it."""
    space = texts.space
    network = space.slice(code).eval()
    quality, tuning = _whole_quality(texts, network), {}
    if code != space.canonical(space.largest):
        tuned, epochs = _tuned(texts, code, context, seconds)
        after = _whole_quality(texts, tuned) if epochs else quality
        tuning = {"tuning": {"epochs": epochs, "before": quality, "after": after}}
        if after > quality:
            network, quality = tuned, after
    store_network(
        folder, network.cpu(), space.config(code), data=texts.data, preprocess=texts.preprocess, code=code,
        quality=quality, length=texts.length, **tuning,
    )  # fmt: skip


def _whole_quality(texts: _Texts, network: Any) -> float:
    """On all validation rows."""
    device = texts.context.device
    found = token_scores(network.to(device), texts.validation, device=device)
    return metric_value(texts.data.metric, found, texts.data.validation.targets)


def _tuned(texts: _Texts, code: Code, context: Context, seconds: float) -> tuple[Any, int]:
    """The slice tuned by itself, and the epochs that the seconds allowed, from the time of a few steps."""
    space, rows = texts.space, texts.train_rows
    if seconds <= 0:
        return space.slice(code), 0
    teacher = space.slice(space.largest).to(context.device).eval()
    few, plain = drawn(rows, 4 * BATCH, 0), replace(context, progress=None, deadline=None)
    for _ in range(2):  # the first is warm-up
        begun = time.monotonic()
        trial = space.slice(code)
        tune_slice(trial, few, teacher=teacher, epochs=1, batch_size=BATCH, context=plain)
    epoch_s = (time.monotonic() - begun) * len(rows) / len(few)
    left = seconds - 2 * (time.monotonic() - begun)
    epochs = max(0, int(min(0.85 * left / epoch_s, MOST_TUNING_EPOCHS)))
    network = space.slice(code)
    if epochs:
        limited = replace(context, deadline=time.monotonic() + left)
        tune_slice(network, rows, teacher=teacher, epochs=epochs, batch_size=BATCH, context=limited)
    return network, epochs


def token_scores(network: Any, rows: Any, batch_size: int = 64, *, device: str = "cpu") -> Array:
    """Scores (N, C) of token rows in their order; batches go by length, so that little is padding."""
    network.eval()
    positions = getattr(rows, "positions", torch.arange(len(rows)))
    whole = getattr(rows, "rows", rows)
    order = np.argsort(whole.source.lengths[positions.numpy()], kind="stable")
    parts = []
    with torch.inference_mode():
        for at in range(0, len(order), batch_size):
            ids, mask, _ = rows[torch.from_numpy(order[at : at + batch_size])]
            parts.append(network(ids.to(device), mask.to(device)).float().cpu())
    found: Array = torch.cat(parts).numpy()[np.argsort(order, kind="stable")]
    return found
