"""Tuning of one slice of an InstaTune super-network by itself, taught by the full network.

InstaTune returns slices as they are; a slice that has been chosen has weights of its own from then on and is no longer
held back by the others (choice). loss = alpha CE(s) + (1 - alpha) KL(s, S), S the tuned network of full size.
Checked in tests/search/test_instatune.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ontarget.errors import SettingError
from ontarget.search.instatune import divergence, linear_schedule, make_optimizer
from ontarget.search.rows import Rows, batch_count, batches
from ontarget.values import Context


def tune_slice(
    network: Any,
    train: Rows,
    *,
    teacher: Callable[[Tensor, Tensor], Tensor] | None,
    epochs: int,
    alpha: float = 0.3,
    temperature: float = 1.0,
    batch_size: int = 32,
    learning_rate: float = 5e-5,
    head_factor: float = 10.0,
    weight_decay: float = 0.01,
    warm_up: float = 0.1,
    what: str = "tuning a slice",
    context: Context = Context(),
) -> list[float]:
    """Tune a plain encoder (changed, left in evaluation mode); the loss of each epoch.

    network: a `SlimBert` or `SlimLlama`. train: rows of (input_ids, attention_mask, labels). teacher: scores (N, C) of
    the full network, on ``context.device``; without one the labels alone teach: ordinary fine-tuning. what: for the
    progress. Settings as in `instatune`. Ends after the step in which ``context.deadline`` passes. Raises SettingError.
    """
    if not 0 <= alpha <= 1 or temperature <= 0 or epochs < 1:
        raise SettingError(
            f"alpha is {alpha}, temperature {temperature}, epochs {epochs}.",
            allowed="alpha in [0, 1], a temperature above 0, 1 epoch or more",
        )
    torch.manual_seed(context.seed)
    network.to(context.device).train()
    optimizer = make_optimizer(network, learning_rate, head_factor, weight_decay)
    total = epochs * batch_count(len(train), batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, linear_schedule(total, warm_up))
    curve: list[float] = []
    done, late = 0, False
    for epoch in range(epochs):
        losses = []
        for *inputs, labels in batches(train, batch_size, seed=context.seed, epoch=epoch):
            ids, mask, labels = (value.to(context.device) for value in (*inputs, labels))
            scores = network(ids, mask)
            loss = F.cross_entropy(scores, labels)
            if teacher is not None:
                with torch.no_grad():
                    taught = teacher(ids, mask)
                loss = alpha * loss + (1 - alpha) * divergence(scores, taught, temperature)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            done += 1
            if context.progress is not None:
                context.progress(done, total, what)
            late = context.deadline is not None and time.monotonic() > context.deadline
            if late:
                break
        curve.append(float(np.mean(losses)))
        if late:
            break
    network.eval()
    return curve
