"""Merging of whole checkpoints, tensor by tensor and part by part, into a folder that appears when it is whole.

Memory holds a part of each model at a time (`PART` numbers), whatever their size. Results are computed in float32 and
rounded once. Which magnitudes are the largest is told from task vectors in the checkpoints' own type, as they lie.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ontarget.errors import DataError, SettingError
from ontarget.merge._contract import Range, Rule, alone_at_one, mask_of
from ontarget.merge.checkpoint import INDEX, Weights
from ontarget.merge.number_types import (
    FLOATING,
    NAMES,
    STORED,
    from_float32,
    is_finite,
    magnitude_bits,
    size_of,
    to_float32,
)
from ontarget.merge.streamed_safetensors import Entry, SafetensorsWriter
from ontarget.plan.run_folder import new_folder
from ontarget.values import Array, Context

PART = 1 << 18  # numbers of a tensor that are merged at a time (choice)
SHARD_BYTES = 5_000_000_000
COPIED = ("config.json", "generation_config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json",
          "added_tokens.json", "chat_template*", "preprocessor_config.json")  # fmt: skip


@dataclass(frozen=True)
class Ingredient:
    """A model of a merge. weight, settings: functions of a tensor's name, so that layers may have their own."""

    weights: Weights
    weight: Any
    settings: Mapping[str, Any] = field(default_factory=dict)


def merge_checkpoints(
    rule: Rule,
    base: Weights | None,
    models: Sequence[Ingredient],
    output: Path,
    *,
    settings: Mapping[str, float | bool] | None = None,
    dtype: str | None = None,
    copy_from: Path | None = None,
    card: Mapping[str, str] | None = None,
    shard_bytes: int = SHARD_BYTES,
    seed: int = 0,
    context: Context = Context(),
) -> Path:
    """Merge into the new folder ``output``.

    dtype: of the merged tensors, "float32", "bfloat16" or "float16"; by default each tensor's own in the
    base, or the first model. copy_from: a folder whose config and tokenizer come along. card: further files, name ->
    text. shard_bytes: the most a file may have.
    Raises DataError naming tensor and model: shapes or names that differ, values that are not finite; SettingError;
    RunError where ``output`` exists.
    """
    if rule.needs_base and base is None:
        raise SettingError("This method needs the base of the models.", option="--base", next_step="give it")
    _check_names(base, models)
    given = {name: limits.default for name, limits in rule.of_all.items()} | dict(settings or {})
    _check_settings(rule.of_all, given)
    first = base or models[0].weights
    kept = {
        name: (NAMES[dtype] if dtype is not None and entry.kind in FLOATING else entry.kind, entry.shape)
        for name, entry in first.entries.items()
    }
    shards = _shards(kept, shard_bytes)
    with new_folder(output) as partial:
        for at, shard in enumerate(shards):
            name = "model.safetensors" if len(shards) == 1 else f"model-{at + 1:05}-of-{len(shards):05}.safetensors"
            with SafetensorsWriter(partial / name, {key: kept[key] for key in shard}, {"format": "pt"}) as writer:
                for done, key in enumerate(shard):
                    if context.progress is not None:
                        context.progress(done, len(shard), f"merging {key}")
                    kind = kept[key][0]
                    for start, values, stored in _merged(rule, base, models, key, given, seed):
                        writer.write(key, start, _as_stored(values, stored, kind))
        if len(shards) > 1:
            _write_index(partial, shards, kept)
        copy_files(copy_from, partial, dtype)
        for name, text in (card or {}).items():
            (partial / name).write_text(text, encoding="utf-8")
    return output


def _as_stored(values: Array, stored: str, kind: str) -> Array:
    """Values in the type of a file. stored: the type that they have, bit for bit; "" for float32 that was computed."""
    if stored == kind:
        return values
    if stored and stored not in FLOATING:
        converted: Array = values.astype(STORED[kind])
        return converted
    return from_float32(to_float32(values, stored) if stored else values, kind)


def _merged(
    rule: Rule, base: Weights | None, models: Sequence[Ingredient], name: str, given: Mapping[str, Any], seed: int
) -> Iterator[tuple[int, Array, str]]:
    """(start, values, type they are stored in or "") of the parts of a merged tensor."""
    first = base or models[0].weights
    entry = first.entries[name]
    weights = [float(model.weight(name)) for model in models]
    alone = alone_at_one(weights)
    counted = [at for at, weight in enumerate(weights) if weight != 0]
    if alone is not None or entry.kind not in FLOATING or not counted:
        # Nothing to merge: the bits as they are. Counters and the like are the base's.
        if not counted and base is None and entry.kind in FLOATING:
            raise SettingError(f"All weights of '{name}' are 0.", option="weight")
        source = models[alone].weights if alone is not None else first
        for start, stop in parts_of(entry):
            yield start, _read(source, name, start, stop), source.entries[name].kind
        return
    each = []
    for model in models:
        own = {key: limits.default for key, limits in rule.of_model.items()}
        own |= {key: value(name) for key, value in model.settings.items() if value(name) is not None}
        _check_settings(rule.of_model, own)
        each.append(own)
    vectors = [_TaskVector(base, models[at].weights, name) for at in counted] if rule.needs_base else []
    masks = []
    for at, vector in zip(counted, vectors, strict=False):
        digest = hashlib.sha256(f"{seed} {at} {name}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        masks.append(mask_of(rule, each[at], entry.numel, vector.bits, generator))
    factors = [weights[at] for at in counted]
    for start, stop in parts_of(entry):
        if not vectors:
            values = [
                to_float32(_read(models[at].weights, name, start, stop), models[at].weights.entries[name].kind)
                for at in counted
            ]
            yield start, rule.combine(None, [_own(value) for value in values], factors, given), ""
            continue
        assert base is not None
        origin = to_float32(_read(base, name, start, stop), entry.kind)
        values = [
            mask(vector.part(start, stop, origin), entry.kind) for vector, mask in zip(vectors, masks, strict=True)
        ]
        yield start, rule.combine(origin, values, factors, given), ""


class _TaskVector:
    """One model's difference from the base in a tensor, read as often as it is asked for.

    In the base's own type, as the checkpoints lie: where that has 16 bits, a histogram tells ranks in one pass.
    """

    def __init__(self, base: Weights | None, model: Weights, name: str) -> None:
        assert base is not None
        self.base, self.model, self.name, self.entry = base, model, name, base.entries[name]

    def part(self, start: int, stop: int, origin: Array) -> Array:
        """(n,) float32, rounded to the base's type."""
        found = to_float32(_read(self.model, self.name, start, stop), self.model.entries[self.name].kind) - origin
        if self.entry.kind in ("BF16", "F16"):
            found = to_float32(from_float32(found, self.entry.kind), self.entry.kind)
        return found

    def bits(self) -> Iterator[Array]:
        """Of the magnitudes, part after part."""
        for start, stop in parts_of(self.entry):
            origin = to_float32(self.base.read(self.name, start, stop), self.entry.kind)
            yield magnitude_bits(self.part(start, stop, origin), self.entry.kind)


def _read(weights: Weights, name: str, start: int, stop: int) -> Array:
    stored = weights.read(name, start, stop)
    if not is_finite(stored, weights.entries[name].kind):
        raise DataError(
            f"'{name}' of '{weights.title}' has values that are not finite.",
            next_step="leave this model out, or fetch it again",
        )
    return stored


def _own(values: Array) -> Array:
    """Values that may be overwritten."""
    return values if values.flags.writeable and values.flags.owndata else values.copy()


def parts_of(entry: Entry) -> Iterator[tuple[int, int]]:
    """(start, stop) of a tensor's parts: whole rows where a row is no longer than a part."""
    row = max(1, entry.numel // max(1, entry.shape[0])) if entry.shape else 1
    step = max(1, PART // row) * row if row <= PART else PART
    for start in range(0, entry.numel, step):
        yield start, min(entry.numel, start + step)


def _check_names(base: Weights | None, models: Sequence[Ingredient]) -> None:
    first = base or models[0].weights
    for model in models:
        other = model.weights
        for name in [*first.entries, *other.entries]:
            here, there = first.entries.get(name), other.entries.get(name)
            if here is None or there is None:
                lacking, having = (first, other) if here is None else (other, first)
                raise DataError(
                    f"'{lacking.title}' lacks the tensor '{name}', which '{having.title}' has.",
                    next_step="merge models of one architecture, tuned from one base",
                )
            if here.shape != there.shape:
                raise DataError(
                    f"'{name}' has shape {here.shape} in '{first.title}' and {there.shape} in '{other.title}'.",
                    next_step="merge models of one architecture, tuned from one base",
                )


def _check_settings(ranges: Mapping[str, Range], given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name not in ranges:
            raise SettingError(f"This method has no setting '{name}'.", allowed=", ".join(ranges) or "none")
        ranges[name].check(name, float(value))


def _shards(tensors: Mapping[str, tuple[str, tuple[int, ...]]], most: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, (kind, shape) in tensors.items():
        own = size_of(kind) * math.prod(shape)
        if shards[-1] and size + own > most:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += own
    return shards


def _write_index(
    folder: Path, shards: Sequence[Sequence[str]], tensors: Mapping[str, tuple[str, tuple[int, ...]]]
) -> None:
    names = {
        key: f"model-{at + 1:05}-of-{len(shards):05}.safetensors" for at, shard in enumerate(shards) for key in shard
    }
    total = sum(size_of(kind) * math.prod(shape) for kind, shape in tensors.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": names}, indent=1))


def copy_files(source: Path | None, target: Path, dtype: str | None) -> None:
    """Config and tokenizer; the config tells the type that the weights have now."""
    if source is None or not source.is_dir():
        return
    for pattern in COPIED:
        for path in source.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, target / path.name)
    config = target / "config.json"
    if dtype is not None and config.exists():
        told = json.loads(config.read_text(encoding="utf-8"))
        told["torch_dtype" if "torch_dtype" in told else "dtype"] = dtype
        config.write_text(json.dumps(told, indent=2), encoding="utf-8")
