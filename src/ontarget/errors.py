"""The exceptions that OnTarget raises, each with a message in four parts.

A message says what was given, what is allowed, whose option it is, and what to do next. Code that raises
fills the parts; the CLI prints them without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OnTargetError(Exception):
    """Root of all errors raised on purpose.

    given: what was found, e.g. ``"column 'txt' is not in reviews.csv"``.
    allowed: what would be accepted, e.g. ``"text, label, id"``.
    option: the option or file that it came from, e.g. ``"--input"``.
    next_step: what to do, as an imperative.
    """

    def __init__(self, given: str, *, allowed: str = "", option: str = "", next_step: str = "") -> None:
        self.given, self.allowed, self.option, self.next_step = given, allowed, option, next_step
        parts = [given]
        if allowed:
            parts.append(f"Allowed: {allowed}.")
        if option:
            parts.append(f"Set by: {option}.")
        if next_step:
            parts.append(f"Next: {next_step}.")
        super().__init__("\n".join(parts))

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (executors); keyword arguments need help to be rebuilt.
        return (_rebuild, (type(self), self.given, self.allowed, self.option, self.next_step))


class DataError(OnTargetError):
    """The user's data: a file, a column, a row, an image, a label."""


class SettingError(OnTargetError):
    """An option outside its range, or options that contradict each other."""


class MissingExtra(OnTargetError, ImportError):
    """A library that the chosen feature needs is not installed; names the extra that brings it."""


class LimitError(OnTargetError):
    """No candidate can meet the latency, memory, size or time limit."""


class RunError(OnTargetError):
    """A run folder or bundle that cannot be used: missing, damaged, of another version, or busy."""


def _rebuild(kind: type[OnTargetError], given: str, allowed: str, option: str, next_step: str) -> OnTargetError:
    return kind(given, allowed=allowed, option=option, next_step=next_step)


def nearest(name: str, names: Iterable[str]) -> str:
    """The entry of ``names`` most like ``name`` as ``"did you mean 'x'?"``, or an empty string."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else ""


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, here or on a device: torch says so in several ways."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate" in text


def require_extra(module: str, extra: str, purpose: str) -> None:
    """Raise `MissingExtra` unless ``module`` can be imported."""
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise MissingExtra(
            f"{purpose} needs the package '{module}', which is not installed.",
            option=f"extra '{extra}'",
            next_step=f"pip install 'ontarget[{extra}]'",
        )
