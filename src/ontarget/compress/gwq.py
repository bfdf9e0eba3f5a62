"""GWQ: weights in few bits, but for the 1% with the largest gradient of the loss, which stay as they are.

Shao et al., "GWQ: Gradient-Aware Weight Quantization for Large Language Models", 2024, arXiv 2411.00850; no code.
Claim: below 4 bits, lower perplexity than other ways of choosing the outliers, and than equal bits without them.
Left out: quantised scales (as in SpQR); vision-language models. Checked: tests/compress/test_gwq.py.

Outliers of a matrix: the largest |dL/dW| of one backward pass of the next-token loss on a text of the target. All
others, per output row and group of inputs: q = clip(round((w - lo) / scale), 0, 2^b - 1), lo and scale from their own
minimum and maximum. Bits a weight: b + 32 / group (scale and offset in 16 bits) + 32 * share (column and value of an
outlier).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ontarget.errors import DataError, SettingError
from ontarget.values import Context

SHARE = 0.01


@dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix (m, n) in b bits. codes: uint8 (m, n), packed by `pack`; scale, low: float16 (m, groups).

    starts: int32 (m + 1,), columns: int32 (K,), values: float16 (K,), the outliers row by row (CSR).
    """

    codes: Tensor
    scale: Tensor
    low: Tensor
    starts: Tensor
    columns: Tensor
    values: Tensor
    bits: int
    group: int

    def dequantized(self) -> Tensor:
        """float32 (m, n)."""
        rows, inputs = self.codes.shape
        groups = self.scale.shape[1]
        padded = torch.nn.functional.pad(self.codes, (0, groups * self.group - inputs)).view(rows, groups, self.group)
        found = padded * self.scale.float()[..., None] + self.low.float()[..., None]
        found = found.reshape(rows, -1)[:, :inputs].contiguous()
        at = torch.repeat_interleave(torch.arange(rows), (self.starts[1:] - self.starts[:-1]).long())
        found[at, self.columns.long()] = self.values.float()
        return found

    @property
    def stored_bytes(self) -> int:
        """Packed codes, scales, offsets, and the outliers with 16-bit columns and 32-bit row starts."""
        packed = self.codes.shape[0] * -(-self.codes.shape[1] * self.bits // 8)
        return packed + 4 * self.scale.numel() + 4 * self.columns.numel() + 4 * self.starts.numel()


def outliers(importance: Tensor, share: float = SHARE) -> Tensor:
    """Mask (m, n) of the ``share`` of entries of the largest importance, exactly that many; 0 keeps none."""
    count = int(share * importance.numel())
    mask = torch.zeros(importance.numel(), dtype=torch.bool)
    if count:
        mask[torch.topk(importance.reshape(-1), count).indices] = True
    return mask.view(importance.shape)


def quantized(weight: Tensor, kept: Tensor, *, bits: int = 3, group: int = 64) -> QuantizedMatrix:
    """Round all entries of ``weight`` (m, n) that are not ``kept`` to the nearest of 2^bits levels of their group.

    bits: 2 to 8. group: inputs that share scale and offset, 8 or more; the last one may be smaller. Raises
    SettingError, DataError: shapes that differ, numbers that are not finite or do not fit 16 bits.
    """
    if not 2 <= bits <= 8 or group < 8:
        raise SettingError(f"bits is {bits} and group {group}.", allowed="2 to 8 bits, groups of 8 or more")
    if weight.ndim != 2 or weight.shape != kept.shape:
        raise DataError(f"The weight has shape {tuple(weight.shape)}, its mask {tuple(kept.shape)}.", allowed="(m, n)")
    weight = weight.detach().float().cpu()
    if not torch.isfinite(weight).all() or float(weight.abs().max()) > 65000:
        raise DataError("The weights are not finite, or too large for 16 bits.")
    rows, inputs = weight.shape
    groups, levels = -(-inputs // group), 2**bits - 1
    missing = groups * group - inputs
    padded = torch.nn.functional.pad(weight, (0, missing)).view(rows, groups, group)
    counted = torch.nn.functional.pad(~kept.cpu(), (0, missing)).view(rows, groups, group)
    infinite = torch.tensor(float("inf"))
    low = torch.where(counted, padded, infinite).amin(-1)
    high = torch.where(counted, padded, -infinite).amax(-1)
    empty = ~counted.any(-1)  # a group of outliers alone
    low, high = low.masked_fill(empty, 0.0), high.masked_fill(empty, 0.0)
    # Rounded first, so that what is stored is what the codes were made for.
    low16 = low.half()
    scale16 = ((high - low16.float()) / levels).half()
    step = scale16.float()
    codes = ((padded - low16.float()[..., None]) / step.where(step > 0, torch.ones(()))[..., None]).round()
    codes = codes.clamp(0, levels).to(torch.uint8).view(rows, -1)[:, :inputs].contiguous()
    at = kept.cpu().nonzero()
    starts = torch.zeros(rows + 1, dtype=torch.int32)
    starts[1:] = torch.bincount(at[:, 0], minlength=rows).cumsum(0)
    return QuantizedMatrix(codes, scale16, low16, starts, at[:, 1].int(), weight[kept.cpu()].half(), bits, group)


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 (m, ceil(n bits / 8)): the codes of a row behind one another, lowest bit first."""
    each = (codes.numpy()[..., None] >> np.arange(bits, dtype=np.uint8)) & 1
    return torch.from_numpy(np.packbits(each.reshape(len(codes), -1), axis=1, bitorder="little"))


def unpack(packed: Tensor, bits: int, inputs: int) -> Tensor:
    """The codes, uint8 (m, inputs), of what `pack` gave."""
    flat = np.unpackbits(packed.numpy(), axis=1, bitorder="little", count=inputs * bits)
    each = flat.reshape(len(flat), inputs, bits)
    return torch.from_numpy((each << np.arange(bits, dtype=np.uint8)).sum(-1, dtype=np.uint8))


def gwq(
    model: nn.Module,
    loss: Callable[[], Tensor],
    *,
    bits: int = 3,
    group: int = 64,
    share: float = SHARE,
    skip: tuple[str, ...] = ("lm_head", "embed_tokens"),
    context: Context = Context(),
) -> dict[str, QuantizedMatrix]:
    """Quantise every linear layer of ``model`` (changed: its weights become the dequantised ones).

    loss: runs the model on the calibration text and gives its next-token loss; one backward pass is made, in the
    model's own type. share: of the weights of a matrix that are kept, 0 to below 0.5. skip: names, or ends of names, of
    layers that are left alone. Raises SettingError; DataError: a loss or gradient that is not finite, no linear layers.
    """
    if not 0 <= share < 0.5:
        raise SettingError(f"share is {share}.", allowed="0 to below 0.5", option="share")
    layers = linear_layers(model, skip)
    if not layers:
        raise DataError("The model has no linear layers to quantise.")
    masks = _largest_gradients(model, layers, loss, share)
    found: dict[str, QuantizedMatrix] = {}
    for done, (name, layer) in enumerate(layers.items()):
        if context.progress is not None:
            context.progress(done, len(layers), f"quantising {name}")
        found[name] = quantized(layer.weight, masks[name], bits=bits, group=group)
        with torch.no_grad():
            layer.weight.copy_(found[name].dequantized())
    return found


def linear_layers(model: nn.Module, skip: tuple[str, ...]) -> dict[str, Any]:
    """name -> linear layer of ``model``, without those whose names are, or end in, one of ``skip``."""
    return {
        name: layer for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and not any(name == end or name.endswith(f".{end}") for end in skip)
    }  # fmt: skip


def _largest_gradients(
    model: nn.Module, layers: Mapping[str, Any], loss: Callable[[], Tensor], share: float
) -> dict[str, Tensor]:
    """Masks of the outliers; each gradient is freed as soon as it is there."""
    masks: dict[str, Tensor] = {}
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    handles = []

    def keep(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            if not torch.isfinite(parameter.grad).all():
                raise DataError(f"The gradient of '{name}' is not finite.", next_step="use float32, or another text")
            masks[name] = outliers(parameter.grad.abs().float().cpu(), share)
            parameter.grad = None

        return hook

    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        for name, layer in layers.items():
            layer.weight.requires_grad_(True)
            handles.append(layer.weight.register_post_accumulate_grad_hook(keep(name)))
        value = loss()
        if not torch.isfinite(value):
            raise DataError(
                f"The calibration loss is {float(value.detach())}.", next_step="use float32, or another text"
            )
        torch.autograd.backward(value)
    finally:
        for handle in handles:
            handle.remove()
        for parameter, before in wanted.items():
            parameter.requires_grad_(before)
            parameter.grad = None
    missing = [name for name in layers if name not in masks]
    if missing:
        raise DataError(f"'{missing[0]}' takes no part in the loss.", next_step="leave it out by skip")
    return masks


def average_bits(matrices: Mapping[str, QuantizedMatrix]) -> float:
    """Stored bits a weight of all matrices together, everything counted."""
    return 8 * sum(one.stored_bytes for one in matrices.values()) / sum(one.codes.numel() for one in matrices.values())
