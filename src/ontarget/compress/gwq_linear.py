"""A linear layer whose weight stays as GWQ has packed it: in 2 to 8 bits, with outliers apart.

Two paths. "dequantize" writes the weight out for every call: the same results as the dequantised model's, any bits, any
type, little memory, slow. "int4" uses PyTorch's kernel for the CPU, for calls of up to `MANY` tokens: codes of up to 4
bits, scales in bfloat16, results to bfloat16's rounding; outliers are a sparse matrix that is added. For more tokens
at once, such as a long prompt, the weight is written out. Checked: tests/compress/test_gwq_linear.py.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ontarget.compress.gwq import QuantizedMatrix, pack
from ontarget.errors import SettingError

PATHS = ("auto", "dequantize", "int4")
# Tokens of a call from which on writing the weight out is faster, by bits. All layers of SmolLM2-135M, one thread: the
# kernel takes 2.7 ms a token, a plain product 1.1, writing out 187, 323 and 167 ms a call.
MANY = {2: 128, 3: 224, 4: 128}
KERNEL_GROUPS = (32, 64, 128, 256)
ROWS = 128  # that are written out at once (choice)
BLOCK = 8  # codes that fill whole bytes, whatever the bits


class GwqLinear(nn.Module):
    """x (..., n) -> x W^T + bias, (..., m), in x's type.

    path: "auto" is "int4" where the layer's type is bfloat16, bits are 4 or fewer and the kernel takes the shape.
    Raises SettingError: "int4" where that does not hold.
    """

    codes: Tensor
    scale: Tensor
    low: Tensor
    place: Tensor
    values: Tensor
    bias: Tensor | None
    four: Tensor | None
    factors: Tensor | None
    correction: Tensor | None

    def __init__(
        self, matrix: QuantizedMatrix, bias: Tensor | None = None, *, dtype: torch.dtype = torch.bfloat16,
        path: str = "auto",
    ) -> None:  # fmt: skip
        super().__init__()
        if path not in PATHS:
            raise SettingError(f"'{path}' is no path.", allowed=", ".join(PATHS), option="path")
        self.out_features, self.in_features = matrix.codes.shape
        self.bits, self.group = matrix.bits, matrix.group
        taken = kernel_takes(matrix, dtype)
        if path == "int4" and not taken:
            raise SettingError(
                f"The int4 kernel does not take {matrix.bits} bits, groups of {matrix.group}, shape "
                f"{tuple(matrix.codes.shape)}, {dtype}.", option="path",
                allowed="4 bits or fewer, groups of 32, 64, 128 or 256 that fill the inputs, outputs by 16, bfloat16",
            )  # fmt: skip
        self.path = "int4" if path != "dequantize" and taken else "dequantize"
        padded = nn.functional.pad(matrix.codes, (0, -self.in_features % BLOCK))
        self.register_buffer("codes", pack(padded, matrix.bits))
        self.register_buffer("scale", matrix.scale)
        self.register_buffer("low", matrix.low)
        rows = torch.repeat_interleave(torch.arange(self.out_features), (matrix.starts[1:] - matrix.starts[:-1]).long())
        self.register_buffer("place", rows * self.in_features + matrix.columns)  # int64, in the flat weight
        self.register_buffer("values", matrix.values)
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype))
        four = _for_kernel(matrix, rows) if self.path == "int4" else (None, None, None)
        for name, value in zip(("four", "factors", "correction"), four, strict=True):
            self.register_buffer(name, value, persistent=False)

    def weight_as(self, dtype: torch.dtype) -> Tensor:
        """The weight written out, (m, n): float32 sums, rounded once."""
        found = torch.empty(self.out_features, self.in_features, dtype=dtype, device=self.codes.device)
        wanted = self.scale.shape[1] * self.group - self.in_features
        for at in range(0, self.out_features, ROWS):  # rows that stay in the processor's cache
            some = slice(at, at + ROWS)
            codes = self.codes_of(some)
            if wanted:
                codes = nn.functional.pad(codes, (0, wanted))
            part = codes.float().view(len(codes), -1, self.group)
            part.mul_(self.scale[some].float()[..., None]).add_(self.low[some].float()[..., None])
            found[some] = part.view(len(codes), -1)[:, : self.in_features]
        found.view(-1)[self.place] = self.values.float().to(dtype)
        return found

    def codes_of(self, rows: slice) -> Tensor:
        """uint8 (rows, n), unpacked."""
        packed = self.codes[rows]
        if self.bits == 8:
            return packed[:, : self.in_features]
        if self.bits in (2, 4):  # whole codes in a byte
            mask = 2**self.bits - 1
            whole = torch.stack([(packed >> shift) & mask for shift in range(0, 8, self.bits)], -1)
            return whole.view(len(packed), -1)[:, : self.in_features]
        # Eight codes fill as many bytes as a code has bits: read as one number.
        blocks = packed.view(len(packed), -1, self.bits).to(torch.int32 if self.bits < 4 else torch.int64)
        word = blocks[..., 0].clone()
        for at in range(1, self.bits):
            word |= blocks[..., at] << (8 * at)
        parts = [((word >> (self.bits * at)) & (2**self.bits - 1)).to(torch.uint8) for at in range(BLOCK)]
        return torch.stack(parts, -1).view(len(packed), -1)[:, : self.in_features]

    def forward(self, given: Tensor) -> Tensor:
        if self.four is None or given.numel() > MANY[self.bits] * self.in_features or given.dtype != torch.bfloat16:
            return nn.functional.linear(given, self.weight_as(given.dtype), self.bias)
        flat = given.reshape(-1, self.in_features)
        made: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, self.four, self.group, self.factors)
        if self.correction is not None:
            made = made + torch.mm(self.correction, flat.float().t()).t().to(made.dtype)
        if self.bias is not None:
            made = made + self.bias
        return made.view(*given.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, group={self.group}, path={self.path}"


def kernel_takes(matrix: QuantizedMatrix, dtype: torch.dtype) -> bool:
    """Whether a layer of type ``dtype`` has the path "int4" here."""
    rows, inputs = matrix.codes.shape
    shape = rows % 16 == 0 and inputs % matrix.group == 0
    return (
        dtype == torch.bfloat16 and matrix.bits <= 4 and matrix.group in KERNEL_GROUPS and shape
        and hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu")
    )  # fmt: skip


def _for_kernel(matrix: QuantizedMatrix, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes, scales and offsets as the kernel wants them, and what outliers differ by from what it makes of them.

    The kernel's weight is (code - 8) scale + offset. Codes are moved so that 8 is the middle of their range: the offset
    is then small, and its rounding to bfloat16 too.
    """
    middle = 2 ** (matrix.bits - 1)
    codes = matrix.codes.int() + (8 - middle)
    four = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    scale = matrix.scale.bfloat16()
    # The offset makes up for the rounded scale in the middle of the range.
    offset = (matrix.low.float() + middle * matrix.scale.float()).bfloat16()
    factors = torch.stack([scale.t(), offset.t()], dim=-1).contiguous()
    if not len(matrix.values):
        return four, factors, None
    columns = matrix.columns.long()
    of = columns // matrix.group
    made = (codes[rows, columns] - 8) * scale[rows, of].float() + offset[rows, of].float()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Ss]parse.*")
        sparse = torch.sparse_csr_tensor(matrix.starts, matrix.columns, matrix.values.float() - made,
                                         tuple(matrix.codes.shape))  # fmt: skip
    return four, factors, sparse


def join(layers: Sequence[GwqLinear]) -> GwqLinear | None:
    """One layer with the outputs of all, in their order, from layers on the path "int4"; None where they differ in
    inputs, bits, groups, or whether they have a bias."""
    first = layers[0]
    kinds = {(layer.in_features, layer.bits, layer.group, layer.path, layer.bias is None, layer.correction is None)
             for layer in layers}  # fmt: skip
    if len(kinds) > 1 or first.path != "int4":
        return None
    made = copy.copy(first)
    made._buffers = dict(first._buffers)
    made.out_features = sum(layer.out_features for layer in layers)
    for name in ("codes", "scale", "low", "values"):
        setattr(made, name, torch.cat([getattr(layer, name) for layer in layers]))
    if first.bias is not None:
        made.bias = torch.cat([layer.bias for layer in layers if layer.bias is not None])
    begins = np.cumsum([0, *(layer.out_features for layer in layers)])
    made.place = torch.cat([layer.place + int(at) * first.in_features
                            for layer, at in zip(layers, begins, strict=False)])  # fmt: skip
    middle = 2 ** (first.bits - 1)
    made.four = torch.ops.aten._convert_weight_to_int4pack_for_cpu(made.codes_of(slice(None)).int() + (8 - middle), 1)
    made.factors = torch.cat([layer.factors for layer in layers if layer.factors is not None], dim=1)
    if first.correction is not None:
        parts = [layer.correction for layer in layers if layer.correction is not None]
        counts = np.cumsum([0, *(len(part.values()) for part in parts)])
        starts = [part.crow_indices()[:-1] + int(at) for part, at in zip(parts, counts, strict=False)]
        ends = torch.tensor([int(counts[-1])], dtype=starts[0].dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*[Ss]parse.*")
            made.correction = torch.sparse_csr_tensor(
                torch.cat([*starts, ends]), torch.cat([part.col_indices() for part in parts]),
                torch.cat([part.values() for part in parts]), (made.out_features, made.in_features),
            )  # fmt: skip
    return made


def use_packed_layers(
    model: nn.Module, matrices: Mapping[str, QuantizedMatrix], *, dtype: torch.dtype = torch.bfloat16,
    path: str = "auto",
) -> None:  # fmt: skip
    """Put a `GwqLinear` in the place of each linear layer that ``matrices`` names, in ``model`` itself."""
    for name, matrix in matrices.items():
        layer: Any = model.get_submodule(name)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, GwqLinear(matrix, layer.bias, dtype=dtype, path=path))
