"""peft's LoRA adapters: read, put onto their base, merged into one, written.

github.com/huggingface/peft, `tuners/lora`. W' = W + s B A with s = alpha / r, or alpha / sqrt(r) for rank-stabilised
LoRA; DoRA: W' = m (W + s B A) / |W + s B A| with norms over a row's inputs; biases and saved modules replace the
base's. Anything else that peft can do is refused by name: what is not known is not merged.
Checked: tests/merge/test_lora_adapter.py, against peft's own `merge_and_unload`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ontarget.errors import DataError, RunError, SettingError
from ontarget.merge.checkpoint import Weights, read_json
from ontarget.merge.number_types import from_float32, is_finite, to_float32
from ontarget.merge.streamed_safetensors import Entry, SafetensorsReader, SafetensorsWriter
from ontarget.pool.language_models import PICKLES
from ontarget.values import Array

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
_PART = re.compile(r"(.+)\.lora_(A|B|magnitude_vector|embedding_A|embedding_B|bias|B\.bias)(?:\.weight)?")
# What may be set without changing how W' comes about from A, B, magnitudes, biases and saved modules.
HARMLESS = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "lora_alpha",
    "lora_dropout", "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r",
    "rank_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_dora", "use_rslora",
}  # fmt: skip
# Ways to begin that leave the base as it is; PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA take a part out of its weights.
BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Delta:
    """What an adapter does to a weight (out, in). magnitude: DoRA's m, (out,). transposed: the weight is (in, out)."""

    a: Array
    b: Array
    scale: float
    magnitude: Array | None = None
    transposed: bool = False


class LoraAdapter:
    """An adapter's folder. deltas: module -> `Delta`; replaced: tensor of the base -> tensor of the adapter.

    Raises DataError: a folder that is none, pickled or damaged weights; SettingError naming a kind that is not known.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.title = folder, str(folder)
        if not (folder / CONFIG).exists():
            raise DataError(f"'{folder}' has no {CONFIG}.", next_step="give the folder that peft has written")
        self.config = read_json(folder / CONFIG)
        self._check_kind()
        if not (folder / WEIGHTS).exists():
            pickled = any(path for pattern in PICKLES for path in folder.glob(pattern))
            raise DataError(
                f"'{folder}' has no {WEIGHTS}{', only pickled weights, which can run code' if pickled else ''}.",
                next_step="save it with peft's safe_serialization",
            )
        reader = SafetensorsReader(folder / WEIGHTS)
        tensors = {}
        for name, entry in reader.entries.items():
            stored = reader.read(name)
            if not is_finite(stored, entry.kind):
                raise DataError(f"'{name}' of '{self.title}' has values that are not finite.")
            tensors[name] = to_float32(stored, entry.kind).reshape(entry.shape)
        reader.close()
        self.deltas, self.replaced = self._sorted(tensors)

    def on(self, base: Weights) -> AdaptedWeights:
        """The base's weights with this adapter. Raises DataError where it is for another base."""
        return AdaptedWeights(base, self)

    def _check_kind(self) -> None:
        kind = self.config.get("peft_type")
        if kind != "LORA":
            raise SettingError(f"'{self.title}' is of peft's kind {kind}.", allowed="LORA (with rsLoRA, DoRA, biases)")
        for name, value in self.config.items():
            known = value in BEGINNINGS if name == "init_lora_weights" else name in HARMLESS
            if not known and value not in (None, False, [], {}, ""):
                raise SettingError(
                    f"'{self.title}' sets {name} = {value!r}, which is not known here.",
                    allowed="LoRA, rsLoRA, DoRA, biases, saved modules",
                    next_step="merge it into its base with peft, and give the result",
                )

    def _sorted(self, tensors: Mapping[str, Array]) -> tuple[dict[str, Delta], dict[str, Array]]:
        parts: dict[str, dict[str, Array]] = {}
        replaced: dict[str, Array] = {}
        for name, value in tensors.items():
            short = name.removeprefix(PREFIX)
            found = _PART.fullmatch(short)
            if found is None:
                if ".lora_" in short:
                    raise SettingError(f"'{self.title}' has a tensor '{name}', which is not known here.")
                replaced[short.replace(".base_layer.", ".").replace(".modules_to_save.", ".")] = value
            else:
                parts.setdefault(found.group(1), {})[found.group(2)] = value
        deltas = {}
        for module, found_parts in parts.items():
            a, b = (found_parts.get(part, found_parts.get(f"embedding_{part}")) for part in "AB")
            if a is None or b is None or a.ndim != 2 or b.ndim != 2 or set(found_parts) & {"bias", "B.bias"}:
                raise SettingError(f"'{self.title}' adapts '{module}' in a way that is not known here.",
                                   allowed="linear layers and embeddings")  # fmt: skip
            embedding = "embedding_A" in found_parts  # (r, V) and (D, r), for a weight (V, D)
            deltas[module] = Delta(a, b, self._scale(module, a.shape[0]),
                                   found_parts.get("magnitude_vector"),
                                   embedding or bool(self.config.get("fan_in_fan_out")))  # fmt: skip
        return deltas, replaced

    def _scale(self, module: str, rank: int) -> float:
        def of(pattern: Any, default: float) -> float:
            for key, value in (pattern or {}).items():
                if re.match(rf"(.*\.)?({key})$", module):
                    return float(value)
            return default

        alpha = of(self.config.get("alpha_pattern"), float(self.config.get("lora_alpha", 8)))
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


class AdaptedWeights:
    """`Weights` of a base with an adapter, computed part by part in float32 and rounded to the base's type."""

    def __init__(self, base: Weights, adapter: LoraAdapter) -> None:
        self.base, self.title = base, f"{base.title}+{adapter.title}"
        self.entries: Mapping[str, Entry] = base.entries
        self.deltas: dict[str, Delta] = {}
        for module, delta in adapter.deltas.items():
            name = self._named(f"{module}.weight", adapter)
            shape = (delta.b.shape[0], delta.a.shape[1])
            if self.entries[name].shape != (shape[::-1] if delta.transposed else shape):
                raise DataError(
                    f"'{adapter.title}' adapts '{name}' of shape {shape}; in '{base.title}' it has "
                    f"{self.entries[name].shape}.", next_step="give the base that the adapter was trained on",
                )  # fmt: skip
            if delta.magnitude is not None and delta.transposed:
                raise SettingError(f"DoRA on '{name}', whose weight lies transposed, is not known here.")
            self.deltas[name] = delta
        self.replaced = {self._named(name, adapter): value for name, value in adapter.replaced.items()}
        for name, value in self.replaced.items():
            if tuple(value.shape) != self.entries[name].shape:
                raise DataError(f"'{adapter.title}' replaces '{name}' by another shape, {tuple(value.shape)}.")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Elements ``start`` to ``stop`` of the adapted tensor's flat form."""
        entry = self.entries[name]
        stop = entry.numel if stop is None else stop
        if name not in self.deltas:
            return self._before(name, start, stop)
        delta, width = self.deltas[name], entry.shape[1]
        first, last = start // width, -(-stop // width)
        stored = self._before(name, first * width, last * width)
        rows = to_float32(stored, entry.kind).reshape(last - first, width)
        if delta.transposed:
            change = (delta.b @ delta.a[:, first:last]).T * np.float32(delta.scale)
        else:
            change = (delta.b[first:last] @ delta.a) * np.float32(delta.scale)
        if delta.magnitude is None:
            # As peft does it: the change is rounded to the weight's type, then added.
            adapted = rows + to_float32(from_float32(change, entry.kind), entry.kind)
        else:
            whole = rows + change
            adapted = (delta.magnitude.reshape(-1)[first:last] / np.linalg.norm(whole, axis=1))[:, None] * whole
        return from_float32(adapted.reshape(-1)[start - first * width : stop - first * width], entry.kind)

    def _before(self, name: str, start: int, stop: int) -> Array:
        """Of the base, or of what the adapter saved in its place."""
        if name in self.replaced:
            return from_float32(self.replaced[name].reshape(-1)[start:stop], self.entries[name].kind)
        return self.base.read(name, start, stop)

    def _named(self, name: str, adapter: LoraAdapter) -> str:
        """The base's tensor of that name, of which one of the two may lack the name of the whole model."""
        if name in self.entries:
            return name
        found = [other for other in self.entries if other.endswith(f".{name}") or name.endswith(f".{other}")]
        if len(found) != 1:
            raise DataError(
                f"'{adapter.title}' changes '{name}', which '{self.base.title}' does not have.",
                next_step="give the base that the adapter was trained on",
            )
        return found[0]


def merge_adapters(adapters: Sequence[LoraAdapter], weights: Sequence[float], output: Path) -> Path:
    """One adapter whose change is the weighted sum of the others': their factors side by side, rank the sum of ranks.

    A single adapter at weight 1 is copied as it is, of whatever kind. Raises SettingError for DoRA, biases and saved
    modules of several: a sum of them is no adapter; merge them into the base's weights.
    """
    from ontarget.merge._contract import alone_at_one

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunError(f"'{output}' exists.", option="--output", next_step="choose a new folder, or remove it")
    alone = alone_at_one(weights)
    if alone is not None:
        output.mkdir(parents=True, exist_ok=True)
        for name in (WEIGHTS, CONFIG):
            (output / name).write_bytes((adapters[alone].folder / name).read_bytes())
        return output
    for adapter in adapters:
        if adapter.replaced or any(delta.magnitude is not None for delta in adapter.deltas.values()):
            raise SettingError(
                f"'{adapter.title}' has magnitudes, biases or saved modules: its sum with others is no adapter.",
                next_step="merge the adapters into the weights of their base: give --base",
            )
    modules = list(dict.fromkeys(module for adapter in adapters for module in adapter.deltas))
    tensors, ranks = {}, {}
    embedding = {module for adapter in adapters for module in adapter.deltas if adapter.deltas[module].transposed}
    if embedding:
        raise SettingError(f"'{sorted(embedding)[0]}' lies transposed.", next_step="merge into the base: give --base")
    for module in modules:
        parts = [(adapter.deltas[module], weight) for adapter, weight in zip(adapters, weights, strict=True)
                 if module in adapter.deltas]  # fmt: skip
        tensors[f"{PREFIX}{module}.lora_A.weight"] = np.concatenate([delta.a for delta, _ in parts])
        joined = np.concatenate([delta.b * np.float32(delta.scale * weight) for delta, weight in parts], axis=1)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = joined
        ranks[module] = joined.shape[1]
    rank = max(ranks.values())
    own = {module: value for module, value in ranks.items() if value != rank}
    config = {**adapters[0].config, "r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": own,
              "alpha_pattern": own, "target_modules": modules, "init_lora_weights": True, "exclude_modules": None,
              "layers_to_transform": None, "layers_pattern": None}  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    shapes = {name: ("F32", tuple(value.shape)) for name, value in tensors.items()}
    with SafetensorsWriter(output / WEIGHTS, shapes, {"format": "pt"}) as writer:
        for name, value in tensors.items():
            writer.write(name, 0, np.ascontiguousarray(value, dtype=np.float32).reshape(-1))
    (output / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    return output
