"""The frozen values that stages hand to each other. No logic beyond what is derived from the fields.

Notation: N rows, D features, C classes, M sources.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import torch

    from ontarget.runtime.preprocess import Preprocess

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Context:
    """The few things that every long-running function may need.

    progress: called with (done, total, what) as work advances. deadline: ``time.monotonic()`` value after which
    a function stops at the next safe point and returns what it has.
    """

    seed: int = 0
    device: str = "cpu"
    progress: Callable[[int, int, str], None] | None = None
    deadline: float | None = None


@dataclass(frozen=True)
class Examples:
    """Rows of one split.

    inputs: N entries: ``str`` | ``tuple[str, str]`` (two fields) for text; path, bytes, ``PIL.Image`` or uint8
        array (H, W[, 3]) for images; or one float32 array (N, D) for features.
    targets: (N,) int64 class indices, or (N,) float64; empty (0,) for unlabelled rows.
    rows: (N,) int64 positions in the user's data, for messages and reports.
    """

    inputs: Sequence[Any] | Array
    targets: Array
    rows: Array

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, positions: Sequence[int] | Array) -> Examples:
        """The given positions, in that order."""
        positions = np.asarray(positions, dtype=np.int64)
        if isinstance(self.inputs, np.ndarray):
            inputs: Any = self.inputs[positions]
        else:
            inputs = [self.inputs[int(position)] for position in positions]
        targets = self.targets[positions] if len(self.targets) else self.targets
        return Examples(inputs, targets, self.rows[positions])

    def join(self, other: Examples) -> Examples:
        """These rows, then the other's."""
        if isinstance(self.inputs, np.ndarray):
            inputs: Any = np.concatenate([self.inputs, np.asarray(other.inputs)])
        else:
            inputs = [*self.inputs, *other.inputs]
        return Examples(inputs, np.concatenate([self.targets, other.targets]), np.concatenate([self.rows, other.rows]))


@dataclass(frozen=True)
class TargetData:
    """The task's data after reading, checking and splitting.

    classes: names in the order of the class indices; empty for regression.
    folds: empty (0,) where a validation split is held out. With few labels nothing is held out: ``validation`` is
        the same rows as ``train``, and folds is (N_train,) int64, the fold of each row; validation scores are
        then out-of-fold scores.
    fingerprint: hex digest of all inputs, targets and split membership.
    warnings: what the checks found that is no error (near-duplicates across splits and the like).
    validation_made: whether the validation rows were held out here, and not set apart by the user.
    """

    modality: Literal["text", "image", "features"]
    kind: Literal["classification", "regression"]
    metric: str
    classes: tuple[str, ...]
    train: Examples
    validation: Examples
    test: Examples
    unlabelled: Examples
    fingerprint: str
    folds: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    warnings: tuple[str, ...] = ()
    validation_made: bool = True

    @property
    def outputs(self) -> int:
        """Columns of a model's score matrix: C for classification, 1 for regression."""
        return len(self.classes) if self.kind == "classification" else 1

    @property
    def columns(self) -> int:
        """Columns of an array of features; text fields of a row; 1 for images."""
        if self.modality == "features":
            return int(np.asarray(self.train.inputs).shape[1])
        return 2 if len(self.train) and isinstance(self.train.inputs[0], tuple) else 1


@dataclass(frozen=True)
class Prompts:
    """Rows of one split of a generation task.

    prompts: N texts. references: for each, the answers that are right, none or more. rows: (N,) int64, as in Examples.
    """

    prompts: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]
    rows: Array

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, positions: Sequence[int] | Array) -> Prompts:
        """The given positions, in that order."""
        at = [int(position) for position in positions]
        return Prompts(tuple(self.prompts[row] for row in at), tuple(self.references[row] for row in at), self.rows[at])

    def answered(self) -> Prompts:
        """The rows that have a reference."""
        return self.take([at for at, right in enumerate(self.references) if right])


@dataclass(frozen=True)
class GenerationData:
    """A generation task's data after reading, checking and splitting.

    checker: path of the checker's file, or "". max_new_tokens: longest answer, or None: by the references' tokens.
    fingerprint: hex digest of all prompts, references, split membership and the checker's content.
    """

    metric: str
    train: Prompts
    validation: Prompts
    test: Prompts
    fingerprint: str
    checker: str = ""
    instruction: str = ""
    max_new_tokens: int | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """What a model costs on this device. Milliseconds, 2**20 bytes. Latency is one call of ``batch_size`` rows."""

    latency_p50_ms: float
    latency_p95_ms: float
    memory_mb: float
    size_mb: float
    batch_size: int = 1
    repeats: int = 0


@dataclass(frozen=True)
class Score:
    """A number with its bootstrap interval (95% unless said otherwise) and what it cost to compute."""

    value: float
    low: float
    high: float
    seconds: float = 0.0


@dataclass(frozen=True)
class Ranked:
    """One source's place in a ranking.

    scores: score name -> Score, e.g. "tmi", "logme", "linear_probe"; higher is better for every one.
    features_s: seconds that its features took (0 where they came from the cache).
    too_close: the interval of the deciding score overlaps that of the best source.
    """

    source: str
    scores: Mapping[str, Score]
    dim: int
    features_s: float = 0.0
    too_close: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ranking:
    """Sources from best to worst by the score named ``decided_by``."""

    decided_by: str
    entries: tuple[Ranked, ...]


@dataclass(frozen=True)
class Loaded:
    """A source in memory, ready to extract features or to be tuned.

    encoder: module that maps the tensors named by ``preprocess`` to pooled features (N, dim) float32.
    """

    locator: str
    preprocess: Preprocess
    encoder: torch.nn.Module
    dim: int


@dataclass(frozen=True)
class Recipe:
    """A candidate: source, method and settings. JSON-able, and with a seed enough to train it again."""

    source: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.method} on {self.source}"


@dataclass(frozen=True)
class Trained:
    """A model for the task.

    network: module that maps the tensors named by ``preprocess`` to scores: logits (N, C), or (N, 1) already in
        the target's units for regression.
    validation_scores: (N_validation, C or 1) scores on the validation split.
    curve: one mapping per epoch or step, e.g. ``{"epoch": 1, "train_loss": .., "validation": ..}``.
    """

    recipe: Recipe
    preprocess: Preprocess
    network: torch.nn.Module
    classes: tuple[str, ...]
    validation_scores: Array
    validation_metric: float
    curve: tuple[Mapping[str, float], ...] = ()
    seconds: float = 0.0
    peak_memory_mb: float = 0.0

    def with_network(self, network: torch.nn.Module) -> Trained:
        return replace(self, network=network)


@dataclass(frozen=True)
class Variant:
    """One executable form of a trained model: what the compress stage weighs against the others.

    form: "pytorch" | "onnx-fp32" | "onnx-int8-dynamic" | "onnx-int8-static" | "onnx-fp16".
    path: the ONNX file; empty for PyTorch. kept: whether it passed its guard rails; reason: why (not), in words.
    """

    form: str
    path: str
    measurement: Measurement
    validation_scores: Array
    validation_metric: float
    kept: bool
    reason: str
