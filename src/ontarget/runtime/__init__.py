"""What a bundle carries: preprocessing, prediction, self-test. No PyTorch, nothing of the rest of OnTarget."""

from __future__ import annotations

from typing import Any


def load_bundle(path: Any, *, threads: int | None = None) -> Any:
    """See `bundle.load_bundle`."""
    from .bundle import load_bundle as load

    return load(path, threads=threads)
