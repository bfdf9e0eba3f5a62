"""Fine-tuning of an encoder with a linear head: all weights, or low-rank adapters.

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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ontarget.adapt.metric import metric_value
from ontarget.adapt.predict import predict_scores
from ontarget.adapt.tune.assembled import Assembled
from ontarget.adapt.tune.checkpoint import pack, unpack
from ontarget.adapt.tune.lora import add_lora, merge_lora
from ontarget.errors import RunError, SettingError
from ontarget.parts.optimizers.lion import Lion, adamw_to_lion
from ontarget.values import Array, Context, Examples, Loaded

Mode = Literal["full", "lora"]
WARM_UP_SHARE = 0.1  # of all steps (choice)
GRADIENT_NORM = 1.0  # gradients are clipped to this norm (choice)
PROBE_LOGIT = 2.0  # spread of the logits that a probe may start with (choice)
BUCKET_BATCHES = 8  # batches that are sorted by length together (choice)


@dataclass(frozen=True)
class FinetuneResult:
    """network: encoder and head in evaluation mode, adapters merged, scores as outputs.

    state: the tensors that differ from the source. checkpoint: bytes from which training goes on; see `finetune`.
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

    @property
    def state_bytes(self) -> bytes:
        from safetensors.torch import save

        content: bytes = save({name: value.contiguous() for name, value in self.state.items()})
        return content


class Scaled(torch.nn.Module):
    """A head that learns standardised targets and gives them in their own units."""

    def __init__(self, dim: int, outputs: int, *, mean: float = 0.0, spread: float = 1.0) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(dim, outputs)
        self.register_buffer("mean", torch.tensor(float(mean)))
        self.register_buffer("spread", torch.tensor(float(spread)))

    def forward(self, features: Tensor) -> Tensor:
        scores: Tensor = self.linear(features) * self.spread + self.mean
        return scores


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
    probe: bool = True,
    head_factor: float = 10.0,
    early_stopping: bool = True,
    patience: int = 3,
    resume_from: bytes | None = None,
    context: Context = Context(),
) -> FinetuneResult:
    """Train encoder and head on ``train``; the weights of the best epoch on ``validation`` are returned.

    mode: "full" trains every weight but the word-embedding table (choice: it holds half the weights of a small text
        encoder and moves least); "lora" trains rank-``lora_rank`` adapters and the head.
    total_epochs: the length of the schedule (linear warm-up, then cosine). stop_epoch: where this call ends; its
        ``checkpoint``, given as ``resume_from``, goes on as if it had not ended. learning_rate, weight_decay: AdamW's;
        for "lion" they are converted. The head learns ``head_factor`` times as fast.
    batch_size: rows of one forward pass; gradient_accumulation passes make one step.
    class_weight "balanced": rows count by the inverse share of their class. augment: "none", "flip" or
        "randaugment-N-M" (images). probe: the head starts from a linear probe on the frozen features.
    early_stopping: ends after ``patience`` epochs without a better validation metric. Without ``validation`` the last
        epoch's weights are returned and the scores are empty.
    Raises RunError for a loss that is not finite, with step, rate and rows; SettingError for options out of range.
    """
    start = time.monotonic()
    _check(mode, total_epochs, batch_size, gradient_accumulation, learning_rate)
    torch.manual_seed(context.seed)
    network = build(
        loaded, train, outputs=outputs, kind=kind, mode=mode, lora_rank=lora_rank,
        probe=probe and resume_from is None, class_weight=class_weight, context=context,
    )  # fmt: skip
    network.to(context.device)
    trained = _trainable(network, mode)
    steps_per_epoch = math.ceil(len(train) / (batch_size * gradient_accumulation))
    engine = _optimizer(network, trained, optimizer, learning_rate, weight_decay, head_factor)
    schedule = torch.optim.lr_scheduler.LambdaLR(engine, _warm_up_cosine(total_epochs * steps_per_epoch))
    progress = _Progress()
    if resume_from is not None:
        progress = _restore(resume_from, network, trained, engine, schedule)
    weights = _class_weights(train.targets, outputs, class_weight, context.device) if kind == "classification" else None
    batches = _Batches(loaded, train, batch_size, augment, context.seed)
    reason = "all epochs were run"
    for epoch in range(progress.epoch, stop_epoch or total_epochs):
        torch.manual_seed(context.seed + 7919 * (epoch + 1))  # dropout of an epoch is the same after a resume
        loss, complete = _epoch(
            network, loaded, batches, epoch, engine, schedule, kind, weights, label_smoothing, gradient_accumulation,
            context,
        )  # fmt: skip
        point = {"epoch": float(epoch + 1), "train_loss": loss}
        if validation is not None:
            scores = _validation_scores(network, loaded, validation, context)
            point["validation"] = metric_value(metric, scores, validation.targets)
            progress.note(
                point["validation"], scores, {name: value.detach().cpu().clone() for name, value in trained.items()}
            )
        progress.curve.append(point)
        progress.epoch = epoch + 1
        if not complete:
            reason = f"the time was up in epoch {epoch + 1}"
            break
        if validation is not None and early_stopping and progress.waited >= patience:
            reason = f"no better epoch for {patience} epochs"
            break
    checkpoint = _checkpoint(progress, trained, _buffers(network), engine, schedule)
    if validation is not None and progress.best_state:
        with torch.no_grad():
            for name, value in progress.best_state.items():
                trained[name].copy_(value)
    network = merge_lora(network) if mode == "lora" else network
    state = _difference(network, loaded)
    return FinetuneResult(
        network.cpu().eval(), state, checkpoint, tuple(progress.curve),
        progress.best_scores if progress.best_scores is not None else np.zeros((0, outputs), dtype=np.float32),
        progress.best, time.monotonic() - start, peak_memory_mb(context.device), reason,
    )  # fmt: skip


def build(
    loaded: Loaded,
    train: Examples,
    *,
    outputs: int,
    kind: str,
    mode: str,
    lora_rank: int = 8,
    probe: bool = True,
    class_weight: str = "none",
    context: Context = Context(),
) -> Assembled:
    """Encoder and head before training: the head from a linear probe on frozen features, or at random."""
    mean, spread = 0.0, 1.0
    if kind == "regression":
        mean, spread = float(train.targets.mean()), float(train.targets.std()) or 1.0
    head = Scaled(loaded.dim, outputs, mean=mean, spread=spread)
    if probe:
        from ontarget.adapt.tune.linear_head import linear_head
        from ontarget.pool.features import cached_features
        from ontarget.pool.source import resolve

        features, _, _ = cached_features(resolve(loaded.locator), loaded, train.inputs, context=context)
        found = linear_head(
            np.asarray(features), train.targets, outputs=outputs, kind=kind,  # type: ignore[arg-type]
            class_weight="balanced" if class_weight == "balanced" else None,
        )  # fmt: skip
        # A probe that separates its rows has logits without bound, and gradients as large: it starts tamer.
        logits = np.asarray(features) @ found.weight.T
        tame = min(1.0, PROBE_LOGIT / max(1e-12, float(np.std(logits)))) if kind == "classification" else 1.0
        with torch.no_grad():
            head.linear.weight.copy_(tame * torch.from_numpy(found.weight) / spread)
            head.linear.bias.copy_(tame * (torch.from_numpy(found.bias) - mean) / spread)
    encoder = add_lora(loaded.encoder, rank=lora_rank, seed=context.seed) if mode == "lora" else loaded.encoder
    return Assembled(encoder, head)


def network_from_state(loaded: Loaded, state: Mapping[str, Tensor], *, outputs: int, **_: Any) -> Assembled:
    """The trained network from its source and the tensors that `finetune` gave as ``state``."""
    network = Assembled(loaded.encoder, Scaled(loaded.dim, outputs))
    missing = network.load_state_dict(dict(state), strict=False).unexpected_keys
    if missing:
        raise RunError(f"The trained tensors do not fit {loaded.locator}: {', '.join(missing[:3])}.")
    return network.eval()


def estimate(
    loaded: Loaded,
    train: Examples,
    *,
    outputs: int,
    kind: str,
    mode: str,
    batch_size: int,
    epochs: int,
    context: Context = Context(),
) -> tuple[float, float]:
    """(seconds, peak memory in 2**20 bytes) that `finetune` would take, from two real batches of usual length."""
    network = build(loaded, train, outputs=outputs, kind=kind, mode=mode, probe=False, context=context)
    network.to(context.device).train()
    trained = _trainable(network, mode)
    engine = _optimizer(network, trained, "adamw", 1e-5, 0.0, 1.0)
    count = min(3, math.ceil(len(train) / batch_size))
    rows = np.random.default_rng(context.seed).permutation(len(train))
    times = []
    for at in range(count):
        chosen = train.take(rows[at * batch_size : (at + 1) * batch_size])
        start = time.monotonic()
        tensors = [torch.from_numpy(value).to(context.device) for value in loaded.preprocess(chosen.inputs).values()]
        torch.autograd.backward(_loss(network(*tensors), chosen.targets, kind, network.head, None, 0.0))
        engine.step()
        engine.zero_grad(set_to_none=True)
        times.append((time.monotonic() - start) / len(chosen))
    # The first batch pays for memory that the others find ready; a quarter is added for validation.
    per_row = float(np.median(times[1:] or times))
    return 1.25 * per_row * len(train) * epochs, peak_memory_mb(context.device)


def peak_memory_mb(device: str) -> float:
    """Peak memory of this process so far on the training device, 2**20 bytes."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- inside ------------------------------------------------------------------------------------------------------


class _Progress:
    """What has to survive between calls: epoch, curve, the best weights and their scores."""

    def __init__(self) -> None:
        self.epoch, self.waited, self.best = 0, 0, -math.inf
        self.curve: list[Mapping[str, float]] = []
        self.best_state: dict[str, Tensor] = {}
        self.best_scores: Array | None = None

    def note(self, value: float, scores: Array, state: dict[str, Tensor]) -> None:
        if value > self.best:
            self.best, self.best_scores, self.best_state, self.waited = value, scores, state, 0
        else:
            self.waited += 1


class _Batches:
    """Training batches, the same for the same seed and epoch. Images are decoded once; texts go by length."""

    def __init__(self, loaded: Loaded, train: Examples, batch_size: int, augment: str, seed: int) -> None:
        self.preprocess, self.train, self.batch_size, self.seed = loaded.preprocess, train, batch_size, seed
        self.augment = _augmentation(augment, loaded.preprocess.kind)
        self.images: list[Any] = []
        self.lengths: Array | None = None
        if loaded.preprocess.kind == "image":
            from ontarget.runtime.preprocess import open_image, resize_and_crop

            settings = loaded.preprocess.settings
            self.images = [resize_and_crop(open_image(image, row), settings) for row, image in enumerate(train.inputs)]
        elif loaded.preprocess.kind == "tokens":
            self.lengths = np.array([len(str(text)) for text in train.inputs])

    def epoch(self, number: int) -> Iterator[tuple[list[Tensor], Array]]:
        generator = np.random.default_rng((self.seed, number))
        order = generator.permutation(len(self.train))
        if self.lengths is not None:
            span = BUCKET_BATCHES * self.batch_size
            order = np.concatenate(
                [
                    order[at : at + span][np.argsort(self.lengths[order[at : at + span]], kind="stable")]
                    for at in range(0, len(order), span)
                ]
            )
        batches = [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]
        if self.lengths is not None:
            batches = [batches[int(at)] for at in generator.permutation(len(batches))]
        for rows in batches:
            inputs: Any = self.train.take(rows).inputs
            if self.images:
                inputs = [self._augmented(int(row), number) for row in rows]
            yield [torch.from_numpy(value) for value in self.preprocess(inputs).values()], self.train.targets[rows]

    def _augmented(self, row: int, epoch: int) -> Any:
        return self.augment(self.images[row], np.random.default_rng((self.seed, epoch, row)))


def _augmentation(name: str, kind: str) -> Any:
    if name == "none" or kind != "image":
        return lambda image, generator: image
    from PIL import ImageOps

    def flip(image: Any, generator: Any) -> Any:
        return ImageOps.mirror(image) if generator.random() < 0.5 else image

    if name == "flip":
        return flip
    scheme, *numbers = name.split("-")
    if scheme != "randaugment" or len(numbers) != 2:
        raise SettingError(f"augment is '{name}'.", allowed="none, flip, randaugment-N-M", option="augment")
    from ontarget.augment.randaugment import RandAugment

    randaugment = RandAugment(int(numbers[0]), float(numbers[1]))
    return lambda image, generator: randaugment(image, generator)


def _epoch(
    network: Assembled,
    loaded: Loaded,
    batches: _Batches,
    epoch: int,
    engine: torch.optim.Optimizer,
    schedule: Any,
    kind: str,
    weights: Tensor | None,
    smoothing: float,
    accumulation: int,
    context: Context,
) -> tuple[float, bool]:
    """One pass over the rows: (mean loss, whether it was finished before the deadline)."""
    network.train()
    _freeze_batch_statistics(network)
    losses: list[float] = []
    count = math.ceil(len(batches.train) / batches.batch_size)
    waiting = 0
    for at, (tensors, targets) in enumerate(batches.epoch(epoch)):
        with _autocast(context.device):
            scores = network(*(tensor.to(context.device) for tensor in tensors))
            loss = _loss(scores, targets, kind, network.head, weights, smoothing)
        if not torch.isfinite(loss):
            raise RunError(
                f"The loss is {loss.item()} in epoch {epoch + 1}, batch {at + 1} of {count} "
                f"(learning rate {engine.param_groups[0]['lr']:.2g}, {len(targets)} rows).",
                option="learning_rate",
                next_step="lower the learning rate, or look for extreme targets",
            )
        # Accumulated batches weigh by their rows, so that they equal one large batch.
        torch.autograd.backward(loss * len(targets) / (batches.batch_size * accumulation))
        losses.append(loss.item())
        waiting += 1
        if waiting == accumulation or at + 1 == count:
            torch.nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
            engine.step()
            schedule.step()
            engine.zero_grad(set_to_none=True)
            waiting = 0
        if context.progress:
            context.progress(at + 1, count, f"epoch {epoch + 1} of {loaded.locator}")
        if context.deadline is not None and time.monotonic() > context.deadline and at + 1 < count:
            return float(np.mean(losses)), False
    return float(np.mean(losses)), True


def _loss(scores: Tensor, targets: Array, kind: str, head: Any, weights: Tensor | None, smoothing: float) -> Tensor:
    if kind == "regression":
        wanted = (torch.as_tensor(targets, dtype=torch.float32, device=scores.device) - head.mean) / head.spread
        return torch.nn.functional.mse_loss((scores[:, 0] - head.mean) / head.spread, wanted)
    wanted = torch.as_tensor(targets, dtype=torch.long, device=scores.device)
    return torch.nn.functional.cross_entropy(scores.float(), wanted, weight=weights, label_smoothing=smoothing)


def _autocast(device: str) -> Any:
    """bfloat16 where the accelerator has it; on CPUs float32, which is faster on most of them."""
    if device.startswith("cuda") and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", dtype=torch.bfloat16)
    import contextlib

    return contextlib.nullcontext()


def _freeze_batch_statistics(network: torch.nn.Module) -> None:
    """BatchNorm keeps the source's statistics: a few hundred rows in small batches estimate worse ones (choice)."""
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()


def _trainable(network: torch.nn.Module, mode: str) -> dict[str, torch.nn.Parameter]:
    """The parameters to train, by name; all others are frozen."""
    chosen = {}
    embeddings = {
        id(m.weight) for m in network.modules() if isinstance(m, torch.nn.Embedding) and m.num_embeddings > 2048
    }
    static = isinstance(getattr(network, "encoder", None), torch.nn.Module) and hasattr(network.encoder, "embedding")
    for name, parameter in network.named_parameters():
        wanted = (id(parameter) not in embeddings or static) if mode == "full" else ("lora_" in name or "head" in name)
        parameter.requires_grad_(wanted)
        if wanted:
            chosen[name] = parameter
    return chosen


def _optimizer(
    network: torch.nn.Module,
    trained: Mapping[str, torch.nn.Parameter],
    name: str,
    learning_rate: float,
    weight_decay: float,
    head_factor: float,
) -> torch.optim.Optimizer:
    """Groups: encoder and head, with and without decay (none on biases and norms, the same for both optimizers)."""
    if name == "lion":
        learning_rate, weight_decay = adamw_to_lion(learning_rate, weight_decay)
    groups = []
    for is_head in (False, True):
        for decayed in (True, False):
            chosen = [
                parameter
                for key, parameter in trained.items()
                if key.startswith("head") == is_head and (parameter.ndim > 1) == decayed
            ]
            if chosen:
                rate = learning_rate * (head_factor if is_head else 1.0)
                groups.append({"params": chosen, "lr": rate, "weight_decay": weight_decay if decayed else 0.0})
    if name == "lion":
        return Lion(groups)
    if name == "adamw":
        return torch.optim.AdamW(groups, foreach=True)
    raise SettingError(f"optimizer is '{name}'.", allowed="adamw, lion", option="optimizer")


def _warm_up_cosine(steps: int) -> Any:
    warm_up = max(1, round(WARM_UP_SHARE * steps))

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1, steps - warm_up))))

    return factor


def _class_weights(targets: Array, outputs: int, class_weight: str, device: str) -> Tensor | None:
    if class_weight == "none":
        return None
    counts = np.bincount(targets, minlength=outputs).astype(np.float64)
    weights = np.where(counts > 0, len(targets) / (np.count_nonzero(counts) * np.maximum(counts, 1)), 0.0)
    return torch.tensor(weights, dtype=torch.float32, device=device)


def _validation_scores(network: torch.nn.Module, loaded: Loaded, validation: Examples, context: Context) -> Array:
    return predict_scores(network, loaded.preprocess, validation.inputs, context=context)


def _difference(network: torch.nn.Module, loaded: Loaded) -> dict[str, Tensor]:
    """All tensors but frozen embedding tables: what the source's own file does not hold."""
    frozen = {
        name
        for name, parameter in network.named_parameters()
        if not parameter.requires_grad and parameter.ndim == 2 and parameter.numel() > 2**20 and "embedding" in name
    }
    return {name: value.detach().cpu() for name, value in network.state_dict().items() if name not in frozen}


def _buffers(network: torch.nn.Module) -> dict[str, Tensor]:
    return dict(network.head.named_buffers())  # type: ignore[union-attr]


def _checkpoint(
    progress: _Progress,
    trained: Mapping[str, torch.nn.Parameter],
    buffers: Mapping[str, Tensor],
    engine: torch.optim.Optimizer,
    schedule: Any,
) -> bytes:
    tensors: dict[str, Tensor] = {f"now/{name}": value.detach() for name, value in trained.items()}
    tensors |= {f"best/{name}": value for name, value in progress.best_state.items()}
    tensors |= {f"buffer/{name}": value for name, value in buffers.items()}
    names = {id(parameter): name for name, parameter in trained.items()}
    steps = {}
    for group in engine.param_groups:
        for parameter in group["params"]:
            for key, value in engine.state.get(parameter, {}).items():
                if key == "step":
                    steps[names[id(parameter)]] = float(value)
                else:
                    tensors[f"optimizer/{names[id(parameter)]}/{key}"] = value
    if progress.best_scores is not None:
        tensors["scores"] = torch.from_numpy(progress.best_scores)
    return pack(
        tensors,
        {
            "epoch": progress.epoch,
            "waited": progress.waited,
            "best": progress.best if math.isfinite(progress.best) else None,
            "curve": list(progress.curve),
            "steps": steps,
            "schedule": schedule.last_epoch,
        },
    )


def _restore(
    content: bytes,
    network: torch.nn.Module,
    trained: Mapping[str, torch.nn.Parameter],
    engine: torch.optim.Optimizer,
    schedule: Any,
) -> _Progress:
    tensors, values = unpack(content)
    progress = _Progress()
    progress.epoch, progress.waited = int(values["epoch"]), int(values["waited"])
    progress.best = -math.inf if values["best"] is None else float(values["best"])
    progress.curve = list(values["curve"])
    if "scores" in tensors:
        progress.best_scores = tensors["scores"].numpy()
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(tensors[f"now/{name}"])
            if f"best/{name}" in tensors:
                progress.best_state[name] = tensors[f"best/{name}"].clone()
            prefix = f"optimizer/{name}/"
            state = {
                key.removeprefix(prefix): value.clone() for key, value in tensors.items() if key.startswith(prefix)
            }
            if name in values["steps"]:
                state["step"] = torch.tensor(values["steps"][name])
            if state:
                engine.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}
                if "step" in state:
                    engine.state[parameter]["step"] = state["step"]
        for name, buffer in network.head.named_buffers():  # type: ignore[union-attr]
            buffer.copy_(tensors[f"buffer/{name}"])
    schedule.last_epoch = int(values["schedule"])
    for group, base, factor in zip(engine.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = base * factor(schedule.last_epoch)
    return progress


def _check(mode: str, epochs: int, batch_size: int, accumulation: int, learning_rate: float) -> None:
    if mode not in ("full", "lora"):
        raise SettingError(f"mode is '{mode}'.", allowed="full, lora", option="mode")
    for name, value in (("total_epochs", epochs), ("batch_size", batch_size), ("gradient_accumulation", accumulation)):
        if value < 1:
            raise SettingError(f"{name} is {value}.", allowed="1 or more", option=name)
    if not learning_rate > 0:
        raise SettingError(f"learning_rate is {learning_rate}.", allowed="numbers above 0", option="learning_rate")
