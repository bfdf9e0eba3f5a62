"""Rows that a search trains on: anything with a length whose ``rows[positions]`` gives tensors of those rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class Rows(Protocol):
    """``len(rows)``, and ``rows[positions]`` -> (inputs, targets) for an int64 tensor of positions.

    A ``torch.utils.data.TensorDataset`` is one.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, positions: Any) -> tuple[Tensor, ...]: ...


def batches(rows: Rows, batch_size: int, *, seed: int, epoch: int, skip: int = 0) -> Iterator[tuple[Tensor, ...]]:
    """All rows once in an order that seed and epoch fix. A last batch of one row is left out, for BatchNorm's sake.

    skip: batches at the start that are passed over without reading their rows.
    """
    order = torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(len(rows)))
    for at in range(skip * batch_size, len(order), batch_size):
        positions = order[at : at + batch_size]
        if len(positions) > 1 or len(order) == 1:
            yield rows[positions]


def batch_count(rows: int, batch_size: int) -> int:
    """How many `batches` there are in an epoch."""
    return max(1, -(-rows // batch_size) - (rows % batch_size == 1))


def endless(rows: Rows, batch_size: int, *, seed: int, skip: int = 0) -> Iterator[tuple[Tensor, ...]]:
    """Batches, epoch after epoch. skip: how many are passed over, as after a restart."""
    epoch, skip = divmod(skip, batch_count(len(rows), batch_size))
    while True:
        yield from batches(rows, batch_size, seed=seed, epoch=epoch, skip=skip)
        epoch, skip = epoch + 1, 0


def ordered(rows: Rows, batch_size: int) -> Iterator[tuple[Tensor, ...]]:
    """All rows once, in their order."""
    for at in range(0, len(rows), batch_size):
        yield rows[torch.arange(at, min(at + batch_size, len(rows)))]
