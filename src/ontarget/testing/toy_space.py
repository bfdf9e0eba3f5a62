"""A space of codes alone: its networks cannot be built. Tests of searches give it slots and what is canonical."""

from __future__ import annotations

from typing import Any

from ontarget.search.space import Code, Slot


class ToySpace:
    """An `ElasticNetwork` by its form; every code is canonical."""

    slots: tuple[Slot, ...]

    def canonical(self, code: Code) -> Code:
        return tuple(int(value) for value in code)

    def slice(self, code: Code) -> Any:
        raise NotImplementedError("a toy space has codes and no networks")

    def config(self, code: Code) -> dict[str, Any]:
        return {}

    def operators(self, code: Code) -> tuple[Any, ...]:
        return ()

    def example(self, batch_size: int) -> tuple[Any, ...]:
        return ()
