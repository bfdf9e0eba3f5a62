"""The epochs of a fine-tuning: steps over batches, from and to any position, and their judgement."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ontarget.adapt.metric import metric_value
from ontarget.adapt.predict import scores_of_batches
from ontarget.adapt.tune.batches import Batches
from ontarget.adapt.tune.checkpoint import Progress, snapshot
from ontarget.adapt.tune.frozen_part import FrozenPart
from ontarget.adapt.tune.objective import autocast, loss_of
from ontarget.errors import RunError
from ontarget.values import Array, Context, Examples

GRADIENT_NORM = 1.0  # gradients are clipped to this norm (choice)


@dataclass(frozen=True)
class Training:
    """What an epoch works with.

    changing: parameters and statistics that training changes, by name. keep_best: the weights of the best epoch are
    remembered, not those of the last.
    """

    network: torch.nn.Module
    batches: Batches
    engine: torch.optim.Optimizer
    context: Context
    changing: Mapping[str, Tensor]
    schedule: Any
    scaler: Any
    frozen_modules: Sequence[torch.nn.Module]
    lower: FrozenPart
    precision: torch.dtype | None
    accumulation: int
    kind: str
    class_weights: Tensor | None
    label_smoothing: float
    keep_best: bool

    def epoch(self, progress: Progress) -> bool:
        """Train from ``progress`` to the end of its epoch; False where the deadline came first."""
        self.network.train()
        for module in self.frozen_modules:
            module.eval()
        if progress.batch == 0:
            torch.manual_seed(self.context.seed + 7919 * (progress.epoch + 1))
        plan = self.batches.plan(progress.epoch)
        trained = [parameter for group in self.engine.param_groups for parameter in group["params"]]
        while progress.batch < len(plan):
            for rows in plan[progress.batch : progress.batch + self.accumulation]:
                loss = self._backward(rows, progress, len(plan))
                progress.loss_sum += loss * len(rows)
                progress.rows += len(rows)
                progress.batch += 1
                if self.context.progress:
                    self.context.progress(progress.batch, len(plan), f"epoch {progress.epoch + 1}")
            self.scaler.unscale_(self.engine)
            torch.nn.utils.clip_grad_norm_(trained, GRADIENT_NORM)
            self.scaler.step(self.engine)
            self.scaler.update()
            self.schedule.step()
            self.engine.zero_grad(set_to_none=True)
            late = self.context.deadline is not None and time.monotonic() > self.context.deadline
            if late and progress.batch < len(plan):
                return False
        return True

    def _backward(self, rows: Array, progress: Progress, count: int) -> float:
        tensors = self.batches.tensors(rows, progress.epoch)
        targets = self.batches.examples.targets[rows]
        with self.lower.replayed(rows), autocast(self.context.device, self.precision):
            scores = self.network(*(tensor.to(self.context.device) for tensor in tensors))
            loss = loss_of(
                scores, targets, kind=self.kind, head=self.network.head, class_weights=self.class_weights,
                label_smoothing=self.label_smoothing,
            )  # fmt: skip
            value = float(loss.detach())
            if not math.isfinite(value):
                raise self._not_finite(f"loss is {value}", rows, progress, count)
            # Accumulated batches weigh by their rows, so that they equal one large batch.
            share = len(rows) / (self.batches.batch_size * self.accumulation)
            torch.autograd.backward(self.scaler.scale(loss * share))
        return value

    def _not_finite(self, what: str, rows: Array, progress: Progress, count: int) -> RunError:
        positions = ", ".join(str(int(row)) for row in self.batches.examples.rows[rows][:5])
        more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
        return RunError(
            f"The {what} in epoch {progress.epoch + 1}, batch {progress.batch + 1} of {count} "
            f"(learning rate {self.engine.param_groups[0]['lr']:.2g}, rows {positions}{more}).",
            option="learning_rate",
            next_step="lower the learning rate, or look for extreme targets or inputs in these rows",
        )

    def judge(self, progress: Progress, held: Batches, validation: Examples, metric: str) -> float:
        """The metric on validation rows, noted with the weights that reached it: the best or the last ones.

        In float32 whatever the training's precision, as the kept network will run.
        """
        scores = scores_of_batches(
            self.network, ((rows, held.tensors(rows)) for rows in held.ordered()), len(validation), self.context
        )
        if not np.isfinite(scores).all():
            raise RunError(
                f"The scores of validation rows are not finite after epoch {progress.epoch}.",
                option="learning_rate",
                next_step="lower the learning rate",
            )
        value = metric_value(metric, scores, validation.targets)
        progress.note(value, scores, self.changing, whatever=not self.keep_best)
        return value

    def checkpoint(self, progress: Progress, settings: Mapping[str, Any]) -> bytes:
        """The state to go on from."""
        return snapshot(
            progress, self.changing, self.engine, self.schedule, settings=settings, scaler=self.scaler.state_dict()
        )


def batch_norms(network: torch.nn.Module) -> list[torch.nn.Module]:
    return [module for module in network.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]


def changing_buffers(network: torch.nn.Module, *, frozen: bool) -> dict[str, Tensor]:
    """The statistics that change in training, by name."""
    if frozen:
        return {}
    norms = set(batch_norms(network))
    return {
        f"{name}.{key}": buffer
        for name, module in network.named_modules()
        if module in norms
        for key, buffer in module.named_buffers(recurse=False)
    }
