"""Writes a bundle: the model and everything it needs to run, prove itself and be understood, in one folder."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ontarget.runtime.bundle import FORMAT_VERSION, Bundle, file_digest
from ontarget.runtime.preprocess import Preprocess, open_image
from ontarget.values import Examples

RELATIVE_TOLERANCE = 0.02  # of the scores' spread: other processors round otherwise, int8 ones most (choice)


def write_bundle(
    folder: Path,
    *,
    preprocess: Preprocess,
    onnx_path: Path | str,
    info: Mapping[str, Any],
    examples: Examples,
    sources: Sequence[Mapping[str, Any]],
    model_card: str,
) -> Path:
    """Write the bundle into ``folder``, whole or not at all, replacing an older one.

    examples: rows for the self-test; their scores are computed here by the bundle itself. sources: locator, title,
    licence and sha256 of what the model was made from.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        shutil.copyfile(onnx_path, partial / "model.onnx")
        preprocess.save(partial)
        (partial / "README.md").write_text(model_card, encoding="utf-8")
        (partial / "LICENSES.json").write_text(json.dumps(list(sources), indent=1), encoding="utf-8")
        _copy_runtime(partial / "run")
        entries = _stored_inputs(examples, info["modality"], partial)
        bundle = Bundle(partial, {"classes": [], **info})
        scores = bundle.scores(examples.inputs)
        tolerance = RELATIVE_TOLERANCE * max(1e-3, float(np.abs(scores).max()))
        expected = {
            "inputs": entries,
            "scores": scores.tolist(),
            "tolerance": tolerance,
            "latency_p50_ms": _single_row_latency(bundle, examples),
        }
        (partial / "selftest.json").write_text(json.dumps(expected), encoding="utf-8")
        files = {
            path.relative_to(partial).as_posix(): file_digest(path)
            for path in sorted(partial.rglob("*"))
            if path.is_file()
        }
        listing = {"format_version": FORMAT_VERSION, **info, "files": files}
        from ontarget.plan.run_folder import to_json

        (partial / "bundle.json").write_bytes(to_json(listing))
        os.chmod(partial, 0o755)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder


def _copy_runtime(target: Path) -> None:
    target.mkdir()
    for path in (Path(__file__).parents[1] / "runtime").glob("*.py"):
        shutil.copyfile(path, target / path.name)


def _stored_inputs(examples: Examples, modality: str, folder: Path) -> list[Any]:
    if modality == "features":
        return list(np.asarray(examples.inputs, dtype=np.float32).tolist())
    if modality == "text":
        return [list(text) if isinstance(text, tuple) else text for text in examples.inputs]
    entries = []
    (folder / "selftest").mkdir()
    for at, image in enumerate(examples.inputs):
        name = f"selftest/{at:02d}.png"
        open_image(image, at).save(folder / name)
        entries.append({"file": name})
    return entries


def _single_row_latency(bundle: Bundle, examples: Examples) -> float:
    from ontarget.device import measure_latency

    rows = [examples.take([at]).inputs for at in range(len(examples))]
    return measure_latency([lambda row=row: bundle.scores(row) for row in rows])[0]  # type: ignore[misc]
