"""The folder of one run: every finished piece of work is on disk before the next begins.

Layout::

    task.toml            the resolved task, limits and pool: `ontarget fit RUN/task.toml` repeats the run
    stages/NAME.json     the value that a stage decided, with its start and seconds
    trials/0007/         trial.json, scores.npy and the files from which the network is rebuilt
    study.db             Optuna's study of the tuning trials
    variants/ bundle/    what the compress and serve stages wrote
    report.json, report.html
    run.lock             held by the process that works on the run

All writes go to a temporary name first and are then renamed: a killed process leaves whole files or none.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ontarget.errors import RunError
from ontarget.values import Array

FORMAT_VERSION = 1


def write_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` so that readers see the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's files are for the owner alone
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside ``path`` to write into, which becomes it at the end of the block, or is removed.

    Raises RunError: ``path`` exists, but for an empty folder.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunError(f"'{path}' exists.", option="--output", next_step="choose a new folder, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield partial
        partial.chmod(0o777 & ~_umask())  # mkdtemp's folders are for the owner alone
        if path.exists():
            path.rmdir()
        os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _umask() -> int:
    """The process's file mode mask; it can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def to_json(value: Any) -> bytes:
    """Readable JSON; numpy numbers and arrays become plain ones, NaN and infinity become null."""
    return json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


class RunFolder:
    """Reads and writes one run's folder. Holds no state of its own beyond the path and the start of this process."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __fspath__(self) -> str:
        return str(self.path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Own the run for the length of the block; the kernel frees it when the process dies."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / "run.lock", "a+")
        except OSError as error:
            raise RunError(
                f"The folder {self.path} cannot be written ({error.strerror or error}).", option="--output, --run",
                next_step="choose another folder",
            ) from error  # fmt: skip
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunError(
                    f"Another process is working on the run {self.path}.",
                    next_step="wait for it, or give this run another folder with --run",
                ) from error
            yield

    def has(self, stage: str) -> bool:
        return (self.path / "stages" / f"{stage}.json").exists()

    def read(self, stage: str) -> Any:
        """The value that ``stage`` stored. Raises RunError where it is missing or damaged."""
        return self._entry(stage)["value"]

    def _entry(self, stage: str) -> dict[str, Any]:
        path = self.path / "stages" / f"{stage}.json"
        try:
            entry: dict[str, Any] = json.loads(path.read_text())
            return entry
        except FileNotFoundError as error:
            raise RunError(
                f"The run {self.path} has no finished stage '{stage}'.",
                next_step=f"finish it with: ontarget fit --resume {self.path}",
            ) from error
        except json.JSONDecodeError as error:
            raise RunError(f"{path} is damaged ({error}).", next_step="delete the file and resume the run") from error

    def write(self, stage: str, value: Any, *, start_s: float = 0.0, seconds: float = 0.0, kind: str = "") -> None:
        """Store a stage's value. start_s counts from the start of the run's work, resumed or not."""
        entry = {"value": value, "start_s": start_s, "seconds": seconds, "kind": kind, "written": time.time()}
        write_atomic(self.path / "stages" / f"{stage}.json", to_json(entry))

    def once(self, stage: str, compute: Callable[[], Any], *, clock: Clock, kind: str = "other") -> Any:
        """The stored value of ``stage``, or ``compute()`` stored. kind: features, training, measuring or other."""
        if not self.has(stage):
            start_s, before = clock.elapsed_s(), clock.accounted_s
            value = compute()
            # Nested work (trials within a stage) has accounted for its own seconds already.
            seconds = max(0.0, clock.elapsed_s() - start_s - (clock.accounted_s - before))
            self.write(stage, value, start_s=start_s, seconds=seconds, kind=kind)
            clock.account(seconds)
        return self.read(stage)

    def timeline(self) -> list[dict[str, Any]]:
        """What was done when: stages and trials in the order of their start."""
        rows = []
        for path in sorted((self.path / "stages").glob("*.json")):
            entry = json.loads(path.read_text())
            if entry["kind"]:
                rows.append({"stage": path.stem, "what": entry["kind"], **_times(entry)})
        for trial in self.trials():
            rows.append({"stage": f"trial {trial['number']}", "what": "training", **_times(trial)})
        return sorted(rows, key=lambda row: float(row["start_s"]))

    def trial_folder(self, number: int) -> Path:
        return self.path / "trials" / f"{number:04d}"

    def trials(self) -> list[dict[str, Any]]:
        """All finished trials, by number."""
        return [json.loads(path.read_text()) for path in sorted((self.path / "trials").glob("*/trial.json"))]

    def write_trial(self, record: Mapping[str, Any], scores: Array | None, files: Mapping[str, bytes]) -> None:
        """Store a finished trial; ``trial.json`` comes last, so its presence means that the rest is whole."""
        folder = self.trial_folder(int(record["number"]))
        for name, content in files.items():
            write_atomic(folder / name, content)
        if scores is not None:
            buffer = io.BytesIO()
            np.save(buffer, np.asarray(scores, dtype=np.float32), allow_pickle=False)
            write_atomic(folder / "scores.npy", buffer.getvalue())
        write_atomic(folder / "trial.json", to_json(record))

    def trial_scores(self, number: int) -> Array:
        """(N_validation, C or 1) float32 scores of a finished trial."""
        scores: Array = np.load(self.trial_folder(number) / "scores.npy", allow_pickle=False)
        return scores


def _times(entry: Mapping[str, Any]) -> dict[str, float]:
    return {"start_s": float(entry["start_s"]), "seconds": float(entry["seconds"])}


class Clock:
    """Seconds of work spent on a run, over all of its processes, against its budget.

    spent_s: what earlier processes of the same run have spent.
    """

    def __init__(self, budget_s: float, spent_s: float = 0.0) -> None:
        self.budget_s = budget_s
        self.spent_s = spent_s
        self.accounted_s = 0.0
        self._start = time.monotonic()

    def elapsed_s(self) -> float:
        return self.spent_s + time.monotonic() - self._start

    def remaining_s(self) -> float:
        return self.budget_s - self.elapsed_s()

    def account(self, seconds: float) -> None:
        self.accounted_s += seconds

    def deadline(self, seconds: float) -> float:
        """``time.monotonic()`` value ``seconds`` from now."""
        return time.monotonic() + max(0.0, seconds)
