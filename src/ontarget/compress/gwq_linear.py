"""A linear layer whose weight stays as GWQ has packed it: in 2 to 8 bits, with outliers apart.

Two paths. "dequantize" writes the weight out for every call: the same results as the dequantised model's, any bits, any
type, little memory, slow. "int4" uses PyTorch's kernel for the CPU, for calls of up to `MANY` tokens: codes of up to 4
bits, scales in bfloat16, results to bfloat16's rounding; outliers are a sparse matrix that is added. More tokens at
once, such as a prompt, pay for writing the weight out. Checked: tests/compress/test_gwq_linear.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ontarget.compress.gwq import QuantizedMatrix, pack
from ontarget.errors import SettingError

PATHS = ("auto", "dequantize", "int4")
# Tokens of a call from which on writing the weight out is faster: on SmolLM2-135M, one thread, the kernel takes 4 ms a
# token, writing out 1,650 ms a call.
MANY = 400
KERNEL_GROUPS = (32, 64, 128, 256)
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
    _first: Tensor
    _second: Tensor
    _shift: Tensor

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
        # Bytes and bits of the codes in a block: the low byte of each, the next one, and where the code begins.
        begin = torch.arange(BLOCK) * self.bits
        self.register_buffer("_first", begin // 8, persistent=False)
        self.register_buffer("_second", (begin // 8 + 1).clamp(max=self.bits - 1), persistent=False)
        self.register_buffer("_shift", (begin % 8).int(), persistent=False)

    def weight_as(self, dtype: torch.dtype) -> Tensor:
        """The weight written out, (m, n): float32 sums, rounded once."""
        blocks = self.codes.view(self.out_features, -1, self.bits).int()
        pairs = blocks[..., self._first] | (blocks[..., self._second] << 8)
        codes = ((pairs >> self._shift) & (2**self.bits - 1)).view(self.out_features, -1)[:, : self.in_features]
        groups = self.scale.shape[1]
        codes = nn.functional.pad(codes, (0, groups * self.group - self.in_features))
        codes = codes.view(self.out_features, groups, self.group)
        found = codes * self.scale.float()[..., None] + self.low.float()[..., None]
        found = found.view(self.out_features, -1)[:, : self.in_features].contiguous()
        found.view(-1)[self.place] = self.values.float()
        return found.to(dtype)

    def forward(self, given: Tensor) -> Tensor:
        if self.four is None or given.numel() > MANY * self.in_features or given.dtype != torch.bfloat16:
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


def use_packed_layers(
    model: nn.Module, matrices: Mapping[str, QuantizedMatrix], *, dtype: torch.dtype = torch.bfloat16,
    path: str = "auto",
) -> None:  # fmt: skip
    """Put a `GwqLinear` in the place of each linear layer that ``matrices`` names, in ``model`` itself."""
    for name, matrix in matrices.items():
        layer: Any = model.get_submodule(name)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, GwqLinear(matrix, layer.bias, dtype=dtype, path=path))
