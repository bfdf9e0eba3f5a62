"""The test rows are scored once a run: a second look at them needs to be asked for, and is counted.

``test-split.json`` in the run folder says when the test rows were scored, and by which model; ``test-scores.npz`` holds
the scores. Choosing between models by their test scores makes the best one look better than it is; that is why another
model is refused here. Checked in tests/judge/test_once.py.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ontarget.errors import RunError
from ontarget.plan.run_folder import to_json, write_atomic
from ontarget.values import Array

RECORD, SCORES = "test-split.json", "test-scores.npz"
# What a bundle says about itself, and the code that runs it: not part of which model it is.
NOT_THE_MODEL = ("README.md", "LICENSES.json", "selftest.json", "run/", "selftest/")


def score_once(
    folder: Path, model: str, score: Callable[[], Mapping[str, Array]], *, forced: bool = False
) -> dict[str, Array]:
    """The scores on the test rows: stored ones for the model that was scored before, else ``score()``, stored.

    folder: the run's. model: digest of the model, see `model_digest`. score: name -> scores (N_test, C or 1).
    forced: score although another model was scored in this run; it is recorded.
    Raises RunError: another model was scored before, and ``forced`` is not set.
    """
    record = touches(folder)
    known = [touch for touch in record if touch["model"] == model]
    if known:
        stored = _stored(folder, known[-1]["scores"])
        if stored is not None:
            return stored
    if record and not known and not forced:
        raise RunError(
            f"The test rows of {folder} were scored on {record[-1]['when']}, by another model "
            f"({record[-1]['model'][:12]}; this one is {model[:12]}).",
            allowed="one model a run: a choice by test scores is no test",
            next_step="start a new run, or call score_once(..., forced=True): the report will say so",
        )
    scores = {name: np.asarray(value, dtype=np.float32) for name, value in score().items()}
    buffer = io.BytesIO()
    np.savez(buffer, **scores)  # type: ignore[arg-type]
    content = buffer.getvalue()
    touch = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": model,
        "rows": len(next(iter(scores.values()))),
        "forced": bool(record and not known),
        "scores": hashlib.sha256(content).hexdigest(),
    }
    # Scores first: a process that is killed in between has shown nobody anything, and scores again.
    write_atomic(folder / SCORES, content)
    write_atomic(folder / RECORD, to_json({"touches": [*record, touch]}))
    return scores


def touches(folder: Path) -> list[dict[str, Any]]:
    """Each time the test rows were scored: when, model, rows, forced. Raises RunError for a damaged record."""
    path = folder / RECORD
    try:
        found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["touches"]
        return found
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path} is damaged: whether the test rows were used before is not known.",
            next_step="start a new run",
        ) from error


def model_digest(files: Mapping[str, str]) -> str:
    """One digest for a model, from the digests of its bundle's files (``bundle.json``, key "files")."""
    digest = hashlib.sha256()
    for name in sorted(files):
        if not name.startswith(NOT_THE_MODEL):
            digest.update(f"{name}\0{files[name]}\n".encode())
    return digest.hexdigest()


def _stored(folder: Path, expected: str) -> dict[str, Array] | None:
    """The stored scores, or None where they are missing or are not those that were recorded."""
    try:
        content = (folder / SCORES).read_bytes()
    except FileNotFoundError:
        return None
    if hashlib.sha256(content).hexdigest() != expected:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
