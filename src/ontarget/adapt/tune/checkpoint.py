"""Tensors and plain values as one block of bytes: safetensors with a JSON header, nothing unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def pack(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> bytes:
    """Bytes that `unpack` reads."""
    from safetensors.torch import save

    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    content: bytes = save(plain, metadata={"values": json.dumps(dict(values))})
    return content


def unpack(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, values). Raises ValueError for bytes that `pack` has not made."""
    from safetensors.torch import load

    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return load(content), json.loads(header["__metadata__"]["values"])
