"""Runs a checker's file apart from OnTarget: a process for every row, with limits. Standard library alone.

Started by answer_checker.py as ``python -I answer_checker_worker.py CHECKER SECONDS MEMORY_MB``. A line of JSON on
standard input is one row; a line of JSON on standard output is what came of it.
"""

import ctypes
import json
import math
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
MAX_FILE_BYTES, MAX_OPEN_FILES, MAX_RESULT_BYTES = 16 << 20, 64, 4096


def main() -> None:
    """Load the checker, say how that went, then answer one line for each line."""
    path, seconds, memory_mb = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)  # what the checker prints is no result
    os.dup2(nothing, 2)
    isolated = _without_network()
    try:
        check = _load(path)
        say(results, {"loaded": True, "without_network": isolated})
    except BaseException as error:
        say(results, {"loaded": False, "reason": _last_line(error)})
        return
    for line in sys.stdin:
        say(results, _in_child(check, json.loads(line), seconds, memory_mb))


def say(stream: Any, value: dict[str, Any]) -> None:
    print(json.dumps(value), file=stream, flush=True)


def _load(path: str) -> Callable[[str, str, list[str]], object]:
    names: dict[str, Any] = {"__name__": "checker", "__file__": path}
    with open(path, encoding="utf-8") as file:
        exec(compile(file.read(), path, "exec"), names)
    if not callable(names.get("check")):
        raise NameError("the file has no function check(prompt, answer, references)")
    check: Callable[[str, str, list[str]], object] = names["check"]
    return check


def _without_network() -> bool:
    """Leave the network behind, where the system lets us."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        return any(libc.unshare(flags) == 0 for flags in (CLONE_NEWNET, CLONE_NEWUSER | CLONE_NEWNET))
    except (OSError, AttributeError):
        return False


def _in_child(
    check: Callable[[str, str, list[str]], object], row: dict[str, Any], seconds: float, memory_mb: int
) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for name, value in (
            (resource.RLIMIT_AS, memory_mb << 20), (resource.RLIMIT_CPU, math.ceil(seconds) + 1),
            (resource.RLIMIT_FSIZE, MAX_FILE_BYTES), (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
            (resource.RLIMIT_CORE, 0),
        ):  # fmt: skip
            resource.setrlimit(name, (value, value))
        try:
            found = _score(check(row["prompt"], row["answer"], row["references"]))
        except BaseException as error:
            found = {"score": 0.0, "reason": _last_line(error)}
        os.write(writing, json.dumps(found).encode()[:MAX_RESULT_BYTES])
        os._exit(0)
    os.close(writing)
    try:
        return _result(reading, time.monotonic() + seconds, seconds)
    finally:
        os.close(reading)
        for kill in (os.killpg, os.kill):  # what the row started goes with it
            try:
                kill(child, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
        os.waitpid(child, 0)


def _result(reading: int, until: float, seconds: float) -> dict[str, Any]:
    parts = b""
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            return {"score": 0.0, "reason": f"no result within {seconds:g} s"}
        part = os.read(reading, MAX_RESULT_BYTES)
        if not part:
            break
        parts += part
        try:
            found: dict[str, Any] = json.loads(parts)
            return found
        except ValueError:
            continue
    return {"score": 0.0, "reason": "its process died (memory, a crash, or an exit)"}


def _score(value: object) -> dict[str, Any]:
    if isinstance(value, (bool, int, float)) and math.isfinite(value) and 0 <= value <= 1:
        return {"score": float(value), "reason": ""}
    return {"score": 0.0, "reason": f"check returned {str(value)[:80]!r}, not True, False or a number from 0 to 1"}


def _last_line(error: BaseException) -> str:
    return traceback.format_exception_only(type(error), error)[-1].strip()[:300]


if __name__ == "__main__":
    main()
