"""Training of one task's network from scratch, with a checkpoint after each epoch.

AdamW and one cycle of the learning rate, as in claim 11 (choice). Checked in tests/search/test_search_tasks.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ontarget.data.vision_tasks import IGNORED
from ontarget.search.detection_maps import detection_loss
from ontarget.search.rows import Rows, batch_count, batches
from ontarget.search.training_state import load_state, save_state
from ontarget.values import Context

LEARNING_RATE, WEIGHT_DECAY = 5e-3, 1e-3  # (choice)


def task_loss(kind: str, outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean loss of a batch."""
    if kind == "detection":
        return detection_loss(outputs, targets)
    if kind == "classification":
        return torch.nn.functional.cross_entropy(outputs, targets)
    total = torch.nn.functional.cross_entropy(outputs, targets, ignore_index=IGNORED, reduction="sum")
    return total / (targets != IGNORED).sum().clamp(min=1)  # a batch may have no labelled pixel


def train_task(
    network: torch.nn.Module,
    rows: Rows,
    kind: str,
    *,
    epochs: int,
    batch_size: int,
    what: str = "training the network",
    checkpoint: Path | None = None,
    context: Context = Context(),
) -> list[float]:
    """Train ``network`` (changed, left in evaluation mode); the loss of each epoch.

    kind: classification, segmentation or detection. checkpoint: a file in which the state is kept after each epoch, and
    from which a killed training goes on to the result that it would have had.
    """
    network.to(context.device).train()
    engine = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    total = epochs * batch_count(len(rows), batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(engine, LEARNING_RATE, total_steps=total)
    generator = np.random.default_rng(context.seed)  # part of the state's format; the order is fixed by seed and epoch
    curve: list[float] = []
    stored = load_state(checkpoint, generator)
    if stored is not None:
        network.load_state_dict(stored["network"])
        engine.load_state_dict(stored["engine"])
        schedule.load_state_dict(stored["schedule"])
        curve = stored["curve"]
    for epoch in range(len(curve), epochs):
        losses = []
        for inputs, targets in batches(rows, batch_size, seed=context.seed, epoch=epoch):
            loss = task_loss(kind, network(inputs.to(context.device)), targets.to(context.device))
            engine.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            engine.step()
            schedule.step()
            losses.append(float(loss.detach()))
        curve.append(float(np.mean(losses)))
        if checkpoint is not None:
            save_state(
                checkpoint, generator, network=network.state_dict(), engine=engine.state_dict(),
                schedule=schedule.state_dict(), curve=curve,
            )  # fmt: skip
        if context.progress is not None:
            context.progress(epoch + 1, epochs, what)
    network.eval()
    return curve
