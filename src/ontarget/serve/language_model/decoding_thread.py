"""The thread that owns the model: a queue before it, text after it, time limits and cancellation between its steps."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ontarget.errors import OnTargetError, SettingError
from ontarget.serve.language_model.batch_decoder import BatchDecoder, Generation
from ontarget.serve.language_model.text_stream import TextStream

Finish = Literal["stop", "length", "timeout", "error", "closed"]


class QueueFull(OnTargetError):
    """As many requests wait as may."""


class Closed(OnTargetError):
    """The server stops and takes no more."""


@dataclass(frozen=True)
class Piece:
    """New text of a request. tokens: of the answer so far. finish: set on the last piece; detail: of an error."""

    text: str
    tokens: int
    finish: Finish | None = None
    detail: str = ""


@dataclass(eq=False)
class Ticket:
    """A request in the queue or in a slot. deliver: called in the decoding thread; it must return at once."""

    generation: Generation
    stream: TextStream
    deadline: float
    deliver: Callable[[Piece], None]
    tokens: int = 0
    cancelled: bool = False


class DecodingThread:
    """Runs a decoder until closed. All methods may be called from any thread.

    decode: ids to text, of a tokenizer that nothing else uses. queue: requests that may wait for a slot.
    """

    def __init__(self, decoder: BatchDecoder, decode: Callable[[list[int]], str], *, queue: int = 16) -> None:
        if queue < 0:
            raise SettingError(f"queue is {queue}.", allowed="0 or more", option="--queue")
        self._decoder, self._decode, self.queue = decoder, decode, queue
        self._waiting: deque[Ticket] = deque()
        self._running: dict[Generation, Ticket] = {}
        self._totals: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self._thread.start()

    def submit(
        self, generation: Generation, deliver: Callable[[Piece], None], *, stops: Sequence[str] = (),
        timeout_s: float = 300.0,
    ) -> Ticket:  # fmt: skip
        """Queue a request. Raises QueueFull, Closed."""
        stream = TextStream(self._decode, stops, generation.prompt)
        ticket = Ticket(generation, stream, time.monotonic() + timeout_s, deliver)
        with self._changed:
            if self._closed:
                raise Closed("The server is stopping.")
            if len(self._waiting) + len(self._running) >= self._decoder.slots + self.queue:
                raise QueueFull(
                    f"{len(self._running)} requests run and {len(self._waiting)} wait.",
                    allowed=f"{self._decoder.slots} running, {self.queue} waiting", next_step="try again in a moment",
                )  # fmt: skip
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Frees the place in the queue now, or the slot before the next step. Nothing more is delivered."""
        with self._changed:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                self._totals["cancelled"] += 1
            ticket.cancelled = True
            self._changed.notify()

    def counts(self) -> dict[str, int]:
        """running, waiting, slots, and how many ended in each way since the start."""
        with self._changed:
            ended = {name: self._totals[name] for name in ("completed", "cancelled", "timeout", "error")}
            return {"running": len(self._running), "waiting": len(self._waiting), "slots": self._decoder.slots, **ended}

    def close(self, wait_s: float = 10.0) -> None:
        """End what runs or waits with the finish "closed", and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(wait_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._closed or self._waiting or self._running):
                    self._changed.wait()
                if self._closed:
                    left = [*self._running.values(), *self._waiting]
                    self._waiting.clear()
                else:
                    left = None
                    self._drop_ended()
                    self._admit()
            if left is not None:
                for ticket in left:
                    self._end(ticket, "closed")
                return
            self._step()

    def _drop_ended(self) -> None:
        now = time.monotonic()
        for ticket in [one for one in self._running.values() if one.cancelled]:
            del self._running[ticket.generation]
            self._decoder.leave(ticket.generation)
            self._totals["cancelled"] += 1
        for ticket in [one for one in (*self._running.values(), *self._waiting) if one.deadline < now]:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            self._decoder.leave(ticket.generation)
            self._end(ticket, "timeout")

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._decoder.slots:
            ticket = self._waiting.popleft()
            try:
                self._decoder.join(ticket.generation)
            except Exception as error:  # it is this request's alone
                self._fail(ticket, error)
                continue
            self._running[ticket.generation] = ticket

    def _step(self) -> None:
        if not self._running:
            return
        try:
            came = self._decoder.step()
        except Exception as error:  # memory, a device: the requests end, the server goes on
            self._decoder.reset()
            for ticket in list(self._running.values()):
                self._fail(ticket, error)
            return
        for generation, ids in came:
            self._hand_on(self._running[generation], ids)

    def _hand_on(self, ticket: Ticket, ids: list[int]) -> None:
        generation, stream = ticket.generation, ticket.stream
        if generation.error is not None:
            self._fail(ticket, generation.error)
            return
        ended = generation.finish == "stop"
        text = ""
        for at, token in enumerate(ids):
            ticket.tokens += 1
            if not (ended and at == len(ids) - 1):  # the end token has no text
                text += stream.push(token)
            if stream.stopped:
                break
        if not stream.stopped and generation.finish is not None:
            text += stream.finish()
        if stream.stopped:
            self._decoder.leave(generation)
            self._end(ticket, "stop", text)
        elif generation.finish is not None:
            self._end(ticket, generation.finish, text)
        elif text:
            self._deliver(ticket, Piece(text, ticket.tokens))

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        logging.getLogger("ontarget.serve").error("A request failed", exc_info=error)
        self._end(ticket, "error", detail=f"{type(error).__name__}: {error}")

    def _end(self, ticket: Ticket, finish: Finish, text: str = "", detail: str = "") -> None:
        with self._changed:
            self._running.pop(ticket.generation, None)
            self._totals["completed" if finish in ("stop", "length") else finish] += 1
        self._deliver(ticket, Piece(text, ticket.tokens, finish, detail))

    def _deliver(self, ticket: Ticket, piece: Piece) -> None:
        if ticket.cancelled:
            return
        try:
            ticket.deliver(piece)
        except RuntimeError:  # the client's event loop has ended
            ticket.cancelled = True
