"""What a user asks for: the task and its limits. Data only, validated, written to and read from TOML."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Modality = Literal["text", "image", "features"]
Kind = Literal["classification", "regression"]
Metric = Literal["accuracy", "balanced_accuracy", "macro_f1", "r2", "neg_mae", "neg_rmse", "spearman"]

CLASSIFICATION_METRICS: tuple[str, ...] = ("accuracy", "balanced_accuracy", "macro_f1")
REGRESSION_METRICS: tuple[str, ...] = ("r2", "neg_mae", "neg_rmse", "spearman")


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
    batch_size, max_length: the shape at which the deployed model will be called (rows; tokens).
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
    validation_fraction: float = Field(default=0.15, gt=0, lt=1)
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=1, ge=1, le=4096)
    max_length: int | None = Field(default=None, ge=4, le=8192)
    name: str = ""

    @field_validator("input", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("data", "validation", "test", mode="before")
    @classmethod
    def _path_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value
