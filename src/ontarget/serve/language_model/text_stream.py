"""Tokens to text as they come: no half characters, and nothing that may turn out to be part of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

CONTEXT_TOKENS = 6  # of the prompt: tokenizers drop a space at the start of a text, and it must not be dropped here
LONGEST_CHARACTER = 8  # tokens; a character of UTF-8 has at most 4 bytes, so more will not complete it


class TextStream:
    """``push`` gives text that is final; ``finish`` the rest. ``stopped``: a stop string came; it is not in the text.

    decode: token ids to text. before: the prompt's ids.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], stops: Sequence[str] = (), before: Sequence[int] = ()
    ) -> None:
        self._decode, self._stops = decode, tuple(stops)
        self._ids = list(before[-CONTEXT_TOKENS:])
        self._done = len(self._ids)  # ids whose text is out
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Text that became final with ``token``; "" after a stop."""
        if self.stopped:
            return ""
        self._ids.append(token)
        return self._released(self._new_text(last=False), last=False)

    def finish(self) -> str:
        """What was held back, when no more tokens come."""
        return "" if self.stopped else self._released(self._new_text(last=True), last=True)

    def _new_text(self, *, last: bool) -> str:
        known, whole = self._decode(self._ids[: self._done]), self._decode(self._ids)
        pending = len(self._ids) - self._done
        if not last and whole.endswith("�") and pending < LONGEST_CHARACTER:
            return ""
        # Of what is out, the last tokens stay as context for the next ones.
        self._ids = self._ids[-max(pending, CONTEXT_TOKENS) :]
        self._done = len(self._ids)
        return whole[len(known) :]

    def _released(self, text: str, *, last: bool) -> str:
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if last else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
