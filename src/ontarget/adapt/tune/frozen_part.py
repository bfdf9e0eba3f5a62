"""What the frozen lower blocks of a network give for each row, computed once instead of in every epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from ontarget.adapt.tune.batches import Batches
from ontarget.values import Array

LIMIT_MB = 1024.0  # of stored outputs; beyond, the blocks are computed every time (choice)


class _Enough(Exception):
    """The frozen blocks are done: the others need not run."""


class FrozenPart:
    """The outputs of ``blocks``, which are frozen and in evaluation mode, by row.

    They are computed in the fixed order of ``batches.ordered()``, so that they are the same after a resume.
    """

    def __init__(
        self, network: torch.nn.Module, blocks: Sequence[torch.nn.Module], batches: Batches, device: str
    ) -> None:
        self.blocks = list(blocks)
        self.outputs: dict[int, Tensor] = {}
        self.lengths = batches.lengths
        self._wrapped = False
        if not self.blocks or batches.augment is not None:
            return
        for rows in batches.ordered():
            made = self._run(network, [value.to(device) for value in batches.tensors(rows)])
            # Fields that are encoded apart have two outputs a row: those are computed every time.
            by_row = isinstance(made, Tensor) and len(made) == len(rows)
            if not by_row or self._too_large(made, len(rows), len(batches.examples)):
                self.outputs = {}
                return
            for at, row in enumerate(rows):
                length = None if self.lengths is None else int(self.lengths[row])
                self.outputs[int(row)] = made[at, :length].cpu().clone()

    @contextmanager
    def replayed(self, rows: Array) -> Iterator[None]:
        """Within, the frozen blocks compute nothing: whatever comes in, the stored outputs of ``rows`` go out."""
        if not self.outputs:
            yield
            return
        stored = [self.outputs[int(row)] for row in rows]
        # Padded positions are masked in what follows, whatever they hold.
        joined: Any = torch.nn.utils.rnn.pad_sequence(stored, batch_first=True) if self.lengths is not None else None
        joined = torch.stack(stored) if joined is None else joined
        device = next(self.blocks[0].parameters()).device
        output = (joined.to(device),) if self._wrapped else joined.to(device)
        for block in self.blocks:
            block.forward = lambda *given, **named: output  # type: ignore[method-assign]
        try:
            yield
        finally:
            for block in self.blocks:
                del block.forward

    def _run(self, network: torch.nn.Module, tensors: list[Tensor]) -> Any:
        caught: list[Any] = []

        def keep(module: torch.nn.Module, given: Any, made: Any) -> None:
            caught.append(made)
            raise _Enough

        hook = self.blocks[-1].register_forward_hook(keep)
        network.eval()
        try:
            with torch.no_grad(), suppress(_Enough):
                network(*tensors)
        finally:
            hook.remove()
        made: Any = caught[0] if caught else None
        self._wrapped = isinstance(made, tuple) and len(made) == 1
        return made[0] if self._wrapped else made

    @staticmethod
    def _too_large(made: Tensor, rows: int, total: int) -> bool:
        return made.numel() * made.element_size() / rows * total > LIMIT_MB * 2**20
