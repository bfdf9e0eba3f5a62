"""`ontarget judge intruders`: which matrices of a fine-tuned model have intruder dimensions, and a repaired copy.

Where texts are given, the loss on them is measured: on texts like those of pretraining ("proxy") it tells forgetting,
on the target's the cost of a repair. Several factors are tried, and the one with the largest gain on the proxy is taken
whose loss on the target rises by 1% at most (choice); none where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ontarget.errors import DataError, SettingError
from ontarget.judge.intruder_dimensions import EPSILON, TOP, Directions, counts, intruder_dimensions, scaled_down
from ontarget.merge.checkpoint import Weights
from ontarget.merge.layer_names import layer_of
from ontarget.merge.merge_checkpoints import copy_files, parts_of
from ontarget.merge.number_types import FLOATING, from_float32, to_float32
from ontarget.merge.streamed_safetensors import SafetensorsWriter
from ontarget.plan.run_folder import new_folder
from ontarget.values import Array, Context

EPSILONS = tuple(round(0.05 * step, 2) for step in range(4, 20))
FACTORS = (1.0, 0.75, 0.5, 0.25, 0.0)
MOST_RISE = 0.01  # of the target's loss that a repair may cost


@dataclass(frozen=True)
class Audit:
    """matrices: name, layer, module, shape, nearest (k,), intruders, change (of the norm). curve: epsilon -> intruders.

    repairs: factor, proxy_loss, target_loss of every factor that was tried. base_losses: proxy, target of the base.
    directions: of the matrices that have intruders, by name: what a repair of any factor needs.
    """

    matrices: tuple[Mapping[str, Any], ...]
    epsilon: float
    top: int
    curve: Mapping[float, int]
    repairs: tuple[Mapping[str, float], ...] = ()
    base_losses: Mapping[str, float] = field(default_factory=dict)
    chosen: float | None = None
    directions: Mapping[str, Directions] = field(default_factory=dict, repr=False)

    @property
    def intruders(self) -> int:
        return sum(int(row["intruders"]) for row in self.matrices)

    def told(self) -> dict[str, Any]:
        """All but the directions, for a file."""
        fields = asdict(replace(self, directions={}))
        del fields["directions"]
        return fields


def audit_intruders(
    base: Weights, tuned: Weights, *, top: int = TOP, epsilon: float = EPSILON, context: Context = Context()
) -> Audit:
    """Audit every matrix in the layers that fine-tuning has changed. Raises DataError for models of other shapes."""
    if not 0 < epsilon <= 1:
        raise SettingError(f"epsilon is {epsilon}.", allowed="above 0 to 1", option="--epsilon")
    names = [name for name, entry in base.entries.items()
             if len(entry.shape) == 2 and layer_of(name) is not None and entry.kind in FLOATING]  # fmt: skip
    if not names:
        raise DataError(f"'{base.title}' has no matrices in layers.", next_step="give a transformer's checkpoint")
    rows: list[dict[str, Any]] = []
    directions = {}
    for done, name in enumerate(names):
        if context.progress is not None:
            context.progress(done, len(names), f"comparing {name}")
        before, after = matrix(base, name), matrix(tuned, name)
        if np.array_equal(before, after):
            continue
        found = intruder_dimensions(before, after, top=top)
        intruders = len(found.intruders(epsilon))
        if intruders:
            directions[name] = found
        rows.append({
            "name": name, "layer": layer_of(name), "module": module_of(name), "shape": before.shape,
            "nearest": found.nearest, "intruders": intruders,
            "change": float(np.linalg.norm(after - before) / max(float(np.linalg.norm(before)), 1e-12)),
        })  # fmt: skip
    nearest = [row["nearest"] for row in rows]
    curve = dict(zip(EPSILONS, counts(nearest, EPSILONS), strict=True))
    return Audit(tuple(rows), epsilon, top, curve, directions=directions)


def matrix(weights: Weights, name: str) -> Array:
    """A matrix as float32. Raises DataError naming a model that lacks it."""
    if name not in weights.entries:
        raise DataError(f"'{weights.title}' lacks the tensor '{name}'.", next_step="give the base it was tuned from")
    entry = weights.entries[name]
    return to_float32(weights.read(name), entry.kind).reshape(entry.shape)


def module_of(name: str) -> str:
    """``self_attn.q_proj`` of ``model.layers.3.self_attn.q_proj.weight``."""
    return name.split(f".{layer_of(name)}.", 1)[1].removesuffix(".weight")


def write_repaired(
    tuned: Weights, audit: Audit, factor: float, output: Path, *, copy_from: Path, context: Context = Context()
) -> Path:
    """The tuned model with its intruders scaled by ``factor``, in the new folder ``output``; it appears when whole.

    Raises RunError where ``output`` exists.
    """
    kinds = {name: (entry.kind, entry.shape) for name, entry in tuned.entries.items()}
    with new_folder(output) as partial:
        with SafetensorsWriter(partial / "model.safetensors", kinds, {"format": "pt"}) as writer:
            for done, (name, entry) in enumerate(tuned.entries.items()):
                if context.progress is not None:
                    context.progress(done, len(kinds), f"writing {name}")
                if name in audit.directions:
                    found = audit.directions[name]
                    mended = scaled_down(matrix(tuned, name), found, factor, epsilon=audit.epsilon)
                    writer.write(name, 0, from_float32(mended.reshape(-1), entry.kind))
                    continue
                for start, stop in parts_of(entry):
                    writer.write(name, start, tuned.read(name, start, stop))
        copy_files(copy_from, partial, None)
    return output


def losses(folder: Path, texts: Sequence[str], *, max_length: int = 256, device: str = "cpu") -> float:
    """Mean loss of the next token, nats, over texts; a causal language model's folder. Raises DataError: no tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, use_safetensors=True,
                                                 dtype=torch.float32).to(device).eval()  # fmt: skip
    total, tokens = 0.0, 0
    with torch.inference_mode():
        for text in texts:
            ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=max_length).input_ids.to(device)
            if ids.shape[1] < 2:
                continue
            loss = model(ids, labels=ids).loss
            total, tokens = total + float(loss) * (ids.shape[1] - 1), tokens + ids.shape[1] - 1
    if not tokens:
        raise DataError("The texts have no two tokens.", next_step="give texts of some words")
    return total / tokens


def choose_factor(repairs: Sequence[Mapping[str, float]]) -> float | None:
    """The factor of the lowest proxy loss whose target loss is at most 1% above the unrepaired one's; None for none."""
    whole = next(row for row in repairs if row["factor"] == 1.0)
    allowed = [row for row in repairs if row["target_loss"] <= (1 + MOST_RISE) * whole["target_loss"]]
    best = min(allowed, key=lambda row: row["proxy_loss"])
    return best["factor"] if best["proxy_loss"] < whole["proxy_loss"] else None
