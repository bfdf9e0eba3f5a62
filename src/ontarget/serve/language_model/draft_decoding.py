"""A draft head in the server: it makes the tokens of a request that runs alone, where that is faster here.

What is said does not change (see speculative/generate.py): greedy tokens are the model's own, sampled ones have its
law. A sampled request with a seed takes the shared steps, since its text must not depend on who else asks; so does one
with a top_k, which the drafts do not know.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ontarget.errors import DataError
from ontarget.pool.language_models import LanguageModel
from ontarget.serve.language_model.batch_decoder import Generation
from ontarget.serve.speculative.draft_head import CONFIG, DraftHead, load_draft_head
from ontarget.serve.speculative.draft_tree import TreeShape, chain
from ontarget.serve.speculative.generate import generate, generate_plain
from ontarget.serve.speculative.target import check_target
from ontarget.serve.speculative.worth_it import SHAPES, measure, worth_it

# Choices: prompts that speed is measured on when a server starts, how long that may take, about, and the fewest and
# most tokens of each of their replies.
PROMPTS, MEASURE_S, LEAST, MOST = 3, 60.0, 8, 64
REPEATS = 2
FORCED = chain(4)  # where the head's folder names no shape


@dataclass(frozen=True)
class Shapes:
    """Drafts for greedy and for sampled requests; None: plain decoding. text: why, for people."""

    greedy: TreeShape | None
    sampled: TreeShape | None
    text: str


class DraftDecoding:
    """A head in use on ``model``, called from one thread. piece: tokens of a prompt that are read in one step.

    tokens, passes: of the texts so far, without the passes over their prompts.
    """

    def __init__(self, model: LanguageModel, head: DraftHead, shapes: Shapes, *, piece: int = 256) -> None:
        self._model, self._head, self.shapes, self._piece = model, head, shapes, piece
        self.tokens = self.passes = 0

    def alone(self, generation: Generation) -> Iterator[list[int]] | None:
        """New ids behind those that it has, list by list; None: the request takes the shared steps."""
        sampling = generation.sampling
        shape = self.shapes.greedy if sampling.greedy else self.shapes.sampled
        if shape is None or not (sampling.greedy or (sampling.seed is None and sampling.top_k == 0)):
            return None
        law = {"temperature": 0.0} if sampling.greedy else {"temperature": sampling.temperature,
                                                            "top_p": sampling.top_p}  # fmt: skip
        return self._counted(generate(
            self._model.model, self._head, [*generation.prompt, *generation.ids], shape=shape, piece=self._piece,
            max_new_tokens=generation.max_new - len(generation.ids), stop_ids=self._model.stop_ids,
            # A number of its own: a request that comes back from the shared steps does not draw the same again.
            seed=int(torch.randint(2**62, (), generator=generation.random)), **law,
        ))  # fmt: skip

    def status(self) -> dict[str, Any]:
        """The drafts' shapes, None where they are switched off, why, and what they brought so far."""
        greedy, sampled = self.shapes.greedy, self.shapes.sampled
        return {"greedy": greedy and greedy.name, "sampled": sampled and sampled.name, "why": self.shapes.text,
                "tokens": self.tokens, "passes": self.passes}  # fmt: skip

    def _counted(self, lists: Iterator[list[int]]) -> Iterator[list[int]]:
        begun = False
        for new in lists:
            if begun:
                self.tokens += len(new)
                self.passes += 1
            begun = begun or bool(new)
            yield new


def open_draft(
    model: LanguageModel, folder: Path, *, always: bool = False, say: Callable[[str], None] = print
) -> DraftDecoding:
    """The head of ``folder`` on ``model``, switched off where it makes nothing faster on this machine.

    model: as it is served, laid out by `pack_linears` where that is so. always: use it without measuring. say: gets
    what is done and found. Raises DataError: no head, a damaged one, one of another model, a model that can have none.
    """
    head = load_draft_head(folder, model.model).requires_grad_(False)
    check_target(model.model)
    shape, prompts = _told(folder)
    head.pack()
    if always:
        shapes = Shapes(shape or FORCED, shape or FORCED, "The draft head is used without measuring whether it pays.")
    else:
        shapes = fastest_shapes(model, head, prompts, say=say)
    say(shapes.text)
    return DraftDecoding(model, head, shapes)


def fastest_shapes(
    model: LanguageModel, head: DraftHead, prompts: Sequence[Sequence[int]], *, budget_s: float = MEASURE_S,
    say: Callable[[str], None] = print,
) -> Shapes:  # fmt: skip
    """Which drafts pay on this machine, measured by `worth_it` for greedy and for sampled text at a temperature of 1.

    prompts: token ids, held out of the head's training; of those that fit into the window the first few are measured.
    budget_s: about, by the speed of plain decoding; it shortens the replies.
    """
    chosen = [list(ids) for ids in prompts if 0 < len(ids) <= model.window - LEAST][:PROMPTS]
    if not chosen:
        return Shapes(None, None, "The draft head is switched off: its folder holds no prompts to measure it on that "
                      "fit into the window.")  # fmt: skip
    plain = partial(generate_plain, model.model, max_new_tokens=LEAST)
    measure(plain, chosen[:1])  # the first call allocates and compiles
    speed = measure(plain, chosen[:1]).tokens_per_second
    texts = 2 * REPEATS * (len(SHAPES) + 1) * len(chosen)
    count = max(LEAST, min(MOST, int(budget_s * speed / texts), model.window - max(map(len, chosen))))
    say(f"Measuring whether the draft head pays here: {texts} replies of up to {count} tokens, about "
        f"{texts * count / speed:.0f} s; --draft-always leaves it out.")  # fmt: skip
    greedy, sampled = (
        worth_it(model.model, head, chosen, repeats=REPEATS, max_new_tokens=count, stop_ids=model.stop_ids,
                 temperature=temperature) for temperature in (0.0, 1.0)
    )  # fmt: skip
    return Shapes(greedy.shape, sampled.shape, f"Greedy requests: {greedy.text} Sampled ones: {sampled.text}")


def _told(folder: Path) -> tuple[TreeShape | None, list[list[int]]]:
    """What `ontarget draft` wrote beside the head: the shape that was fastest there, and held-out prompts."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    try:
        shape = TreeShape(**config["shape"]) if config.get("shape") else None
        return shape, [[int(token) for token in ids] for ids in config.get("held_out") or []]
    except (TypeError, ValueError) as error:
        raise DataError(f"{folder / CONFIG} is damaged ({error}).", next_step="train the head again") from error
