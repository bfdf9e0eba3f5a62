"""One step of a causal language model for several requests: with one shared cache, or a cache for each.

A request has a row. Notation: R rows, T tokens, V vocabulary, H heads, D their size. All calls are made under
`torch.inference_mode`, from one thread.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ontarget.pool.language_models import cache_argument

KEPT_TOKENS = 1024  # of capacity, when nothing runs; more is given back


class Forward(Protocol):
    """What the decoder needs of a model. Rows in use are always 0 to R - 1."""

    def fill(self, row: int, ids: Sequence[int], start: int) -> Tensor:
        """(V,) float32: logits after ``ids``, which are at ``start`` and on of ``row``; earlier tokens are cached."""

    def decode(self, ids: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """(R, V) float32: logits after one more token of each of the first R rows, which have ``lengths`` cached."""

    def move(self, source: int, target: int, length: int) -> None:
        """``length`` cached tokens of a row become those of another."""

    def clear(self, row: int) -> None:
        """Forget a row whose numbers are damaged."""

    def release(self) -> None:
        """Give memory back: no row is in use."""


class BatchedForward:
    """Keys and values of all rows in one storage (slots, H, capacity, D) a layer, which grows when a row needs it.

    Each row's tokens begin at 0, and a mask hides what lies beyond a row's length: nothing is padded on the left, so
    positions are what they are for a request alone. For models whose layers all attend to everything before.
    """

    def __init__(self, model: Any, slots: int) -> None:
        from transformers.cache_utils import Cache

        self._model, self.slots, self.capacity = model, slots, 0
        self._layers = [_slot_layer(self) for _ in range(model.config.get_text_config().num_hidden_layers)]
        self._cache = Cache(layers=self._layers)
        self._call = _arguments(model)
        self.rows = self.places = torch.zeros(0, dtype=torch.long)
        self.first = self.longest = 0

    def fill(self, row: int, ids: Sequence[int], start: int) -> Tensor:
        self.first = row
        return self._run(torch.tensor([list(ids)]), torch.tensor([start]))[0]

    def decode(self, ids: Sequence[int], lengths: Sequence[int]) -> Tensor:
        self.first = 0
        return self._run(torch.tensor(list(ids))[:, None], torch.tensor(list(lengths)))

    def move(self, source: int, target: int, length: int) -> None:
        for layer in self._layers:
            for stored in (layer.keys, layer.values):
                stored[target, :, :length] = stored[source, :, :length]

    def clear(self, row: int) -> None:
        for layer in self._layers:
            if layer.keys is not None:
                layer.keys[row], layer.values[row] = 0, 0  # hidden, but 0 times NaN is NaN

    def release(self) -> None:
        if self.capacity > KEPT_TOKENS:
            self.capacity = 0
            for layer in self._layers:
                layer.keys = layer.values = None

    def _run(self, ids: Tensor, starts: Tensor) -> Tensor:
        """ids: (R, T). starts: (R,)."""
        device = self._model.device
        positions = (starts[:, None] + torch.arange(ids.shape[1])).to(device)
        self.rows = torch.arange(self.first, self.first + len(ids), device=device)[:, None]
        self.places = positions
        self.longest = int(starts.max()) + ids.shape[1]
        if self.longest > self.capacity:
            self.capacity = max(self.longest, 2 * self.capacity, 64)
        seen = torch.arange(self.longest, device=device) <= positions[:, None, :, None]
        mask = torch.zeros(seen.shape, dtype=self._model.dtype, device=device)
        mask.masked_fill_(~seen, torch.finfo(self._model.dtype).min)
        return self._call(ids.to(device), self._cache, attention_mask=mask, position_ids=positions)


def _slot_layer(owner: BatchedForward) -> Any:
    from transformers.cache_utils import DynamicLayer

    class SlotLayer(DynamicLayer):  # type: ignore[misc]
        """One layer's storage; where to write stands in its owner."""

        keys: Tensor | None = None
        values: Tensor | None = None

        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            keys, values = self.keys, self.values
            if keys is None or values is None or keys.shape[2] < owner.capacity:
                keys, values = self._grown(keys, key_states), self._grown(values, value_states)
                self.keys, self.values, self.is_initialized = keys, values, True
            # Indices with a slice between them put their own axes first: (R, T, H, D).
            keys[owner.rows, :, owner.places] = key_states.transpose(1, 2)
            values[owner.rows, :, owner.places] = value_states.transpose(1, 2)
            chosen = slice(owner.first, owner.first + len(key_states))
            return keys[chosen, :, : owner.longest], values[chosen, :, : owner.longest]

        def get_seq_length(self, *_: Any) -> int:
            return owner.longest

        def _grown(self, old: Tensor | None, like: Tensor) -> Tensor:
            new = like.new_zeros(owner.slots, like.shape[1], owner.capacity, like.shape[3])
            if old is not None:
                new[:, :, : old.shape[2]] = old
            return new

    return SlotLayer()


class SteppedForward:
    """A cache for each row, stepped in turn: right for every model that continues from its own cache."""

    def __init__(self, model: Any, slots: int) -> None:
        self._model, self._call = model, _arguments(model)
        self._caches: list[Any] = [None] * slots

    def fill(self, row: int, ids: Sequence[int], start: int) -> Tensor:
        from transformers import DynamicCache

        if start == 0:
            self._caches[row] = DynamicCache(config=self._model.config)
        return self._call(torch.tensor([list(ids)], device=self._model.device), self._caches[row])[0]

    def decode(self, ids: Sequence[int], lengths: Sequence[int]) -> Tensor:
        return torch.stack([self.fill(row, [token], length) for row, (token, length) in enumerate(zip(ids, lengths))])

    def move(self, source: int, target: int, length: int) -> None:
        self._caches[target], self._caches[source] = self._caches[source], None

    def clear(self, row: int) -> None:
        self._caches[row] = None

    def release(self) -> None:
        self._caches = [None] * len(self._caches)


def _arguments(model: Any) -> Callable[..., Tensor]:
    """Calls the model with its own names of arguments (they change between versions of transformers)."""
    known = inspect.signature(model.forward).parameters
    cache_name = cache_argument(model)
    extra = {"logits_to_keep": 1} if "logits_to_keep" in known else {}

    def call(ids: Tensor, cache: Any, **more: Any) -> Tensor:
        logits: Tensor = model(input_ids=ids, use_cache=True, **{cache_name: cache}, **extra, **more).logits
        return logits[:, -1].float()

    return call
