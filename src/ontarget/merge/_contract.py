"""The one signature of the stage's methods, and what holds for all of them.

A method is ``name(base, models, *, weights, ...) -> Tensor`` on tensors of one shape: the parameter of the base and of
each model, any floating-point type; the result is float32. weights: one a model. `average` has no base.

Beside it in the same file stands what merges checkpoints part by part: ``RULE``, a `Rule`, on numpy arrays. What it may
need of a whole tensor is a window of magnitudes; everything else is element by element.

One model at weight 1, and no other, is returned as it is, bit for bit, by every method: where nothing is merged nothing
is left out either (choice; masks would change it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ontarget.errors import DataError, SettingError
from ontarget.merge.magnitude_window import MagnitudeWindow
from ontarget.merge.number_types import magnitude_bits
from ontarget.values import Array

if TYPE_CHECKING:
    from torch import Tensor

Settings = Mapping[str, float | bool]


@dataclass(frozen=True)
class Range:
    """Bounds of a setting, both included but where ``open_low``, and its default."""

    default: float | bool
    low: float = -np.inf
    high: float = np.inf
    open_low: bool = False

    def check(self, name: str, value: float) -> None:
        """Raises SettingError."""
        inside = (value > self.low if self.open_low else value >= self.low) and value <= self.high
        if not (np.isfinite(value) and inside):
            raise SettingError(
                f"{name} is {value}.",
                allowed=f"{'above' if self.open_low else 'from'} {self.low:g} to {self.high:g}",
                option=name,
            )


@dataclass(frozen=True)
class Rule:
    """How a method merges parts of a tensor.

    combine(base, values, weights, settings): the merged part, (n,) float32, from that of the base and of each model:
    task vectors where ``needs_base``, already masked; it may overwrite ``values``. window(count, settings): (first,
    last) ascending ranks of the magnitudes of a task vector that are kept, or None. earlier_first: which of equal
    magnitudes count as larger; as mergekit's sorting has it. drop(settings): share of a task vector's entries that a
    coin drops, the rest being rescaled. of_model: settings that each model may have its own of; of_all: the others.
    """

    needs_base: bool
    combine: Callable[[Array | None, list[Array], Sequence[float], Settings], Array]
    window: Callable[[int, Settings], tuple[int, int] | None] = lambda count, settings: None
    earlier_first: bool = False
    drop: Callable[[Settings], float] = lambda settings: 0.0
    of_model: Mapping[str, Range] = field(default_factory=dict)
    of_all: Mapping[str, Range] = field(default_factory=dict)


def merge_tensors(
    rule: Rule,
    base: Tensor | None,
    models: Sequence[Tensor],
    *,
    weights: Sequence[float],
    settings: Settings,
    seed: int = 0,
) -> Tensor:
    """A whole tensor merged by a rule. Raises DataError for shapes that differ and values that are not finite."""
    import torch

    check_tensors(base, models, weights)
    for name, value in settings.items():
        {**rule.of_model, **rule.of_all}[name].check(name, float(value))
    given = {name: limits.default for name, limits in {**rule.of_model, **rule.of_all}.items()} | dict(settings)
    alone = alone_at_one(weights)
    if alone is not None:
        return models[alone].detach().to(torch.float32).clone()
    flat: list[Array] = [model.detach().cpu().reshape(-1).to(torch.float32).numpy() for model in models]
    start: Array | None = None if base is None else base.detach().cpu().reshape(-1).to(torch.float32).numpy()
    generator = np.random.default_rng(seed)
    values = [one.copy() for one in flat] if start is None else [
        _task_vector(rule, given, one - start, generator) for one in flat
    ]  # fmt: skip
    merged = rule.combine(start, values, [float(weight) for weight in weights], given)
    return torch.from_numpy(np.ascontiguousarray(merged)).reshape(models[0].shape)


def _task_vector(rule: Rule, settings: Settings, value: Array, generator: np.random.Generator) -> Array:
    masked = mask_of(rule, settings, len(value), lambda: [magnitude_bits(value, "F32")], generator)
    return masked(value, "F32")


def mask_of(
    rule: Rule,
    settings: Settings,
    count: int,
    parts: Callable[[], Iterable[Array]],
    generator: np.random.Generator,
) -> Callable[[Array, str], Array]:
    """What a rule leaves of one task vector, part after part: a function of the part and the type that tells its ranks.

    parts: gives the bits of all parts' magnitudes, for the window's thresholds.
    """
    bounds, share = rule.window(count, settings), rule.drop(settings)
    window = None
    if bounds is not None and bounds != (0, count):
        window = MagnitudeWindow(parts, count, *bounds, earlier_first=rule.earlier_first)

    def masked(part: Array, kind: str) -> Array:
        if window is not None:
            part *= window(magnitude_bits(part, kind))
        if share:
            part *= generator.random(len(part), dtype=np.float32) >= share
            part *= np.float32(1 / (1 - share))
        return part

    return masked


def alone_at_one(weights: Sequence[float]) -> int | None:
    """The place of the only model with a weight, where that weight is 1."""
    counted = [at for at, weight in enumerate(weights) if weight != 0]
    return counted[0] if len(counted) == 1 and weights[counted[0]] == 1 else None


def check_tensors(base: Tensor | None, models: Sequence[Tensor], weights: Sequence[float]) -> None:
    """Raises DataError, SettingError."""
    if not models or len(models) != len(weights):
        raise SettingError(f"{len(models)} models and {len(weights)} weights.", allowed="one weight a model")
    if not all(np.isfinite(weight) for weight in weights):
        raise SettingError(f"weights are {list(weights)}.", allowed="finite numbers", option="weights")
    for at, tensor in enumerate([*models, *([] if base is None else [base])]):
        name = "the base" if at == len(models) else f"model {at + 1}"
        if tensor.shape != models[0].shape:
            raise DataError(f"{name} has shape {tuple(tensor.shape)}, model 1 {tuple(models[0].shape)}.")
        if not tensor.is_floating_point():
            raise DataError(f"{name} is {tensor.dtype}.", allowed="floating-point tensors")
        if not bool(tensor.isfinite().all()):
            raise DataError(f"{name} has values that are not finite.")
