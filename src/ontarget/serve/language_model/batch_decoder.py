"""Continuous batching: requests join and leave between steps, and each gets what it would get alone.

A step is one piece of a prompt (of the request that waits longest) and one token for every request that is past its
prompt. One thread calls all of it. Not done: sharing the cache of equal prompts, several choices of one prompt.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ontarget.errors import RunError, SettingError
from ontarget.serve.language_model.forward import Forward
from ontarget.serve.language_model.sampling import Sampling, choose, draws

# Lists of ids behind those that a request has, to its end: a speculative generator, for example. A list may be empty.
# None: the request takes the shared steps.
Generator = Callable[["Generation"], Iterator[list[int]] | None]


@dataclass(eq=False)
class Generation:
    """One request: its prompt and what it has so far.

    ids: new ids, the end token included. finish: "stop" after an end token, "length" at ``max_new``, else None.
    error: why it ended, where the model failed.
    """

    prompt: list[int]
    sampling: Sampling
    max_new: int
    ids: list[int] = field(default_factory=list)
    finish: Literal["stop", "length"] | None = None
    error: Exception | None = None

    def __post_init__(self) -> None:
        if not self.prompt or self.max_new < 1:
            raise SettingError(
                f"{len(self.prompt)} tokens of prompt, {self.max_new} new ones.", allowed="1 or more of both"
            )
        self.random = draws(self.sampling.seed)
        self.cached = 0  # tokens of prompt and ids in the cache
        self.shared = False  # takes the shared steps to its end


class BatchDecoder:
    """Up to ``slots`` generations on one model.

    end_ids: tokens after which a text ends. piece: tokens of a prompt taken in one step, so that a long prompt does
    not hold up the others. alone: makes the tokens of a request while it is the only one; when another joins, it goes
    on in the shared steps, and goes back when it is the only one again and its text is soon read anew.
    """

    def __init__(
        self,
        forward: Forward,
        *,
        slots: int,
        end_ids: Collection[int],
        piece: int = 256,
        alone: Generator | None = None,
    ) -> None:
        if slots < 1 or piece < 1:
            raise SettingError(f"slots is {slots}, piece {piece}.", allowed="1 or more")
        self._forward, self.slots, self._end_ids = forward, slots, frozenset(end_ids)
        self._piece, self._alone = piece, alone
        # Rows of the cache: those that decode, then those whose prompts are to be read, the first of which is begun.
        self._decoding: list[Generation] = []
        self._filling: list[Generation] = []
        self._single: tuple[Generation, Iterator[list[int]]] | None = None

    @property
    def running(self) -> list[Generation]:
        return [*self._decoding, *self._filling, *([self._single[0]] if self._single else [])]

    def join(self, generation: Generation) -> None:
        """Raises RunError without a free slot."""
        if len(self.running) >= self.slots:
            raise RunError(f"All {self.slots} slots are taken.", next_step="wait")
        if self._single is not None:
            self._filling.append(self._single[0])  # it goes on in the batch: its text is read again
            self._single = None
        self._filling.append(generation)

    @torch.inference_mode()
    def leave(self, generation: Generation) -> None:
        """Frees the slot at once. Nothing happens if it has left already."""
        if self._single is not None and self._single[0] is generation:
            self._single = None
        elif generation in self._filling:
            self._filling.remove(generation)  # rows behind it are not begun
        elif generation in self._decoding:
            row, last = self._decoding.index(generation), len(self._decoding) - 1
            if row != last:
                self._decoding[row] = self._decoding[last]
                self._forward.move(last, row, self._decoding[row].cached)
            self._decoding.pop()
            if self._filling and self._filling[0].cached:
                self._forward.move(last + 1, last, self._filling[0].cached)
        generation.cached = 0
        if not self.running:
            self._forward.release()

    @torch.inference_mode()
    def reset(self) -> list[Generation]:
        """All leave, after a failure; those that were running."""
        left = self.running
        self._decoding, self._filling, self._single = [], [], None
        for row in range(self.slots):
            self._forward.clear(row)
        self._forward.release()
        return left

    @torch.inference_mode()
    def step(self) -> list[tuple[Generation, list[int]]]:
        """New ids of every generation that got some or ended; those that ended have left."""
        self._go_alone()
        if self._single is not None:
            return self._step_single(*self._single)
        came: list[tuple[Generation, list[int]]] = []
        # A request whose prompt ends in this step decodes from the next one.
        decoding = list(self._decoding)
        first = self._filling[0] if self._filling else None
        if first is not None:
            text = [*first.prompt, *first.ids]
            part = text[first.cached : first.cached + self._piece]
            logits = self._forward.fill(len(self._decoding), part, first.cached)
            first.cached += len(part)
            if first.cached == len(text):
                self._filling.pop(0)
                self._decoding.append(first)
                came += self._take([first], logits[None])
        if decoding:
            # Rows may have moved, or the new one left.
            logits = self._forward.decode([one.ids[-1] for one in decoding], [one.cached for one in decoding])
            for one in decoding:
                one.cached += 1
            came += self._take(decoding, logits)
        return came

    def _take(self, generations: list[Generation], logits: Tensor) -> list[tuple[Generation, list[int]]]:
        """One token each. logits: (R, V)."""
        finite = logits.isfinite().all(-1).tolist()
        likeliest = logits.argmax(-1).tolist()
        came: list[tuple[Generation, list[int]]] = []
        for row, one in enumerate(generations):
            if not finite[row]:
                one.error = RunError("The model's logits are not finite.", next_step="serve it in float32")
                self._forward.clear(self._decoding.index(one))
                self.leave(one)
                came.append((one, []))
                continue
            token = likeliest[row]
            if not one.sampling.greedy:
                draw = float(torch.rand((), generator=one.random, dtype=torch.float64))
                token = choose(logits[row], one.sampling, draw)
            came.append((one, self._add(one, [token])))
        return came

    def _go_alone(self) -> None:
        """The only request goes over to the generator of its own."""
        if self._alone is None or self._single is not None or len(self.running) != 1:
            return
        [one] = self.running
        # Its text is read anew, which must not cost more than it brings: as much may follow as was read (choice).
        if one.shared or one.max_new - len(one.ids) < one.cached:
            return
        source = self._alone(one)
        if source is None:
            one.shared = True
            return
        self.leave(one)
        self._single = one, source

    def _step_single(self, one: Generation, source: Iterator[list[int]]) -> list[tuple[Generation, list[int]]]:
        try:
            new = next(source, None)
            if new is None:
                raise RunError("The generator ended before the text did.")
        except Exception as error:  # a plugged-in generator fails in its own ways; what it gave so far stands
            logging.getLogger("ontarget.serve").warning("A request goes on in the shared steps", exc_info=error)
            self._single, one.shared = None, True
            self._filling.append(one)
            return []
        taken = self._add(one, new)
        return [(one, taken)] if taken else []

    def _add(self, one: Generation, new: list[int]) -> list[int]:
        """Those of ``new`` that belong to the text; the generation leaves at its end."""
        taken: list[int] = []
        for token in map(int, new[: one.max_new - len(one.ids)]):
            taken.append(token)
            if token in self._end_ids:
                one.finish = "stop"
                break
        one.ids += taken
        if one.finish is None and len(one.ids) >= one.max_new:
            one.finish = "length"
        if one.finish is not None:
            self.leave(one)
        return taken
