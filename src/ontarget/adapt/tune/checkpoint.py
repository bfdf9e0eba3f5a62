"""A training that can go on: its state as one block of bytes, safetensors with a JSON header, nothing unpickled."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ontarget.errors import RunError
from ontarget.values import Array


class Progress:
    """What a training has reached: the position in its batches, its curve, the best weights and their scores.

    "Best" are the last ones where the training does not choose among its epochs.

    epoch, batch: complete epochs, and batches done in the one that follows. loss_sum, rows: of that epoch.
    waited: epochs since the best.
    """

    def __init__(self) -> None:
        self.epoch, self.batch, self.loss_sum, self.rows = 0, 0, 0.0, 0
        self.waited, self.best, self.best_epoch = 0, -math.inf, 0
        self.curve: list[Mapping[str, float]] = []
        self.best_state: dict[str, Tensor] = {}
        self.best_scores: Array | None = None

    def note(self, value: float, scores: Array, state: Mapping[str, Tensor], *, whatever: bool = False) -> None:
        """Remember these weights if they are the best so far, or ``whatever`` their value."""
        if whatever or value > self.best or not self.best_state:
            self.best, self.best_epoch, self.best_scores, self.waited = value, self.epoch, scores, 0
            self.best_state = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        else:
            self.waited += 1


def snapshot(
    progress: Progress,
    state: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    *,
    settings: Mapping[str, Any],
    scaler: Mapping[str, Any],
) -> bytes:
    """Bytes from which `restore` goes on. state: the trained tensors by name, parameters and statistics alike."""
    tensors = {f"now/{name}": value for name, value in state.items()}
    best_is_now = bool(progress.best_state) and all(
        torch.equal(value, state[name].detach().cpu()) for name, value in progress.best_state.items()
    )
    if not best_is_now:
        tensors |= {f"best/{name}": value for name, value in progress.best_state.items()}
    names = {id(value): name for name, value in state.items()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{names[id(parameter)]}/{key}"] = value
    if progress.best_scores is not None:
        tensors["scores"] = torch.from_numpy(np.ascontiguousarray(progress.best_scores))
    tensors["random"] = torch.get_rng_state()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        tensors["random_cuda"] = torch.cuda.get_rng_state()
    values = {name: getattr(progress, name) for name in _COUNTS}
    values |= {"best": progress.best if math.isfinite(progress.best) else None, "curve": list(progress.curve)}
    values |= {"best_is_now": best_is_now, "schedule": schedule.last_epoch, "settings": dict(settings)}
    return pack(tensors, {**values, "scaler": dict(scaler)})


def restore(
    content: bytes,
    state: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    *,
    settings: Mapping[str, Any],
) -> tuple[Progress, dict[str, Any]]:
    """(progress, the scaler's state); weights, optimizer, schedule and random numbers are set as they were.

    Raises RunError for bytes that are no checkpoint, and for one of other settings, naming them.
    """
    tensors, values = _opened(content)
    differing = [name for name, value in settings.items() if values["settings"].get(name) != value]
    if differing:
        name = differing[0]
        raise RunError(
            f"The checkpoint was made with {name} = {values['settings'].get(name)}, not {settings[name]}.",
            option=", ".join(differing),
            next_step="continue with the settings that it was started with",
        )
    progress = Progress()
    for name in _COUNTS:
        setattr(progress, name, values[name])
    progress.best = -math.inf if values["best"] is None else values["best"]
    progress.curve = values["curve"]
    progress.best_scores = tensors["scores"].numpy() if "scores" in tensors else None
    try:
        with torch.no_grad():
            moments = _moments(tensors)
            for name, value in state.items():
                value.copy_(tensors[f"now/{name}"])
                if name in moments:
                    optimizer.state[value] = {key: moment.to(value.device) for key, moment in moments[name].items()}
        if values["best"] is not None:
            kept = "now" if values["best_is_now"] else "best"
            progress.best_state = {name: tensors[f"{kept}/{name}"].clone() for name in state}
    except (KeyError, RuntimeError) as error:
        raise RunError(f"The checkpoint does not fit this network ({error}).") from error
    torch.set_rng_state(tensors["random"])
    if "random_cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random_cuda"])
    schedule.last_epoch = values["schedule"]
    for group, base, factor in zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = base * factor(schedule.last_epoch)
    return progress, values["scaler"]


def _moments(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Parameter name -> the optimizer's tensors for it."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            parameter, _, key = name.removeprefix("optimizer/").rpartition("/")
            found.setdefault(parameter, {})[key] = value.clone()
    return found


def pack(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> bytes:
    """Bytes that `unpack` reads."""
    from safetensors.torch import save

    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    content: bytes = save(plain, metadata={"values": json.dumps(dict(values))})
    return content


def unpack(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, values). Raises ValueError for bytes that `pack` has not made."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors: dict[str, Tensor] = load(content)
        length = int.from_bytes(content[:8], "little")
        values: dict[str, Any] = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["values"])
    except (SafetensorError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"no checkpoint: {error}") from error
    return tensors, values


def _opened(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        tensors, values = unpack(content)
        if not {*_COUNTS, "settings", "schedule"} <= set(values):
            raise ValueError("it holds other values")
    except ValueError as error:
        raise RunError(
            f"The checkpoint cannot be read ({error}).", option="resume_from", next_step="start the training anew"
        ) from error
    return tensors, values


_COUNTS = ("epoch", "batch", "loss_sum", "rows", "waited", "best_epoch")
