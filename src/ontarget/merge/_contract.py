"""The one signature of the stage's methods, and what holds for all of them.

A method is ``name(base, models, *, weights, ...) -> Tensor`` on tensors of one shape: the parameter of the base and of
each model, any floating-point type; the result is float32. weights: one a model. `average` has no base.

Beside it in the same file stands what merges checkpoints part by part: ``RULE``, a `Rule`. What it may need of a whole
tensor is a window of magnitudes; everything else is element by element.

One model at weight 1, and no other, is returned as it is, bit for bit, by every method: where nothing is merged nothing
is left out either (choice; masks would change it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ontarget.errors import DataError, SettingError
from ontarget.merge.magnitude_window import MagnitudeWindow

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

    combine(base, values, weights, settings): the merged part from that of the base, (n,) float32, and of each model,
    (M, n): task vectors where ``needs_base``, already masked. window(count, settings): (first, last) ascending ranks of
    the magnitudes of a task vector that are kept, or None. earlier_first: which of equal magnitudes count as larger;
    as mergekit's sorting has it. drop(settings): share of a task vector's entries that a coin drops, the rest being
    rescaled. of_model: settings that each model may have its own of; of_all: the others.
    """

    needs_base: bool
    combine: Callable[[Tensor | None, Tensor, Tensor, Settings], Tensor]
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
    check_tensors(base, models, weights)
    for name, value in settings.items():
        {**rule.of_model, **rule.of_all}[name].check(name, float(value))
    given = {name: limits.default for name, limits in {**rule.of_model, **rule.of_all}.items()} | dict(settings)
    alone = alone_at_one(weights)
    if alone is not None:
        return models[alone].detach().to(torch.float32).clone()
    flat = [model.detach().reshape(-1).to(torch.float32) for model in models]
    start = None if base is None else base.detach().reshape(-1).to(torch.float32)
    generator = torch.Generator().manual_seed(seed)
    values = flat if start is None else [_task_vector(rule, given, one - start, generator) for one in flat]
    merged = rule.combine(start, torch.stack(values), torch.tensor(list(weights), dtype=torch.float32), given)
    return merged.reshape(models[0].shape)


def _task_vector(rule: Rule, settings: Settings, value: Tensor, generator: torch.Generator) -> Tensor:
    return mask_of(rule, settings, len(value), lambda: [value], generator)(value)


def mask_of(
    rule: Rule,
    settings: Settings,
    count: int,
    parts: Callable[[], Iterable[Tensor]],
    generator: torch.Generator,
) -> Callable[[Tensor], Tensor]:
    """What a rule leaves of one task vector, part after part. parts: gives all of them, for the window's thresholds."""
    bounds, share = rule.window(count, settings), rule.drop(settings)
    window = None
    if bounds is not None and bounds != (0, count):
        window = MagnitudeWindow(parts, count, *bounds, earlier_first=rule.earlier_first)

    def masked(part: Tensor) -> Tensor:
        if window is not None:
            part = part * window(part)
        if share:
            part = part * (torch.rand(len(part), generator=generator) >= share) / (1 - share)
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
        if not torch.isfinite(tensor).all():
            raise DataError(f"{name} has values that are not finite.")
