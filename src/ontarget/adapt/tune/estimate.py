"""What a fine-tuning will cost, in seconds and memory, before it is paid for."""

from __future__ import annotations

import time

import numpy as np
import torch

from ontarget.adapt.tune.batches import Batches
from ontarget.adapt.tune.lora import remove_lora
from ontarget.adapt.tune.objective import autocast, loss_of, precision_of
from ontarget.adapt.tune.peak_memory import peak_memory_mb, reset_peak_memory
from ontarget.adapt.tune.trainable import make_optimizer, trainable
from ontarget.adapt.tune.tuned_network import build
from ontarget.values import Context, Examples, Loaded

SAMPLE_BATCHES = 64  # real batches of which the widest and two usual ones are run (choice)
SCORING_COST = 0.4  # of a row that is scored, beside one that is trained on (choice)


def estimate(
    loaded: Loaded,
    train: Examples,
    *,
    outputs: int,
    kind: str,
    mode: str,
    batch_size: int,
    epochs: int,
    validation_rows: int = 0,
    context: Context = Context(),
) -> tuple[float, float]:
    """(seconds, peak memory in 2**20 bytes) that `finetune` would take; ``loaded`` stays as it was.

    validation_rows: rows that are scored after every epoch.

    Three real batches are run: the one with the most tokens, which sets the memory and warms up, and two usual ones,
    whose time is scaled to the epoch by tokens (texts) or rows. Memory is that of this process, as in `finetune`.
    """
    generator = np.random.default_rng(context.seed)
    rows = generator.permutation(len(train))[: SAMPLE_BATCHES * batch_size]
    batches = Batches(loaded.preprocess, train.take(rows), batch_size=batch_size)
    plan = batches.plan(0)
    lengths = np.ones(len(rows)) if batches.lengths is None else batches.lengths
    sizes = np.array([len(chosen) * lengths[chosen].max() for chosen in plan])
    by_size = np.argsort(sizes, kind="stable")
    usual = [by_size[len(by_size) // 2], by_size[max(0, len(by_size) // 2 - 1)]]

    reset_peak_memory(context.device)
    network = build(loaded, train, outputs=outputs, kind=kind, mode=mode, probe=False, context=context)
    network.to(context.device).train()
    trained = trainable(network, mode)
    engine = make_optimizer(trained, "adamw", learning_rate=0.0, weight_decay=0.0)
    before = [value.detach().clone() for value in network.buffers()]
    precision = precision_of(context.device, "auto")
    times = []
    for at in (by_size[-1], *usual):
        start = time.monotonic()
        tensors = [value.to(context.device) for value in batches.tensors(plan[at])]
        targets = batches.examples.targets[plan[at]]
        with autocast(context.device, precision):
            loss = loss_of(network(*tensors), targets, kind=kind, head=network.head)
        torch.autograd.backward(loss)
        engine.step()
        engine.zero_grad(set_to_none=True)
        if context.device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.monotonic() - start)
    memory_mb = peak_memory_mb(context.device)
    with torch.no_grad():
        for value, old in zip(network.buffers(), before, strict=True):
            value.copy_(old)
    remove_lora(network)
    network.cpu().eval().requires_grad_(True)
    per_unit = sum(times[1:]) / float(sizes[usual].sum())
    epoch_s = per_unit * float(sizes.sum()) * len(train) / len(rows)
    return (1 + SCORING_COST * validation_rows / len(train)) * epoch_s * epochs, memory_mb
