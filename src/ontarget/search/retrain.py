"""Training of a found network from scratch, scoring it, and its BatchNorm statistics once its weights are given."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ontarget.search.rows import Rows, batches, ordered
from ontarget.values import Array, Context


def retrain(
    network: torch.nn.Module,
    train: Rows,
    *,
    epochs: int,
    batch_size: int = 64,
    learning_rate: float = 0.05,
    weight_decay: float = 4e-5,
    label_smoothing: float = 0.1,
    what: str = "training the found network",
    context: Context = Context(),
) -> list[float]:
    """Train a classifier by SGD with Nesterov momentum 0.9 on a cosine from ``learning_rate``; loss of each epoch.

    ``network`` is changed and left in evaluation mode.
    """
    torch.manual_seed(context.seed)
    network.to(context.device).train()
    optimizer = torch.optim.SGD(
        network.parameters(), lr=learning_rate, momentum=0.9, nesterov=True, weight_decay=weight_decay
    )
    per_epoch = math.ceil(len(train) / batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs * per_epoch))
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=label_smoothing)
    curve = []
    for epoch in range(epochs):
        losses = []
        for images, labels in batches(train, batch_size, seed=context.seed, epoch=epoch):
            loss = criterion(network(images.to(context.device)), labels.to(context.device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
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
