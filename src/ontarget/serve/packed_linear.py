"""Linear layers laid out for calls of a few rows on a CPU: several tokens a call at about the price of one.

A matrix product of 2 to 16 rows is bound by reading the weight, and libraries that are given it as a plain matrix read
and copy it for every call. oneDNN takes it in an order of its own, once (what `torch.compile` does with frozen weights,
here without compiling). Same arithmetic, other order of sums. Measured in benchmarks/packed_linear.py; checked in
tests/serve/test_packed_linear.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ontarget.device import return_memory
from ontarget.errors import RunError

ROWS = 8  # that the order is chosen for (choice); it is no slower than a plain one at others
DTYPES = (torch.float32, torch.bfloat16)


class PackedLinear(nn.Module):
    """x (..., n) -> x W^T + bias, (..., m), on the CPU, without gradients.

    weight: the plain matrix, where something else needs it too, such as tied embeddings; else None.
    """

    def __init__(self, linear: nn.Linear, *, keep_weight: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dtype = linear.weight.dtype
        self.weight = linear.weight if keep_weight else None
        self.bias = linear.bias
        # No buffer: its type has no storage to save or move.
        reorder: Any = torch.ops.mkldnn._reorder_linear_weight
        self._packed = [reorder(linear.weight.detach(), ROWS)]

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed[0], self.bias, "none", [], "")
        return made

    def _save_to_state_dict(self, *_: Any, **__: Any) -> None:
        """Nothing is saved that lacks its weights. Raises RunError."""
        raise RunError("The layers are laid out for inference and cannot be saved.",
                       next_step="save the model before `pack_linears`")  # fmt: skip

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def pack_linears(module: nn.Module) -> int:
    """Replace the linear layers of ``module`` by packed ones, in place, for inference alone: they cannot be trained or
    saved any more. How many were replaced: 0 where the device, the type or this build of PyTorch has no such layout.

    The output layer of a language model keeps its plain weight too, as embeddings may share it.
    """
    places = _places(module)
    for parent, name, is_head in places:  # each plain weight goes before the next one is laid out
        setattr(parent, name, PackedLinear(getattr(parent, name), keep_weight=is_head))
        return_memory()
    if places:
        # A file that was mapped to load from stays in memory, whole, as long as one of its tensors is used.
        for left in [*module.parameters(), *module.buffers()]:
            if left.device.type == "cpu":
                left.data = left.data.clone()
        return_memory()  # of the plain weights, as large as the model
    return len(places)


@contextmanager
def packed_linears(module: nn.Module) -> Iterator[None]:
    """`pack_linears` for a while; the plain layers stay in memory and come back."""
    plain: list[tuple[nn.Module, str, nn.Linear]] = []
    for parent, name, is_head in _places(module):
        child = getattr(parent, name)
        setattr(parent, name, PackedLinear(child, keep_weight=is_head))
        plain.append((parent, name, child))
    try:
        yield
    finally:
        for parent, name, child in plain:
            setattr(parent, name, child)


def _places(module: nn.Module) -> list[tuple[nn.Module, str, bool]]:
    """Where linear layers are that can be packed: parent, name, and whether it is the output layer."""
    outputs: Any = getattr(module, "get_output_embeddings", None)
    head = outputs() if outputs else None
    return [(parent, name, child is head) for parent in module.modules() for name, child in parent.named_children()
            if type(child) is nn.Linear and can_pack(child)]  # fmt: skip


def can_pack(linear: nn.Linear) -> bool:
    """Whether the packed layer gives what the plain one does here."""
    weight = linear.weight
    if weight.device.type != "cpu" or weight.dtype not in DTYPES or not torch._C._has_mkldnn:
        return False
    if weight.numel() == 0 or weight.is_meta:
        return False
    key = (weight.dtype, linear.bias is not None)
    if key not in _WORKS:
        _WORKS[key] = _works(*key)
    return _WORKS[key]


_WORKS: dict[tuple[torch.dtype, bool], bool] = {}


def _works(dtype: torch.dtype, bias: bool) -> bool:
    """Tried once on a small layer: the operators are PyTorch's own, but no part of its public interface."""
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            plain = nn.Linear(48, 32, bias=bias, dtype=dtype)
            packed: Any = PackedLinear(plain)
            for shape in ((1, 48), (3, 48), (1, 5, 48), (40, 48)):
                x = torch.randn(shape, dtype=dtype)
                wanted = F.linear(x, plain.weight, plain.bias)
                torch.testing.assert_close(packed(x), wanted, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4,
                                           atol=2e-2 if dtype == torch.bfloat16 else 1e-5)  # fmt: skip
    except (AttributeError, RuntimeError, AssertionError):  # no such operator, not for this processor, other results
        return False
    return True
