"""A user's checker of generated answers, run in processes apart: one for each row, with limits.

The file holds ``check(prompt, answer, references) -> bool or number from 0 to 1`` and may itself run what a model wrote
(unit tests of generated code). A row's process has its own time, memory, and file limits, an empty environment, a
temporary folder, and no network where the system allows it; endless loops, crashes and `exit` cost that row alone. It
is a guard against accidents, not a wall against an attacker: files that the user can read can be read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ontarget.errors import DataError, SettingError
from ontarget.values import Array, Context

SECONDS, MEMORY_MB = 5.0, 2048


@dataclass(frozen=True)
class Checked:
    """scores: (N,) in [0, 1]. reasons: N texts, "" where the checker came to a result. without_network: whether the
    system let the checker's processes be cut off from the network."""

    scores: Array
    reasons: tuple[str, ...]
    without_network: bool


def check_answers(
    checker: Path | str,
    prompts: Sequence[str],
    answers: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    seconds: float = SECONDS,
    memory_mb: int = MEMORY_MB,
    context: Context = Context(),
) -> Checked:
    """Scores of all answers; a row whose check fails or takes longer than ``seconds`` has 0 and a reason.

    Raises DataError: a checker that cannot be loaded, or fails on every row in the same way; SettingError.
    """
    if seconds <= 0 or memory_mb < 64:
        raise SettingError(f"seconds is {seconds}, memory_mb {memory_mb}.", allowed="above 0; 64 or more")
    found: list[dict[str, Any]] = []
    with _worker(Path(checker), seconds, memory_mb) as (worker, without_network):
        for row, (prompt, answer, right) in enumerate(zip(prompts, answers, references, strict=True)):
            if context.progress is not None:
                context.progress(row, len(prompts), "checking answers")
            worker.stdin.write(json.dumps({"prompt": prompt, "answer": answer, "references": list(right)}) + "\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
            if not line:
                raise DataError(f"The checker's process of {checker} ended at row {row}.", option="--checker")
            found.append(json.loads(line))
    reasons = tuple(str(one["reason"]) for one in found)
    if len(found) > 1 and reasons[0] and len(set(reasons)) == 1:
        raise DataError(f"The checker {checker} fails on all {len(found)} rows: {reasons[0]}", option="--checker",
                        allowed="check(prompt, answer, references) -> True, False or a number from 0 to 1",
                        next_step="try it on one answer in Python")  # fmt: skip
    return Checked(np.array([float(one["score"]) for one in found]), reasons, without_network)


@contextmanager
def _worker(checker: Path, seconds: float, memory_mb: int) -> Iterator[tuple[Any, bool]]:
    if not checker.is_file():
        raise DataError(f"There is no file '{checker}'.", option="--checker", next_step="check the path")
    script = Path(__file__).with_name("answer_checker_worker.py")
    command = [sys.executable, "-I", str(script), str(checker.resolve()), str(seconds), str(memory_mb)]
    environment = {name: os.environ[name] for name in ("PATH", "LANG", "SYSTEMROOT") if name in os.environ}
    with tempfile.TemporaryDirectory(prefix="ontarget-checker-") as folder:
        worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=folder,
            env=environment, text=True, encoding="utf-8",
        )  # fmt: skip
        try:
            assert worker.stdout is not None
            line = worker.stdout.readline()
            said = json.loads(line) if line else {"loaded": False, "reason": "its process died at once"}
            if not said["loaded"]:
                raise DataError(f"The checker {checker} cannot be used: {said['reason']}", option="--checker",
                                next_step="give a Python file with check(prompt, answer, references)")  # fmt: skip
            yield worker, bool(said["without_network"])
        finally:
            worker.kill()
            worker.wait()
            for stream in (worker.stdin, worker.stdout):
                if stream is not None:
                    stream.close()
