"""OnTarget: from a target task and a target device to the best model that fits both, with proof."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

# Public name -> module that defines it; imported on first use, so that `import ontarget` stays light.
_PUBLIC = {
    "Limits": "ontarget.task",
    "Run": "ontarget.fitting",
    "OnTargetError": "ontarget.errors",
    "Task": "ontarget.task",
    "fit": "ontarget.fitting",  # not fit.py: the module would take the function's name once imported
    "load_bundle": "ontarget.runtime",
    "rank": "ontarget.select.rank_sources",
}
__all__ = [*sorted(_PUBLIC), "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        import importlib

        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'ontarget' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
