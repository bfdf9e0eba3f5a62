"""Proxy tasks of the optimizer search: small networks on the user's own arrays, in sizes 1x, 10x and 100x.

Chen et al., "Symbolic Discovery of Optimization Algorithms", NeurIPS 2023, arXiv 2302.06675, section 2: programs are
searched on proxies trained in minutes and chosen on meta-validation tasks 10 and 100 times as large. Official code:
google/automl, folder hero (the search space; its proxies are not published).
Claim: a rule that only ever saw the proxy may fail on the target; facing larger tasks selects rules that last.
Left out: the paper's transformers and vision proxies; any object with ``name`` and ``fitness`` can stand in for ours.
Checked in tests/search/test_symbolic_optimizer.py (gradients against autograd, AdamW against torch.optim).

The network is a multilayer perceptron with ReLU. All its parameters lie in one vector and the gradient is written out,
so that an elementwise rule is one pass over memory: about 0.1 s a training at 1x. Size s trains sqrt(s) times the
steps, on sqrt(s) times the rows where there are so many, at sqrt(s) times the width (choice): s times the work.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ontarget.errors import DataError, SettingError
from ontarget.search.optimizer_program import Rule
from ontarget.values import Array

LAYERS = 2  # hidden ones (choice)
CHECKED = 10  # steps between two looks at whether the loss is finite
CLIP = 5.0  # standard deviations, of a standardised input (choice)
WORST = -math.inf


class Candidate(Protocol):
    """What can be trained with: a `Program`, or `AdamW`."""

    @property
    def digest(self) -> str: ...

    def rule(self) -> Rule: ...


class ProxyTask(Protocol):
    """name: says what the task is, data included. fitness: higher is better, ``-inf`` where training failed."""

    @property
    def name(self) -> str: ...

    def fitness(self, candidate: Candidate, rate: float) -> float: ...


@dataclass(frozen=True)
class AdamW:
    """torch.optim.AdamW's update with its bias correction, which no program without a counter can express."""

    rate: float
    decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)

    @property
    def digest(self) -> str:
        return f"adamw {self.rate!r} {self.decay!r} {self.betas!r}"

    def rule(self) -> Rule:
        """The update of one training; it counts its own steps."""
        first, second, taken = *self.betas, [0]

        def train(
            w: Tensor, g: Tensor, v1: Tensor, v2: Tensor, lr: Tensor, sizes: Sequence[int]
        ) -> tuple[Tensor, Tensor, Tensor]:
            taken[0] += 1
            v1, v2 = v1.lerp(g, 1 - first), (v2 * second).addcmul_(g, g, value=1 - second)
            root = (v2 / (1 - second ** taken[0])).sqrt_().add_(1e-8)
            update = (v1 / (1 - first ** taken[0])).div_(root).add_(w, alpha=self.decay).mul_(lr * self.rate)
            return update, v1, v2

        return train


@dataclass(frozen=True)
class Trained:
    """What the validation rows say: mean loss, and accuracy (R2 for regression). NaN where training failed."""

    loss: float
    accuracy: float


class MLPTask:
    """One network on one set of rows.

    inputs: (N, D) float32, targets: (N,) int64 classes 0..C-1 or float32; validation_inputs, validation_targets: of
    the rows that judge. classes: C, or 0 for regression. width, steps, batch: of the training; seeds: one training
    each, the same for every candidate, so that they differ by their rule alone. Fitness is minus the mean loss over
    the seeds (choice). The rate falls along a cosine from its peak to 0.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        validation_inputs: Tensor,
        validation_targets: Tensor,
        *,
        classes: int,
        width: int,
        steps: int,
        batch: int,
        seeds: Sequence[int],
    ) -> None:
        self.inputs, self.targets, self.classes = inputs, targets, classes
        self.validation_inputs, self.validation_targets = validation_inputs, validation_targets
        self.steps, self.batch, self.seeds = steps, min(batch, len(inputs)), tuple(seeds)
        self.widths = (inputs.shape[1], *[width] * LAYERS, classes or 1)
        shapes = [shape for a, b in zip(self.widths, self.widths[1:]) for shape in ((b, a), (b,))]
        self.shapes, self.sizes = shapes, [math.prod(shape) for shape in shapes]
        content = [part.numpy().tobytes() for part in (inputs, targets, validation_inputs, validation_targets)]
        data = hashlib.sha256(b"".join(content)).hexdigest()[:12]
        self.name = (
            f"perceptron {'-'.join(map(str, self.widths))}, {len(inputs)} rows {data}, {steps} steps of {self.batch}, "
            f"seeds {','.join(map(str, self.seeds))}"
        )

    def fitness(self, candidate: Candidate, rate: float = 1.0) -> float:
        """Minus the mean validation loss with ``rate`` as the peak of lr; `WORST` as soon as it is not finite."""
        losses = []
        for seed in self.seeds:
            losses.append(self.train(candidate, rate, seed).loss)
            if not math.isfinite(losses[-1]):
                return WORST
        return -float(np.mean(losses))

    @torch.no_grad()
    def train(self, candidate: Candidate, rate: float, seed: int) -> Trained:
        """Train once and judge on the validation rows."""
        rule = candidate.rule()
        weights = self._initial(seed)
        layers, slopes = self._views(weights), torch.zeros_like(weights)
        gradients = self._views(slopes)
        first, second = torch.zeros_like(weights), torch.zeros_like(weights)
        generator, order = np.random.default_rng(seed), torch.zeros(0, dtype=torch.int64)
        for step in range(self.steps):
            if len(order) < self.batch:
                order = torch.cat([order, torch.from_numpy(generator.permutation(len(self.inputs)))])
            rows, order = order[: self.batch], order[self.batch :]
            loss = self._backward(layers, gradients, self.inputs[rows], self.targets[rows])
            if step % CHECKED == 0 and not math.isfinite(float(loss)):
                return Trained(math.nan, math.nan)
            lr = torch.tensor(rate * 0.5 * (1 + math.cos(math.pi * step / self.steps)))
            update, first, second = rule(weights, slopes, first, second, lr, self.sizes)
            weights -= update
        return self._judged(layers)

    def _initial(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        scales = [math.sqrt(2 / shape[1]) if len(shape) == 2 else 0.0 for shape in self.shapes]  # He's; biases 0
        parts = zip(self.sizes, scales, strict=True)
        return torch.cat([torch.randn(count, generator=generator) * scale for count, scale in parts])

    def _views(self, flat: Tensor) -> list[Tensor]:
        return [part.view(shape) for part, shape in zip(torch.split(flat, self.sizes), self.shapes)]

    def _forward(self, layers: list[Tensor], inputs: Tensor) -> list[Tensor]:
        """Inputs, then the activations of every layer; the last are the scores (B, C or 1)."""
        seen = [inputs]
        for at in range(0, len(layers), 2):
            seen.append(torch.addmm(layers[at + 1], seen[-1], layers[at].T))
            if at < len(layers) - 2:
                seen[-1].relu_()
        return seen

    def _backward(self, layers: list[Tensor], gradients: list[Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss; its gradient goes into ``gradients``."""
        seen = self._forward(layers, inputs)
        loss, delta = self._loss(seen[-1], targets)
        for at in range(len(layers) - 2, -1, -2):
            before = seen[at // 2]
            torch.mm(delta.T, before, out=gradients[at])
            torch.sum(delta, 0, out=gradients[at + 1])
            if at:
                delta = (delta @ layers[at]).mul_(before > 0)
        return loss

    def _loss(self, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss (cross-entropy, or half the squared error) and its derivative by the scores."""
        if not self.classes:
            off = scores[:, 0] - targets
            return 0.5 * off.square().mean(), (off / len(off))[:, None]
        logs = torch.log_softmax(scores, 1)
        rows = torch.arange(len(scores))
        delta = logs.exp()
        delta[rows, targets] -= 1
        return -logs[rows, targets].mean(), delta.div_(len(scores))

    def _judged(self, layers: list[Tensor]) -> Trained:
        scores, targets = self._forward(layers, self.validation_inputs)[-1], self.validation_targets
        loss = float(self._loss(scores, targets)[0])
        if not math.isfinite(loss):
            return Trained(math.nan, math.nan)
        if self.classes:
            return Trained(loss, float((scores.argmax(1) == targets).float().mean()))
        return Trained(loss, 1 - 2 * loss / max(float(targets.var(correction=0)), 1e-12))


def mlp_tasks(
    inputs: Array,
    targets: Array,
    validation_inputs: Array,
    validation_targets: Array,
    *,
    sizes: Sequence[float] = (1, 10, 100),
    rows: int = 1000,
    width: int = 32,
    steps: int = 100,
    batch: int = 64,
    repeats: int = 4,
    seed: int = 0,
) -> tuple[MLPTask, ...]:
    """The proxy task and the larger ones that choose among its winners, smallest first.

    inputs: (N, D) features, or (N, H, W[, channels]) images of any number type. targets: (N,) int for classes, float
    for regression. validation_*: rows of their own; with several sizes the first half judges the smallest task, the
    second half the others, since a search wears out the rows that it looks at (choice). rows, width, steps: of size 1,
    each grows with the square root of the size; repeats: trainings an evaluation at size 1, half at the others
    (choice).
    Features are standardised by column, images as a whole, with the training rows' mean and deviation.
    Raises DataError: no rows, NaN, lengths or shapes that do not fit, a validation class that training rows lack;
    SettingError: a number below 1.
    """
    for name, value in {"rows": rows, "width": width, "steps": steps, "batch": batch, "repeats": repeats}.items():
        if value < 1:
            raise SettingError(f"{name} is {value}.", allowed="1 or more", option=name)
    if not sizes or list(sizes) != sorted(sizes) or sizes[0] < 1:
        raise SettingError(f"sizes are {list(sizes)}.", allowed="numbers from 1 on, rising", option="sizes")
    parts = [np.asarray(part) for part in (inputs, targets, validation_inputs, validation_targets)]
    (x, y, held_x, held_y), shape = parts, parts[0].shape[1:]
    if len(x) != len(y) or len(held_x) != len(held_y) or not len(x) or len(held_x) < 2 or held_x.shape[1:] != shape:
        raise DataError(
            f"inputs are {x.shape} with {y.shape} targets, validation {held_x.shape} with {held_y.shape}.",
            allowed="as many targets as rows, one row or more, 2 or more to validate on, rows of one shape",
        )
    if y.ndim != 1 or held_y.ndim != 1 or x.ndim < 2:
        raise DataError(f"inputs are {x.shape}, targets {y.shape}.", allowed="(N, ...) and (N,)")
    x, held_x = _standardised(x, held_x)
    classes = 0
    if np.issubdtype(y.dtype, np.integer):
        names, y = np.unique(y, return_inverse=True)
        if not np.isin(held_y, names).all():
            raise DataError("The validation rows have a class that the training rows lack.")
        held_y, classes = np.searchsorted(names, held_y), len(names)
    elif np.isfinite(y).all() and np.isfinite(held_y).all():
        middle, spread = float(y.mean()), float(y.std()) or 1.0
        y, held_y = (y.astype(np.float32) - middle) / spread, (held_y.astype(np.float32) - middle) / spread
    else:
        raise DataError("The targets hold NaN or infinity.", next_step="drop these rows")
    kind = torch.int64 if classes else torch.float32
    order = np.random.default_rng(seed).permutation(len(x))
    half = len(held_x) // 2
    tasks = []
    for at, size in enumerate(sizes):
        factor = math.sqrt(size)
        taken = order[: max(1, round(rows * factor))]
        judge = slice(0, half if len(sizes) > 1 else None) if at == 0 else slice(half, None)
        tasks.append(
            MLPTask(
                torch.from_numpy(x[taken]), torch.as_tensor(y[taken]).to(kind),
                torch.from_numpy(held_x[judge]), torch.as_tensor(held_y[judge]).to(kind),
                classes=classes, width=round(width * factor), steps=round(steps * factor), batch=batch,
                seeds=[1000 * seed + number for number in range(repeats if at == 0 else max(1, repeats // 2))],
            )
        )  # fmt: skip
    return tuple(tasks)


def _standardised(inputs: Array, others: Array) -> tuple[Array, Array]:
    """Both as (N, D) float32 with the first one's mean and deviation."""
    axis = 0 if inputs.ndim == 2 else None
    flat, held = (part.reshape(len(part), -1).astype(np.float32) for part in (inputs, others))
    if not (np.isfinite(flat).all() and np.isfinite(held).all()):
        raise DataError("The inputs hold NaN or infinity.", next_step="fill or drop these rows")
    middle, spread = flat.mean(axis=axis), flat.std(axis=axis)
    spread = np.where(spread > 1e-6, spread, 1.0)
    first, second = (np.clip((part - middle) / spread, -CLIP, CLIP).astype(np.float32) for part in (flat, held))
    return first, second
