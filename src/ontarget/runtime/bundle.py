"""A bundle in use: load, predict, test itself. Needs numpy, onnxruntime, tokenizers and Pillow alone."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .preprocess import Array, InputError, Preprocess
from .session import make_session

FORMAT_VERSION = 1
BATCH_ROWS = 32
LATENCY_ALLOWANCE = 3.0  # the self-test allows this times the recorded latency: another device is another device


class BundleError(ValueError):
    """A folder that is no bundle, or a bundle that is damaged or made by a newer version."""


class Bundle:
    """A loaded model. info: what bundle.json holds (modality, kind, classes, measured, sources, ...)."""

    def __init__(self, path: Path, info: dict[str, Any], *, threads: int | None = None) -> None:
        self.path, self.info = path, info
        self.preprocess = Preprocess.load(path)
        count = int(threads if threads is not None else info.get("threads", 0))
        try:
            self._session = make_session(path / "model.onnx", threads=count)
        except ValueError as error:
            raise BundleError(str(error)) from error

    def scores(self, inputs: Sequence[Any] | Array) -> Array:
        """(N, C) logits, or (N, 1) values in the target's units; rows in the order of ``inputs``.

        Raises InputError naming the row that cannot be read.
        """
        if len(inputs) == 0:
            return np.zeros((0, max(1, len(self.info["classes"]))), dtype=np.float32)
        order = np.arange(len(inputs))
        if self.preprocess.takes_texts and len(inputs) > 1:
            order = np.argsort([len(str(text)) for text in inputs], kind="stable")
        parts = []
        for start in range(0, len(order), BATCH_ROWS):
            rows = order[start : start + BATCH_ROWS]
            batch = inputs[rows] if isinstance(inputs, np.ndarray) else [inputs[int(row)] for row in rows]
            try:
                tensors = self.preprocess(batch)
            except InputError as error:
                raise error.at(rows) from error
            parts.append(self._session.run(["scores"], tensors)[0])
        scores = np.empty((len(inputs), parts[0].shape[1]), dtype=np.float32)
        scores[order] = np.concatenate(parts)
        return scores

    def predict(self, inputs: Sequence[Any] | Array) -> list[dict[str, Any]]:
        """One entry a row: ``label``, ``probability`` and ``probabilities`` by class, or ``value``."""
        scores = self.scores(inputs)
        if self.info["kind"] == "regression":
            return [{"value": float(row[0])} for row in scores]
        shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
        probabilities = shifted / shifted.sum(axis=1, keepdims=True)
        classes = self.info["classes"]
        return [
            {
                "label": classes[int(row.argmax())],
                "probability": float(row.max()),
                "probabilities": {name: float(value) for name, value in zip(classes, row)},
            }
            for row in probabilities
        ]

    def self_test(self) -> dict[str, Any]:
        """Files, outputs and latency against what was recorded: {"passed": bool, "checks": [...]}."""
        checks = [_files_check(self.path, self.info)]
        expected = json.loads((self.path / "selftest.json").read_text())
        inputs: Any = [_input(self.path, entry) for entry in expected["inputs"]]
        if self.info["modality"] == "features":
            inputs = np.asarray(inputs, dtype=np.float32)
        found, wanted = self.scores(inputs), np.asarray(expected["scores"], dtype=np.float32)
        worst = float(np.abs(found - wanted).max())
        tolerance = float(expected["tolerance"])
        same = bool((found.argmax(axis=1) == wanted.argmax(axis=1)).all())
        checks.append(
            {
                "name": "outputs",
                "passed": worst <= tolerance and np.isfinite(found).all().item(),
                "detail": f"{len(wanted)} rows, largest difference {worst:.2g}, allowed {tolerance:.2g}"
                + ("" if same else "; predicted classes differ"),
                "next": "the bundle computes something else here: check onnxruntime's version",
            }
        )
        times = []
        for repeat in range(3 + 15):
            row = inputs[repeat % len(inputs)]
            start = time.perf_counter()
            self.scores(np.asarray([row]) if isinstance(inputs, np.ndarray) else [row])
            times.append(1000 * (time.perf_counter() - start))
        p50 = float(np.median(times[3:]))
        recorded = float(expected["latency_p50_ms"])
        checks.append(
            {
                "name": "latency",
                "passed": p50 <= LATENCY_ALLOWANCE * recorded,
                "detail": f"single row p50 {p50:.2f} ms, recorded {recorded:.2f} ms, "
                f"allowed {LATENCY_ALLOWANCE * recorded:.2f} ms",
                "next": "this device is slower or busy: run ontarget fit on it",
            }
        )
        return {"passed": all(check["passed"] for check in checks), "checks": checks}


def load_bundle(path: Path | str, *, threads: int | None = None) -> Bundle:
    """The bundle in ``path``. threads: of ONNX Runtime; what it was measured with by default. Raises BundleError."""
    path = Path(path)
    try:
        info = json.loads((path / "bundle.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"{path} is no bundle: it has no bundle.json") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path / 'bundle.json'} is damaged: {error}") from error
    if not isinstance(info, dict) or info.get("format_version") != FORMAT_VERSION:
        found = info.get("format_version") if isinstance(info, dict) else None
        raise BundleError(f"{path} has format version {found}; this program reads version {FORMAT_VERSION}")
    check = _files_check(path, info)
    if not check["passed"]:
        raise BundleError(f"{path}: {check['detail']}")
    return Bundle(path, info, threads=threads)


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files_check(path: Path, info: dict[str, Any]) -> dict[str, Any]:
    """Every file that bundle.json lists is there, inside the folder, with its hash."""
    wrong = []
    for name, digest in info.get("files", {}).items():
        file = (path / name).resolve()
        if path.resolve() not in file.parents:
            wrong.append(f"{name} leads out of the bundle")
        elif not file.is_file():
            wrong.append(f"{name} is missing")
        elif file_digest(file) != digest:
            wrong.append(f"{name} has been changed or damaged")
    needed = {"model.onnx", "preprocess.json", "selftest.json"} - set(info.get("files", {}))
    wrong += [f"bundle.json does not list {name}" for name in sorted(needed)]
    return {
        "name": "files",
        "passed": not wrong,
        "detail": "; ".join(wrong) or f"{len(info['files'])} files have their recorded hashes",
        "next": "copy the bundle again",
    }


def _input(folder: Path, entry: Any) -> Any:
    if isinstance(entry, dict):  # an image, stored as a file of the bundle
        return (folder / Path(entry["file"]).parent.name / Path(entry["file"]).name).read_bytes()
    return tuple(entry) if isinstance(entry, list) and entry and isinstance(entry[0], str) else entry
