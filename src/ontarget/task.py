"""What a user asks for: the task and its limits. Data only, validated, written to and read from TOML."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ontarget.errors import DataError, SettingError, nearest

Modality = Literal["text", "image", "features"]
LabelKind = Literal["classification", "regression"]
Kind = Literal["classification", "regression", "generation"]
Metric = Literal[
    "accuracy", "balanced_accuracy", "macro_f1", "r2", "neg_mae", "neg_rmse", "spearman",
    "exact_match", "last_number", "token_f1", "rouge_l", "checker", "neg_perplexity",
]  # fmt: skip

CLASSIFICATION_METRICS: tuple[str, ...] = ("accuracy", "balanced_accuracy", "macro_f1")
REGRESSION_METRICS: tuple[str, ...] = ("r2", "neg_mae", "neg_rmse", "spearman")
GENERATION_METRICS: tuple[str, ...] = (
    "exact_match", "last_number", "token_f1", "rouge_l", "checker", "neg_perplexity"
)  # fmt: skip

PATHS = ("data", "validation", "test", "corrections", "checker")  # fields of Task that may be paths


class Limits(BaseModel):
    """What the deployed model may cost on the device, and what the search may cost.

    latency_ms: upper limit of the median latency of one call at the task's ``batch_size``, milliseconds.
    memory_mb: upper limit of the peak resident memory that the loaded model adds, in 2**20 bytes.
    size_mb: upper limit of the bundle on disk, in 2**20 bytes.
    budget_s: wall-clock seconds for the whole search, at least 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    latency_ms: float | None = Field(default=None, gt=0)
    memory_mb: float | None = Field(default=None, gt=0)
    size_mb: float | None = Field(default=None, gt=0)
    budget_s: float = Field(default=600.0, ge=1)


class Task(BaseModel):
    """The target task: where the data is, what goes in, what comes out, and how it is judged.

    data: path of a table (CSV, TSV, Parquet, JSONL, Arrow) or of an image folder, ``hub:org/name``, or, from
        Python, a DataFrame, a ``datasets.Dataset``, a dict of columns, or a pair ``(inputs, targets)``.
    input: one or two columns of text, one column of image paths, or the feature columns. Empty: inferred where
        only one reading is possible (image folders, pairs), else an error that lists the columns.
    target: the column to predict. Rows whose target is empty are unlabelled rows, not errors.
    modality, kind, metric: inferred where left out. Metrics are "higher is better".
    validation, test: extra files for these splits. split: column with the values train, validation, test.
        Where neither is given, splits are made with the fractions, stratified, seeded, grouped by ``group``.
    corrections: CSV of rows to check again, as `ontarget labels` writes it and a person has filled it: the labels in
        its column "corrected" take the place of those of ``data``.
    batch_size, max_length: the shape at which the deployed model will be called (rows; tokens).
    checker: a Python file with ``check(prompt, answer, references)``, which says how good an answer is, 0 to 1; with
        it, or a metric of generated text, the task is a generation. Its ``target`` column holds reference answers.
    instruction: what a language model is told before every prompt. max_new_tokens: longest answer; by the references.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    data: Any
    input: tuple[str, ...] = ()
    target: str = ""
    modality: Modality | None = None
    kind: Kind | None = None
    metric: Metric | None = None
    validation: Any = None
    test: Any = None
    split: str | None = None
    group: str | None = None
    corrections: str | None = None
    validation_fraction: float = Field(default=0.15, gt=0, lt=1)
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=1, ge=1, le=4096)
    max_length: int | None = Field(default=None, ge=4, le=8192)
    checker: str | None = None
    instruction: str = ""
    max_new_tokens: int | None = Field(default=None, ge=1, le=32768)
    name: str = ""

    @property
    def generates(self) -> bool:
        """Whether the task is to write text: it says so itself, by its metric, or by having a checker."""
        return self.kind == "generation" or self.checker is not None or self.metric in GENERATION_METRICS

    @field_validator("input", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("data", "validation", "test", "corrections", "checker", mode="before")
    @classmethod
    def _path_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value


class Request(BaseModel):
    """Everything that one run is asked for: what ``task.toml`` holds.

    pool: locators of sources; empty for the default pool of the task's modality. device: where training runs.
    threads: CPU threads of training and of the deployed model; 0 for all cores. search: share of the budget that goes
    to a search of networks on this device before all else; 0 for none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Task
    limits: Limits = Limits()
    pool: tuple[str, ...] = ()
    device: str = "cpu"
    threads: int = Field(default=0, ge=0, le=1024)
    search: float = Field(default=0.0, ge=0, le=0.9)

    @field_validator("pool", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


def load_task(data: Any, fields: Mapping[str, Any] | None = None) -> Request:
    """The request for ``data``: a Task, a ``task.toml`` (whose entries ``fields`` overrides), or data and fields.

    ``fields`` may hold the fields of Task, Limits and Request side by side: their names do not collide.
    Raises SettingError for unknown names and values out of range, all of them in one message; DataError for a
    TOML file that cannot be read.
    """
    given = dict(fields or {})
    sections: dict[str, Any] = {"task": {}, "limits": {}}
    if isinstance(data, Task):
        sections["task"] = {name: getattr(data, name) for name in Task.model_fields}
    elif isinstance(data, (str, Path)) and str(data).endswith(".toml"):
        sections = _read_toml(Path(data))
    else:
        sections["task"]["data"] = data
    for name, value in given.items():
        if name in Limits.model_fields:
            sections.setdefault("limits", {})[name] = value
        elif name in Request.model_fields:
            sections[name] = value
        else:
            sections["task"][name] = value
    try:
        return Request.model_validate(sections)
    except ValidationError as error:
        raise _as_setting_error(error, data) from error


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"There is no file '{path}'.", next_step="check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' is no valid TOML: {error}.", next_step="mend the file") from error
    task = sections.setdefault("task", {})
    for name in PATHS:
        value = task.get(name)
        # Paths in a task file are meant from where the file is.
        if isinstance(value, str) and not value.startswith("hub:"):
            task[name] = str((path.parent / value).resolve())
    return sections


def write_toml(request: Request, path: Path) -> None:
    """Write ``request`` so that `load_task` reads it back the same; local paths become absolute."""
    import tomli_w

    sections = request.model_dump(exclude_none=True, exclude_defaults=True, mode="python")
    task = sections["task"]
    for name in PATHS:
        value = task.get(name)
        if isinstance(value, str) and not value.startswith("hub:"):
            task[name] = str(Path(value).resolve())
    names = ("pool", "device", "threads", "search", "task", "limits")
    ordered = {name: sections[name] for name in names if name in sections}
    path.write_text(tomli_w.dumps(_lists(ordered)), encoding="utf-8")


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(entry) for key, entry in value.items()}
    return [_lists(entry) for entry in value] if isinstance(value, (tuple, list)) else value


def _as_setting_error(error: ValidationError, data: Any) -> SettingError:
    names = [*Task.model_fields, *Limits.model_fields, *Request.model_fields]
    lines = []
    for problem in error.errors():
        name = str(problem["loc"][-1]) if problem["loc"] else "?"
        if problem["type"] == "extra_forbidden":
            close = nearest(name, names)
            lines.append(f"unknown setting '{name}'" + (f" ({close})" if close else ""))
        else:
            lines.append(f"{name}: {problem['msg'].lower()}, got {problem['input']!r}")
    where = f"in {data}" if str(data).endswith(".toml") else ""
    return SettingError(
        f"{len(lines)} setting(s) cannot be used {where}".rstrip() + ": " + "; ".join(lines) + ".",
        next_step="see `ontarget fit --help` for what each setting takes",
    )
