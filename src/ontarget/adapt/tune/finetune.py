"""Fine-tuning of an encoder with a linear head: all weights, low-rank adapters, or the last blocks.

Standard practice, assembled: Kumar, Raghunathan, Jones, Ma, Liang, "Fine-tuning can distort pretrained features and
underperform out-of-distribution", ICLR 2022 (arXiv 2202.10054) for the head that starts from a linear probe; Hu et al.,
"LoRA", ICLR 2022 (arXiv 2106.09685), through peft; AdamW (Loshchilov, Hutter, ICLR 2019) or Lion.
Left out: several devices at once.
Checked: tests/adapt/test_finetune.py (resuming equals not stopping, accumulation equals the large batch, merged
adapters equal unmerged ones).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ontarget.adapt.tune.batches import Batches
from ontarget.adapt.tune.checkpoint import Progress, restore
from ontarget.adapt.tune.estimate import estimate
from ontarget.adapt.tune.frozen_part import FrozenPart
from ontarget.adapt.tune.linear_head import LinearHead
from ontarget.adapt.tune.lora import Adapter, adapter_of, merge_lora
from ontarget.adapt.tune.objective import balanced_weights, precision_of
from ontarget.adapt.tune.peak_memory import peak_memory_mb, reset_peak_memory
from ontarget.adapt.tune.trainable import Mode, blocks_of, make_optimizer, trainable, warm_up_cosine
from ontarget.adapt.tune.training import Training, batch_norms, changing_buffers
from ontarget.adapt.tune.tuned_network import build, network_from_state
from ontarget.errors import DataError, SettingError
from ontarget.values import Array, Context, Examples, Loaded

__all__ = ["FinetuneResult", "build", "estimate", "finetune", "network_from_state"]

FEW_ROWS = 5000  # up to here BatchNorm keeps the source's statistics (choice)
SCORING_ROWS = 32  # rows of a batch that is only scored


@dataclass(frozen=True)
class FinetuneResult:
    """What fine-tuning gave.

    network: encoder and head in evaluation mode on the CPU, adapters merged; scores (N, C) or (N, 1) as outputs.
    state: the tensors that differ from the source, for `network_from_state`. checkpoint: bytes from which training
    goes on; see `finetune`. curve: a mapping an epoch: epoch, train_loss, validation. adapter: mode "lora" alone.
    """

    network: torch.nn.Module
    state: Mapping[str, Tensor]
    checkpoint: bytes
    curve: tuple[Mapping[str, float], ...]
    validation_scores: Array
    validation_metric: float
    seconds: float
    peak_memory_mb: float
    stopped_reason: str
    adapter: Adapter | None = None

    @property
    def state_bytes(self) -> bytes:
        """``state`` as safetensors."""
        from safetensors.torch import save

        content: bytes = save({name: value.contiguous() for name, value in self.state.items()})
        return content


def finetune(
    loaded: Loaded,
    train: Examples,
    validation: Examples | None,
    *,
    outputs: int,
    kind: Literal["classification", "regression"],
    metric: str,
    mode: Mode = "full",
    total_epochs: int = 5,
    stop_epoch: int | None = None,
    learning_rate: float = 3e-5,
    weight_decay: float = 0.01,
    batch_size: int = 16,
    gradient_accumulation: int = 1,
    optimizer: Literal["adamw", "lion"] = "adamw",
    class_weight: Literal["none", "balanced"] = "none",
    label_smoothing: float = 0.0,
    augment: str = "none",
    lora_rank: int = 8,
    lora_alpha: float | None = None,
    lora_dropout: float = 0.0,
    lora_targets: Sequence[str] = (),
    last_blocks: int = 2,
    probe: bool = True,
    head_init: LinearHead | None = None,
    head_factor: float = 10.0,
    freeze_statistics: bool | None = None,
    mixed_precision: Literal["auto", "bf16", "fp16", "off"] = "auto",
    early_stopping: bool = True,
    patience: int = 3,
    resume_from: bytes | None = None,
    context: Context = Context(),
) -> FinetuneResult:
    """Train encoder and head on ``train``; the weights of the best epoch on ``validation``, or the last, are returned.

    ``loaded.encoder`` is changed. Regression targets are standardised inside; scores are in their own units.

    mode: "full" trains every weight but word embeddings; "lora" adapters (``lora_rank`` >= 1, ``lora_alpha``,
        ``lora_dropout``, ``lora_targets``: see `lora.add_lora`); "last" the ``last_blocks`` last blocks, the rest
        being computed once where nothing is augmented. The head is trained in every mode.
    total_epochs: the length of the schedule (linear warm-up, then cosine). stop_epoch: where this call ends; its
        ``checkpoint``, given as ``resume_from``, goes on as if it had not ended: bit for bit on a CPU.
    learning_rate > 0, weight_decay >= 0: AdamW's; for "lion" they are converted. The head learns ``head_factor``
        times as fast. Biases and norms are not decayed.
    batch_size: rows of one forward pass; ``gradient_accumulation`` passes make one step.
    class_weight "balanced": rows count by the inverse share of their class. label_smoothing: in [0, 1).
    augment: words such as "flip" or "randaugment-2-9+flip", images only; see `augment.image_augmentation`.
    probe: the head starts from a linear probe on the frozen features; head_init: from this one instead.
    freeze_statistics: BatchNorm uses and keeps the source's statistics; by default up to FEW_ROWS rows.
    mixed_precision: see `objective.precision_of`.
    early_stopping: ends after ``patience`` epochs without a better validation metric, and returns the weights of the
        best epoch. False: all epochs are run, and the last one's weights are returned, which is the better choice
        where the schedule is short and ``validation`` has a few hundred rows. Without ``validation`` the last epoch's
        weights are returned and the scores are empty.
    ``context.deadline`` ends the training after the step in which it passes, mid-epoch if need be; the checkpoint goes
    on from there, and the weights are the best (last) complete epoch's, or the last step's where none is complete.

    Raises RunError: a loss that is not finite, with its step, rate and rows; a checkpoint of other settings.
    SettingError: options out of range. DataError: no rows, or a head of another shape.
    """
    start = time.monotonic()
    _check(train, total_epochs, batch_size, gradient_accumulation, learning_rate, weight_decay, label_smoothing, mode)
    precision = precision_of(context.device, mixed_precision)
    reset_peak_memory(context.device)
    frozen = len(train) <= FEW_ROWS if freeze_statistics is None else freeze_statistics
    settings: dict[str, Any] = {
        "mode": mode, "total_epochs": total_epochs, "learning_rate": learning_rate, "weight_decay": weight_decay,
        "batch_size": batch_size, "gradient_accumulation": gradient_accumulation, "optimizer": optimizer,
        "class_weight": class_weight, "label_smoothing": label_smoothing, "augment": augment,
        "freeze_statistics": frozen, "rows": len(train), "seed": context.seed,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[context.device] if context.device.startswith("cuda") else []):
        torch.manual_seed(context.seed)
        network = build(
            loaded, train, outputs=outputs, kind=kind, mode=mode, lora_rank=lora_rank, lora_alpha=lora_alpha,
            lora_dropout=lora_dropout, lora_targets=lora_targets, probe=probe and resume_from is None,
            head_init=head_init if resume_from is None else None, class_weight=class_weight, context=context,
        ).to(context.device)  # fmt: skip
        trained = trainable(network, mode, last_blocks=last_blocks)
        batches = Batches(loaded.preprocess, train, batch_size=batch_size, augment=augment, seed=context.seed)
        lower = blocks_of(network.encoder)[:-last_blocks] if mode == "last" else []
        engine = make_optimizer(
            trained, optimizer, learning_rate=learning_rate, weight_decay=weight_decay, head_factor=head_factor
        )
        steps = math.ceil(len(train) / (batch_size * gradient_accumulation))
        weighted = kind == "classification" and class_weight == "balanced"
        training = Training(
            network, batches, engine, context,
            changing={**trained, **changing_buffers(network, frozen=frozen)},
            schedule=torch.optim.lr_scheduler.LambdaLR(engine, warm_up_cosine(total_epochs * steps)),
            scaler=torch.amp.GradScaler("cuda", enabled=precision == torch.float16),  # type: ignore[attr-defined]
            frozen_modules=[*lower, *(batch_norms(network) if frozen else ())],
            lower=FrozenPart(network, lower, batches, context.device),
            precision=precision, accumulation=gradient_accumulation, kind=kind,
            class_weights=balanced_weights(train.targets, outputs).to(context.device) if weighted else None,
            label_smoothing=label_smoothing, keep_best=early_stopping,
        )  # fmt: skip
        progress = Progress()
        if resume_from is not None:
            progress, scaler = restore(resume_from, training.changing, engine, training.schedule, settings=settings)
            training.scaler.load_state_dict(scaler)
        held = None
        if validation is not None:
            held = Batches(loaded.preprocess, validation, batch_size=SCORING_ROWS)
        reason = "all epochs were run"
        checkpoint = b""
        while progress.epoch < (stop_epoch or total_epochs):
            if validation is not None and early_stopping and progress.waited >= patience:
                reason = f"no better epoch for {patience} epochs"
                break
            if not training.epoch(progress):
                reason = f"the time was up in epoch {progress.epoch + 1}"
                checkpoint = training.checkpoint(progress, settings)
                if held is not None and validation is not None and not progress.best_state:
                    training.judge(progress, held, validation, metric)
                break
            progress.epoch, progress.batch = progress.epoch + 1, 0
            point = {"epoch": float(progress.epoch), "train_loss": progress.loss_sum / progress.rows}
            progress.loss_sum, progress.rows = 0.0, 0
            if held is not None and validation is not None:
                point["validation"] = training.judge(progress, held, validation, metric)
            progress.curve.append(point)
        checkpoint = checkpoint or training.checkpoint(progress, settings)
    with torch.no_grad():
        for name, value in progress.best_state.items():
            training.changing[name].copy_(value)
    adapter = adapter_of(network.encoder) if mode == "lora" else None
    kept = {name for name in training.changing if ".lora_" not in name}
    kept |= {name for name, _ in network.head.named_buffers(prefix="head")}
    if mode == "lora":
        kept |= set(merge_lora(network))
    network = network.cpu().eval()
    return FinetuneResult(
        network, {name: value for name, value in network.state_dict().items() if name in kept}, checkpoint,
        tuple(progress.curve),
        np.zeros((0, outputs), dtype=np.float32) if progress.best_scores is None else progress.best_scores,
        progress.best, time.monotonic() - start, peak_memory_mb(context.device), reason, adapter,
    )  # fmt: skip


def _check(
    train: Examples,
    epochs: int,
    batch_size: int,
    accumulation: int,
    learning_rate: float,
    weight_decay: float,
    label_smoothing: float,
    mode: str,
) -> None:
    if len(train) == 0 or len(train.targets) != len(train):
        raise DataError(f"Fine-tuning needs labelled rows, got {len(train)} rows and {len(train.targets)} labels.")
    if mode not in ("full", "lora", "last"):
        raise SettingError(f"mode is '{mode}'.", allowed="full, lora, last", option="mode")
    for name, value in (("total_epochs", epochs), ("batch_size", batch_size), ("gradient_accumulation", accumulation)):
        if value < 1:
            raise SettingError(f"{name} is {value}.", allowed="1 or more", option=name)
    if not learning_rate > 0 or not math.isfinite(learning_rate):
        raise SettingError(f"learning_rate is {learning_rate}.", allowed="numbers above 0", option="learning_rate")
    if not weight_decay >= 0:
        raise SettingError(f"weight_decay is {weight_decay}.", allowed="0 or more", option="weight_decay")
    if not 0 <= label_smoothing < 1:
        raise SettingError(f"label_smoothing is {label_smoothing}.", allowed="[0, 1)", option="label_smoothing")
