"""A population store: what searches of a space and a task visited on each device and setting, for searches to come.

    STORE/mobile-3f2a91c07d5e4b66/1f0c....jsonl

One folder for each space and task, named by the space and a digest of its slots, its smallest and largest network and
the task's rows and splits; in it one file of JSON lines for each search. A file has one writer, so that searches that
run at once lose nothing of each other, and the stores of two machines are joined by copying one into the other. The
first line says what the file is of (space, task, device, setting); each further line is a configuration that was
evaluated, with its quality and its latency. These values are of one super-network's training on one device: they order
the configurations of their own file, and are never taken for evaluations of another search.
Checked: tests/search/test_population_store.py.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ontarget.errors import RunError, SettingError
from ontarget.plan.run_folder import write_atomic
from ontarget.search.shrink_space import ShrunkSpace
from ontarget.search.space import Code, ElasticNetwork, check_code
from ontarget.values import Array

VERSION = 1
OPTION = "--store"


@dataclass(frozen=True)
class Visited:
    """What one earlier search evaluated. codes: canonical, of the whole space; values (N, 2): 1 - quality, ms.

    origin: the file or folder that it was read from. device: its processor, "" where not known. setting: runtime,
    threads, batch_size, precision. note: what a reader should know, such as "another task".
    """

    origin: str
    device: str
    setting: Mapping[str, Any]
    codes: tuple[Code, ...]
    values: Array
    note: str = ""


def describe_space(space: ElasticNetwork, name: str) -> dict[str, Any]:
    """What tells a space from others, as JSON values: its slots, and the configs of its first and last network."""
    first = space.canonical(tuple(0 for _ in space.slots))
    last = space.canonical(tuple(slot.choices - 1 for slot in space.slots))
    described: dict[str, Any] = json.loads(
        json.dumps(
            {
                "name": name, "slots": [[slot.name, slot.choices, slot.labels] for slot in space.slots],
                "first": space.config(first), "last": space.config(last),
            }
        )
    )  # fmt: skip
    return described


class PopulationStore:
    """A store's folder; made where it does not exist."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def check(self) -> None:
        """Raises RunError where the folder is none, cannot be written, or is the folder of a search."""
        if (self.path / "search.json").exists() or (self.path / "stages").exists():
            raise RunError(
                f"{self.path} is the folder of a search, not a population store.", option=OPTION,
                next_step=f"give the store a folder of its own, or start from that search: --warm-start {self.path}",
            )  # fmt: skip
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file.", allowed="a folder", option=OPTION)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise RunError(
                f"{self.path} cannot be used as a population store ({error.strerror or error}).",
                allowed="a folder that can be written", option=OPTION,
            ) from error  # fmt: skip

    def folder(self, described: Mapping[str, Any], task: str) -> Path:
        """Where the files of a space (`describe_space`) and a task (fingerprint of its data) lie."""
        content = json.dumps({"space": described, "task": task}, sort_keys=True)
        return self.path / f"{described['name']}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"

    def others(self, described: Mapping[str, Any], task: str) -> int:
        """How many searches of other spaces or tasks the store holds."""
        own = self.folder(described, task)
        return sum(path.parent != own for path in self.path.glob("*/*.jsonl"))

    def read(self, space: ElasticNetwork, described: Mapping[str, Any], task: str) -> list[Visited]:
        """All that is stored of this space and task, a search an entry, in the order of the files' names.

        A last line that a kill cut is skipped with a warning. Raises RunError naming file and line of any other damage,
        and for a file of another space.
        """
        found = []
        for path in sorted(self.folder(described, task).glob("*.jsonl")):
            rows = read_lines(path, OPTION)
            number, head = next(rows, (1, {}))
            if head.get("version") != VERSION or not isinstance(head.get("setting"), dict):
                raise _damaged(path, number, "no first line of a population store of this version", OPTION)
            if head.get("space") != described or head.get("task") != task:
                raise RunError(
                    f"{path} is of another space or task than its folder's name says.", option=OPTION,
                    next_step="move it out of the store",
                )  # fmt: skip
            codes, values = [], []
            for number, row in rows:
                try:
                    codes.append(space.canonical(check_code(space, row["code"])))
                    values.append([1 - float(row["quality"]), float(row["latency_ms"])])
                    if not np.isfinite(values[-1]).all():
                        raise ValueError(f"{row['quality']}, {row['latency_ms']}")
                except (KeyError, TypeError, ValueError, SettingError) as error:
                    raise _damaged(path, number, _why(error), OPTION) from error
            device = head.get("device")
            cpu = str(device.get("cpu", "")) if isinstance(device, dict) else ""
            note = str(head.get("source") or "")
            found.append(Visited(str(path), cpu, head["setting"], tuple(codes), _pairs(values), note))
        return found

    def writer(
        self,
        described: Mapping[str, Any],
        task: str,
        name: str,
        *,
        device: Mapping[str, Any],
        setting: Mapping[str, Any],
        source: str | None = None,
    ) -> StoreWriter:
        """For the file of one search. name: of that search alone, the same when it goes on after a kill."""
        head = {
            "version": VERSION, "space": described, "task": task, "device": dict(device), "setting": dict(setting),
            "source": source,
        }  # fmt: skip
        return StoreWriter(self.folder(described, task) / f"{name}.jsonl", head)


class StoreWriter:
    """Writes one search's file. A store that can no longer be written is told once and does not end the search."""

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self.path, self.head, self.works = path, dict(head), True

    def begin(self) -> None:
        """The first line, and whole lines that a search in the same folder wrote before it was stopped."""

        def begin() -> None:
            lines = self.path.read_bytes().split(b"\n")[1:-1] if self.path.exists() else []
            write_atomic(self.path, b"".join([_line(self.head), *(line + b"\n" for line in lines)]))

        self._try(begin)

    def write(self, codes: Sequence[Code], values: Array) -> None:
        """The whole file anew, in one step. values (N, 2): 1 - quality, milliseconds."""
        rows = [self._row(code, row) for code, row in zip(codes, np.asarray(values).reshape(-1, 2), strict=True)]
        self._try(lambda: write_atomic(self.path, b"".join([_line(self.head), *rows])))

    def add(self, code: Code, value: Any) -> None:
        """One more line. value (2,): 1 - quality, milliseconds."""

        def append() -> None:
            with open(self.path, "ab", buffering=0) as file:
                file.write(self._row(code, value))

        self._try(append)

    def _row(self, code: Code, value: Any) -> bytes:
        return _line({"code": list(code), "quality": 1 - float(value[0]), "latency_ms": float(value[1])})

    def _try(self, write: Any) -> None:
        try:
            write()
        except OSError as error:
            if self.works:
                warnings.warn(f"The population store cannot be written ({error}); going on without it.", stacklevel=3)
            self.works = False


def read_lines(path: Path, option: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of a file of JSON lines.

    A last line without its end, which a kill cut, is skipped with a warning. Raises RunError naming file, line and
    ``option`` for any other line that is no JSON object.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror or error}).", option=option) from error
    for number, line in enumerate(lines, 1):
        if number == len(lines) and not line:
            return
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("no JSON object")
        except ValueError as error:
            if number == len(lines) and number > 1:
                warnings.warn(f"{path}, line {number}, was cut when its search ended; it is skipped.", stacklevel=3)
                return
            raise _damaged(path, number, _why(error), option) from error
        yield number, row


class EarlierSearch:
    """The folder of an earlier search, finished or running, as `ontarget search -o` wrote it."""

    option = "--warm-start"

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def check(self) -> None:
        """Raises RunError where the folder holds no search that has evaluated anything."""
        if (self.path / "search.json").is_file() or (self.path / "evaluated.jsonl").is_file():
            return
        if not self.path.exists():
            given, step = f"There is no folder {self.path}.", "give the folder that was the earlier search's --output"
        elif (self.path / "stages" / "asked.json").is_file():
            given, step = f"The search in {self.path} has not evaluated any network yet.", "wait until it has"
        elif any(self.path.glob("*/*.jsonl")):
            given, step = f"{self.path} holds no search.", f"if it is a population store: --store {self.path}"
        else:
            given, step = f"{self.path} holds no search.", "give the folder that was the earlier search's --output"
        raise RunError(given, allowed="the folder of an ontarget search", option=self.option, next_step=step)

    def read(self, space: ElasticNetwork, name: str, task: str) -> Visited:
        """What it visited. name, task: of the space and the data that it is for; another task is noted.

        Raises SettingError for a search of another space, RunError for a damaged folder.
        """
        self.check()
        asked = self._stage("asked")
        codes, values = self._finished(space, name) if (self.path / "search.json").exists() else self._running(space)
        try:
            device = str(json.loads((self.path / "latency_table.json").read_text())["device"]["cpu"])
        except (OSError, ValueError, KeyError, TypeError):
            device = ""
        note = "another task" if asked.get("fingerprint") not in (task, None) else ""
        return Visited(str(self.path), device, asked.get("setting") or {}, tuple(codes), _pairs(values), note)

    def _stage(self, name: str) -> dict[str, Any]:
        path = self.path / "stages" / f"{name}.json"
        try:
            value = json.loads(path.read_text())["value"]
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path} is damaged ({_why(error)}).", option=self.option) from error
        return value if isinstance(value, dict) else {}

    def _finished(self, space: ElasticNetwork, name: str) -> tuple[list[Code], list[list[float]]]:
        path = self.path / "search.json"
        try:
            content = json.loads(path.read_text())
            rows, of = content["evaluated"], content["space"]
            values = [[1 - float(row["quality"]), float(row["predicted_ms"])] for row in rows]
            codes = [tuple(int(value) for value in row["code"]) for row in rows]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{path} is not a finished search's ({_why(error)}).", option=self.option,
                next_step="give another folder, or finish that search anew",
            ) from error  # fmt: skip
        if of != name:
            raise self._other(f"the networks there are of the space '{of}', here of '{name}'")
        return [self._checked(space, code) for code in codes], values

    def _running(self, space: ElasticNetwork) -> tuple[list[Code], list[list[float]]]:
        path = self.path / "evaluated.jsonl"
        rows = read_lines(path, self.option)
        _, head = next(rows, (1, {}))
        kept = self._stage("taken_over").get("kept")
        try:
            inner: ElasticNetwork = space if kept is None else ShrunkSpace(space, kept)
            there = [(str(name), int(choices)) for name, choices in head["slots"]]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise _damaged(path, 1, _why(error), self.option) from error
        here = [(slot.name, slot.choices) for slot in inner.slots]
        if there != here:
            differing = [f"{a} there, {b} here" for a, b in zip(there, here, strict=False) if a != b]
            raise self._other(differing[0] if differing else f"{len(there)} slots there, {len(here)} here")
        codes, values = [], []
        for number, row in rows:
            try:
                code = check_code(inner, row["code"])
                values.append([float(value) for value in row["values"]])
                if len(values[-1]) != 2 or not np.isfinite(values[-1]).all():
                    raise ValueError(f"values {row['values']}")
            except (KeyError, TypeError, ValueError, SettingError) as error:
                raise _damaged(path, number, _why(error), self.option) from error
            codes.append(inner.outer(code) if isinstance(inner, ShrunkSpace) else space.canonical(code))
        return codes, values

    def _checked(self, space: ElasticNetwork, code: Code) -> Code:
        try:
            return space.canonical(check_code(space, code))
        except SettingError as error:
            raise self._other(error.given) from error

    def _other(self, why: str) -> SettingError:
        return SettingError(
            f"The search in {self.path} is of another space ({why.rstrip('.')}).", option=self.option,
            allowed="a search of the same kind of data, with the same --image-size or the same --source",
            next_step="give another folder, or leave --warm-start out",
        )  # fmt: skip


def _pairs(values: Sequence[Sequence[float]]) -> Array:
    return np.array(values, dtype=float).reshape(-1, 2)


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=True).encode() + b"\n"


def _why(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"'{error.args[0]}' is missing"
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _damaged(path: Path, number: int, why: str, option: str) -> RunError:
    return RunError(
        f"{path}, line {number}, is damaged ({why}).", option=option,
        next_step="take the line out, or move the file away",
    )  # fmt: skip
