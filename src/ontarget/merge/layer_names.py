"""Which layer of a transformer a tensor belongs to, by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")
_FIRST = re.compile(r"(?:^|\.)(?:embed|wte|wpe|embeddings|word_embeddings|embed_tokens)")


def layer_of(name: str) -> int | None:
    """The number in ``model.layers.3.mlp.weight`` or ``encoder.layer.3.output.bias``; None outside of layers."""
    found = _LAYER.search(name)
    return int(found.group(1)) if found else None


def layer_count(names: Iterable[str]) -> int:
    """One more than the highest layer; 0 without layers."""
    return max((layer + 1 for layer in map(layer_of, names) if layer is not None), default=0)


def depth_of(name: str, layers: int) -> float:
    """0 at the first layer and before, 1 at the last and after."""
    layer = layer_of(name)
    if layer is None:
        return 0.0 if _FIRST.search(name) else 1.0
    return layer / (layers - 1) if layers > 1 else 0.0
