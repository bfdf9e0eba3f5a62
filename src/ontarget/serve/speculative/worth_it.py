"""Whether a draft head pays on this device: speculative against plain decoding, measured on the user's prompts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ontarget.errors import DataError
from ontarget.serve.speculative.draft_head import DraftHead
from ontarget.serve.speculative.draft_tree import TreeShape, chain
from ontarget.serve.speculative.generate import generate, generate_plain
from ontarget.values import Context

# Small drafts pay where a pass over many tokens costs more than one over a single token, as on CPUs (choice).
SHAPES = (chain(2), chain(4), TreeShape(4, 4, 12), TreeShape(10, 7, 60))
FASTER = 1.05  # less is noise (choice)


@dataclass(frozen=True)
class Speed:
    """Of all prompts together. tokens_per_pass: without the passes over the prompts; 1 for plain decoding."""

    tokens: int
    seconds: float
    tokens_per_pass: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class Verdict:
    """shape: the fastest one, None where plain decoding stays. text: the same for people."""

    shape: TreeShape | None
    plain: Speed
    drafted: dict[str, Speed]
    text: str

    def generate(self, model: Any, head: DraftHead, ids: Sequence[int], **settings: Any) -> Iterator[list[int]]:
        """`generate` with the shape that was found, or `generate_plain`."""
        if self.shape is None:
            return generate_plain(model, ids, **settings)
        return generate(model, head, ids, shape=self.shape, **settings)


def measure(run: Callable[[Sequence[int]], Iterator[list[int]]], prompts: Sequence[Sequence[int]]) -> Speed:
    """Tokens, seconds and tokens for each pass of ``run`` over prompts."""
    tokens = passes = 0
    began = time.perf_counter()
    for ids in prompts:
        for at, new in enumerate(run(ids)):
            tokens += len(new)
            passes += at > 0
    seconds = time.perf_counter() - began
    return Speed(tokens, seconds, (tokens - len(prompts)) / passes if passes else 1.0)


def worth_it(
    model: Any, head: DraftHead, prompts: Sequence[Sequence[int]], *, shapes: Sequence[TreeShape] = SHAPES,
    repeats: int = 2, context: Context = Context(), **settings: Any,
) -> Verdict:  # fmt: skip
    """Decode ``prompts`` plainly and with each shape, in turns, ``repeats`` times; each one's best time counts.

    settings: of `generate`, such as max_new_tokens and temperature. Raises DataError: no prompts; SettingError.
    """
    if not prompts:
        raise DataError("There are no prompts to measure on.", next_step="give a few held-out ones")
    runs: list[tuple[str, Callable[[Sequence[int]], Iterator[list[int]]]]] = [
        ("plain", partial(generate_plain, model, **settings)),
        *((shape.name, partial(generate, model, head, shape=shape, **settings)) for shape in shapes),
    ]
    for _, run in runs:  # the first calls of a shape allocate and compile
        next(run(prompts[0]))
    found: dict[str, Speed] = {}
    for repeat in range(repeats):
        for at, (name, run) in enumerate(runs):
            if context.progress is not None:
                context.progress(repeat * len(runs) + at, repeats * len(runs), "measuring speed")
            speed = measure(run, prompts)
            if name not in found or speed.tokens_per_second > found[name].tokens_per_second:
                found[name] = speed
    plain = found.pop("plain")
    best = max(shapes, key=lambda shape: found[shape.name].tokens_per_second)
    ratio = found[best.name].tokens_per_second / plain.tokens_per_second
    told = (f"{found[best.name].tokens_per_second:.1f} tokens/s with {best.name}, {plain.tokens_per_second:.1f} "
            f"without, {found[best.name].tokens_per_pass:.2f} tokens a pass")  # fmt: skip
    if ratio < FASTER:
        return Verdict(None, plain, found, f"The draft head is switched off: not faster here ({told}).")
    return Verdict(best, plain, found, f"The draft head makes generation {ratio:.2f} times as fast here ({told}).")
