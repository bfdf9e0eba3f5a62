"""Training of a found network from scratch, scoring it, and its BatchNorm statistics once its weights are given."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ontarget.errors import SettingError, nearest
from ontarget.search.rows import Rows, batches, ordered
from ontarget.values import Array, Context

# optimizer -> (learning rate, weight decay) of a small CNN from scratch; a discovered rule has its rate inside
DEFAULTS = {"sgd": (0.05, 4e-5), "adamw": (3e-3, 0.05), "lion": (6e-4, 0.25)}


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter], name: str, learning_rate: float | None, weight_decay: float | None
) -> torch.optim.Optimizer:
    """The optimizer of a name or of a discovered program's path. Raises SettingError, RunError, DataError."""
    if name.endswith(".json"):
        from ontarget.search.optimizer_program import DiscoveredOptimizer
        from ontarget.search.symbolic_optimizer import read_program

        return DiscoveredOptimizer(parameters, read_program(Path(name)), lr=learning_rate or 1.0)
    if name not in DEFAULTS:
        raise SettingError(
            f"optimizer is '{name}'.", allowed=f"{', '.join(DEFAULTS)}, or a program.json", option="optimizer",
            next_step=nearest(name, DEFAULTS),
        )  # fmt: skip
    rate = DEFAULTS[name][0] if learning_rate is None else learning_rate
    decay = DEFAULTS[name][1] if weight_decay is None else weight_decay
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=0.9, nesterov=True, weight_decay=decay)
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    from ontarget.parts.optimizers.lion import Lion

    return Lion(parameters, lr=rate, weight_decay=decay)


def retrain(
    network: torch.nn.Module,
    train: Rows,
    *,
    epochs: int,
    batch_size: int = 64,
    optimizer: str = "sgd",
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    label_smoothing: float = 0.1,
    what: str = "training the found network",
    context: Context = Context(),
) -> list[float]:
    """Train a classifier on a cosine from ``learning_rate``; loss of each epoch.

    ``network`` is changed and left in evaluation mode. optimizer: "sgd" (Nesterov momentum 0.9), "adamw", "lion", or
    the path of a program.json that `ontarget discover-optimizer` wrote. learning_rate, weight_decay: of the optimizer's
    own kind; see `DEFAULTS` (choice). Raises SettingError for another optimizer.
    """
    torch.manual_seed(context.seed)
    network.to(context.device).train()
    engine = make_optimizer(network.parameters(), optimizer, learning_rate, weight_decay)
    per_epoch = math.ceil(len(train) / batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(engine, max(1, epochs * per_epoch))
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=label_smoothing)
    curve = []
    for epoch in range(epochs):
        losses = []
        for images, labels in batches(train, batch_size, seed=context.seed, epoch=epoch):
            loss = criterion(network(images.to(context.device)), labels.to(context.device))
            engine.zero_grad(set_to_none=True)
            loss.backward()
            engine.step()
            schedule.step()
            losses.append(float(loss.detach()))
        curve.append(float(np.mean(losses)))
        if context.progress is not None:
            context.progress(epoch + 1, epochs, what)
        if context.deadline is not None and time.monotonic() > context.deadline:
            break
    network.eval()
    return curve


def scores(network: Any, rows: Rows, *, batch_size: int = 256, device: str = "cpu") -> Array:
    """Scores (N, C) float32 of all rows in their order; the network is left in evaluation mode."""
    network.eval()
    with torch.inference_mode():
        parts = [network(inputs.to(device)).float().cpu() for inputs, *_ in ordered(rows, batch_size)]
    result: Array = torch.cat(parts).numpy()
    return result


def accuracy(network: Any, rows: Rows, *, batch_size: int = 256, device: str = "cpu") -> float:
    """Share of right classes."""
    right = 0
    network.eval()
    with torch.inference_mode():
        for inputs, labels in ordered(rows, batch_size):
            found: Tensor = network(inputs.to(device)).argmax(1).cpu()
            right += int((found == labels).sum())
    return right / len(rows)


def recalibrate(network: torch.nn.Module, rows: Rows, *, batch_size: int = 256, device: str = "cpu") -> None:
    """Set BatchNorm's running statistics to those of ``rows``: a path's own, where weights were shared by many."""
    norms = [module for module in network.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    momenta = [module.momentum for module in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # a plain mean over batches
    network.train()
    with torch.no_grad():
        for inputs, *_ in ordered(rows, batch_size):
            if len(inputs) > 1:
                network(inputs.to(device))
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
    network.eval()
