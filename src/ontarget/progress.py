"""One progress display for all long work: stages announce themselves, functions report (done, total, what)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int, str], None]


@contextmanager
def console_progress(quiet: bool = False) -> Iterator[Progress | None]:
    """A progress bar with time left on standard error, for the length of the block; None where ``quiet``."""
    if quiet:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        transient=True,
    )
    lock, current = threading.Lock(), {"what": "", "bar": -1}

    def progress(done: int, total: int, what: str) -> None:
        with lock:
            if what != current["what"]:
                if current["bar"] != -1:
                    bars.remove_task(current["bar"])  # type: ignore[arg-type]
                current["what"], current["bar"] = what, bars.add_task(what, total=max(1, total))
                if not bars.console.is_terminal:
                    bars.console.print(what)
            bars.update(current["bar"], completed=done, total=max(1, total))  # type: ignore[arg-type]

    with bars:
        yield progress
