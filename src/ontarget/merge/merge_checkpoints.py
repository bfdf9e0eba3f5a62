"""Merging of whole checkpoints, tensor by tensor and part by part, into a folder that appears when it is whole.

Memory holds a part of each model at a time (`PART` numbers), whatever their size. Results are computed in float32 and
rounded once. Which magnitudes are the largest is told from task vectors in the checkpoints' own type, as they lie.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ontarget.errors import DataError, RunError, SettingError
from ontarget.merge._contract import Range, Rule, alone_at_one, mask_of
from ontarget.merge.checkpoint import INDEX, Weights
from ontarget.merge.streamed_safetensors import NAMES, Entry, SafetensorsWriter
from ontarget.values import Context

PART = 1 << 20  # numbers of a tensor that are merged at a time (choice)
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
    dtype: torch.dtype | None = None,
    copy_from: Path | None = None,
    card: Mapping[str, str] | None = None,
    shard_bytes: int = SHARD_BYTES,
    seed: int = 0,
    context: Context = Context(),
) -> Path:
    """Merge into the new folder ``output``.

    dtype: of the merged tensors; each tensor's own in the base, or the first model, by default. copy_from: a folder
    whose config and tokenizer come along. card: further files, name -> text. shard_bytes: the most a file may have.
    Raises DataError naming tensor and model: shapes or names that differ, values that are not finite; SettingError;
    RunError where ``output`` exists.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunError(f"'{output}' exists.", option="--output", next_step="choose a new folder, or remove it")
    if rule.needs_base and base is None:
        raise SettingError("This method needs the base of the models.", option="--base", next_step="give it")
    _check_names(base, models)
    given = {name: limits.default for name, limits in rule.of_all.items()} | dict(settings or {})
    _check_settings(rule.of_all, given)
    first = base or models[0].weights
    kept = {
        name: (dtype if dtype is not None and entry.dtype.is_floating_point else entry.dtype, entry.shape)
        for name, entry in first.entries.items()
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        shards = _shards(kept, shard_bytes)
        for at, shard in enumerate(shards):
            name = "model.safetensors" if len(shards) == 1 else f"model-{at + 1:05}-of-{len(shards):05}.safetensors"
            with SafetensorsWriter(partial / name, {key: kept[key] for key in shard}, {"format": "pt"}) as writer:
                for done, key in enumerate(shard):
                    if context.progress is not None:
                        context.progress(done, len(shard), f"merging {key}")
                    for start, values in _merged(rule, base, models, key, given, seed):
                        writer.write(key, start, values.to(kept[key][0]))
        if len(shards) > 1:
            _write_index(partial, shards, kept)
        _copy(copy_from, partial, dtype)
        for name, text in (card or {}).items():
            (partial / name).write_text(text, encoding="utf-8")
        if output.exists():
            output.rmdir()
        partial.chmod(0o777 & ~_umask())
        os.replace(partial, output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return output


def _merged(
    rule: Rule, base: Weights | None, models: Sequence[Ingredient], name: str, given: Mapping[str, Any], seed: int
) -> Iterator[tuple[int, Tensor]]:
    """(start, values) of the parts of a merged tensor."""
    first = base or models[0].weights
    entry = first.entries[name]
    weights = [float(model.weight(name)) for model in models]
    alone = alone_at_one(weights)
    if alone is not None or not entry.dtype.is_floating_point:
        # Nothing to merge: the bits as they are. Counters and the like are the base's.
        source = models[alone].weights if alone is not None else first
        for start, stop in _parts(entry):
            values = source.read(name, start, stop)
            _check_finite(values, name, source.title)
            yield start, values
        return
    each = []
    for model in models:
        own = {key: limits.default for key, limits in rule.of_model.items()}
        own |= {key: value(name) for key, value in model.settings.items() if value(name) is not None}
        _check_settings(rule.of_model, own)
        each.append(own)
    counted = [at for at, weight in enumerate(weights) if weight != 0]
    if not counted:
        if base is None:
            raise SettingError(f"All weights of '{name}' are 0.", option="weight")
        yield from ((start, base.read(name, start, stop)) for start, stop in _parts(entry))
        return
    masks = []
    for at in counted:
        whole = _TaskVector(base, models[at].weights, name) if rule.needs_base else None
        digest = hashlib.sha256(f"{seed} {at} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        parts = whole.parts if whole is not None else None
        masks.append(None if parts is None else mask_of(rule, each[at], entry.numel, parts, generator))
    factors = torch.tensor([weights[at] for at in counted], dtype=torch.float32)
    for start, stop in _parts(entry):
        origin = None
        if base is not None and rule.needs_base:
            origin = base.read(name, start, stop).to(torch.float32)
            _check_finite(origin, name, base.title)
        values = torch.empty(len(counted), stop - start)
        for row, (at, mask) in enumerate(zip(counted, masks, strict=True)):
            part = models[at].weights.read(name, start, stop)
            _check_finite(part, name, models[at].weights.title)
            if origin is None or mask is None:
                values[row] = part
            else:
                values[row] = mask(_in_type(part.to(torch.float32) - origin, entry.dtype)).to(torch.float32)
        yield start, rule.combine(origin, values, factors, given)


class _TaskVector:
    """The parts of one model's difference from the base in a tensor, read as often as they are asked for."""

    def __init__(self, base: Weights | None, model: Weights, name: str) -> None:
        assert base is not None
        self.base, self.model, self.name = base, model, name

    def parts(self) -> Iterator[Tensor]:
        entry = self.base.entries[self.name]
        for start, stop in _parts(entry):
            model, base = (one.read(self.name, start, stop).to(torch.float32) for one in (self.model, self.base))
            yield _in_type(model - base, entry.dtype)


def _in_type(values: Tensor, dtype: torch.dtype) -> Tensor:
    """In the checkpoint's own 16 bits, where a histogram tells ranks in one pass; float32 otherwise."""
    return values.to(dtype) if dtype in (torch.bfloat16, torch.float16) else values


def _parts(entry: Entry) -> Iterator[tuple[int, int]]:
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


def _check_finite(values: Tensor, name: str, title: str) -> None:
    if values.is_floating_point() and not torch.isfinite(values).all():
        raise DataError(
            f"'{name}' of '{title}' has values that are not finite.",
            next_step="leave this model out, or fetch it again",
        )


def _shards(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], most: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, (dtype, shape) in tensors.items():
        own = dtype.itemsize * int(torch.Size(shape).numel())
        if shards[-1] and size + own > most:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += own
    return shards


def _write_index(
    folder: Path, shards: Sequence[Sequence[str]], tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
) -> None:
    names = {
        key: f"model-{at + 1:05}-of-{len(shards):05}.safetensors" for at, shard in enumerate(shards) for key in shard
    }
    total = sum(dtype.itemsize * int(torch.Size(shape).numel()) for dtype, shape in tensors.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": names}, indent=1))


def _copy(source: Path | None, target: Path, dtype: torch.dtype | None) -> None:
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
        names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
        told["torch_dtype" if "torch_dtype" in told else "dtype"] = names[NAMES[dtype]]
        config.write_text(json.dumps(told, indent=2), encoding="utf-8")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
