"""The loss of a batch, the weights of unbalanced classes, and the precision that losses are computed in."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ontarget.errors import SettingError
from ontarget.values import Array


def loss_of(
    scores: Tensor,
    targets: Array,
    *,
    kind: str,
    head: Any,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean over rows: cross-entropy, each row times its class's weight; or the squared error of standardised targets.

    scores: (N, C), or (N, 1) in the target's units. head: has ``mean`` and ``spread`` of the targets.
    """
    if kind == "regression":
        wanted = (torch.as_tensor(targets, dtype=torch.float32, device=scores.device) - head.mean) / head.spread
        return torch.nn.functional.mse_loss((scores[:, 0].float() - head.mean) / head.spread, wanted)
    classes = torch.as_tensor(targets, dtype=torch.long, device=scores.device)
    losses = torch.nn.functional.cross_entropy(
        scores.float(), classes, reduction="none", label_smoothing=label_smoothing
    )
    # Divided by rows and not by the batch's weights: accumulated batches then equal one large batch.
    return (losses if class_weights is None else losses * class_weights[classes]).mean()


def balanced_weights(targets: Array, outputs: int) -> Tensor:
    """(C,) N / (present classes * rows of the class); their mean over the rows is 1."""
    counts = np.bincount(targets, minlength=outputs).astype(np.float64)
    weights = np.where(counts > 0, len(targets) / (np.count_nonzero(counts) * np.maximum(counts, 1)), 0.0)
    return torch.tensor(weights, dtype=torch.float32)


def precision_of(device: str, mixed_precision: str) -> torch.dtype | None:
    """What "auto", "bf16", "fp16" or "off" mean on this device; None is float32 throughout.

    "auto": bfloat16 where the device computes with it (CUDA; CPUs with AMX or AVX512-BF16), float16 on older GPUs.
    Raises SettingError for other words and for float16 on a CPU.
    """
    if mixed_precision not in ("auto", "bf16", "fp16", "off"):
        allowed = "auto, bf16, fp16, off"
        raise SettingError(f"mixed_precision is '{mixed_precision}'.", allowed=allowed, option="mixed_precision")
    if mixed_precision == "fp16" and not device.startswith("cuda"):
        raise SettingError("mixed_precision is 'fp16' on a CPU.", allowed="auto, bf16, off", option="mixed_precision")
    if mixed_precision == "off":
        return None
    if mixed_precision != "auto":
        return torch.bfloat16 if mixed_precision == "bf16" else torch.float16
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device == "cpu" and any(
        getattr(torch.cpu, name, lambda: False)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    ):
        return torch.bfloat16
    return None


def autocast(device: str, precision: torch.dtype | None) -> Any:
    """Context in which the forward pass runs."""
    if precision is None:
        return contextlib.nullcontext()
    return torch.autocast(device.split(":")[0], dtype=precision)
