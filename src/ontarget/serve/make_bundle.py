"""The chosen variant of a run as a bundle: model, preprocessing, self-test rows, licences, model card."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from ontarget.plan.run_folder import RunFolder
from ontarget.runtime.preprocess import Preprocess
from ontarget.task import Request
from ontarget.values import TargetData

SELF_TEST_ROWS = 16  # (choice)


def make_bundle(
    run: RunFolder,
    request: Request,
    data: TargetData,
    preprocess: Preprocess,
    number: int,
    variant: Mapping[str, Any],
) -> dict[str, Any]:
    """Write ``RUN/bundle`` from trial ``number`` in the form ``variant``; returns what the report shows of it."""
    from ontarget.runtime import load_bundle
    from ontarget.serve.bundle import write_bundle

    trial = next(entry for entry in run.trials() if entry["number"] == number)
    source = _source(trial["source"])
    measured = {
        name: variant[name]
        for name in ("latency_p50_ms", "latency_p95_ms", "memory_mb", "size_mb", "batch_size")
        if name in variant
    }
    info = {
        "name": request.task.name or run.path.name,
        "modality": data.modality,
        "kind": data.kind,
        "classes": list(data.classes),
        "input_columns": list(request.task.input) or [data.modality],
        "target": request.task.target,
        "metric": data.metric,
        "validation_metric": variant["validation_metric"],
        "form": variant["form"],
        "threads": run.read("device")["threads"],
        "method": trial["method"],
        "settings": trial["settings"],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "measured": measured,
        "limits": request.limits.model_dump(exclude_none=True),
        "device": run.read("device"),
        "sources": [source],
        "data": {
            "fingerprint": data.fingerprint,
            "rows": run.read("data")["rows"],
            "trained_on": variant.get("refit_rows", len(data.train)),
        },
    }
    if data.modality == "features":
        info["features"] = int(np.asarray(data.train.inputs).shape[1])
    rows = _spread(len(data.validation), SELF_TEST_ROWS, request.task.seed)
    folder = write_bundle(
        run.path / "bundle",
        preprocess=preprocess,
        onnx_path=variant["path"],
        info=info,
        examples=data.validation.take(rows),
        sources=[source],
        model_card=model_card(info, trial, run.read("data")),
    )
    bundle = load_bundle(folder)
    result = bundle.self_test()
    size_mb = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
    return {
        "path": str(folder),
        "form": variant["form"],
        "size_mb": size_mb,
        **{name: measured[name] for name in measured if name != "size_mb"},
        "self_test": result,
    }


def model_card(info: Mapping[str, Any], trial: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """The bundle's README: what it is for, what it was made from, what it costs, how to use it."""
    classes = ", ".join(info["classes"]) or "a number"
    columns = ", ".join(info["input_columns"])
    measured = info["measured"]
    sources = "\n".join(
        f"- {source['locator']}: {source['title']}, licence {source['licence']}" for source in info["sources"]
    )
    refitted = info["data"]["trained_on"] > info["data"]["rows"]["train"]
    again = " before it was trained again on these rows too" if refitted else ""
    warnings = "\n".join(f"- {text}" for text in data["warnings"]) or "- none"
    return f"""# {info["name"]}

{info["kind"].capitalize()} of {info["modality"]}: from {columns} to {classes}.

**Made** {info["created"]} by OnTarget: {info["method"]} on {trial["source"]}, deployed as {info["form"]}.

## Quality

Validation {info["metric"]} {info["validation_metric"]:.4f}{again}. The run's report has the test score with its
interval and the comparison with the baselines. Inputs unlike the {info["data"]["trained_on"]} rows that it was trained
on are outside what was measured.

## Cost on the device it was made on ({info["device"].get("cpu", "CPU")}, {info["threads"]} threads)

| batch | latency p50 | latency p95 | memory | model |
|--|--|--|--|--|
| {measured.get("batch_size", 1)} | {measured["latency_p50_ms"]:.2f} ms | {measured["latency_p95_ms"]:.2f} ms \
| {measured["memory_mb"]:.0f} MiB | {measured["size_mb"]:.1f} MiB |

## Data warnings

{warnings}

## Made from

{sources}

## Use

```
python -m run doctor                 # in this folder: does it still do here what it did there?
python -m run predict rows.csv       # needs numpy, onnxruntime, tokenizers and Pillow alone
ontarget serve PATH                  # with OnTarget installed
```
"""


def _source(locator: str) -> dict[str, Any]:
    from ontarget.errors import OnTargetError
    from ontarget.pool import load, resolve
    from ontarget.pool.features import weights_digest

    if locator in ("control:tfidf", "control:majority"):
        return {"locator": locator, "title": "trained from the task's rows alone", "licence": "none", "sha256": ""}
    try:
        source = resolve(locator)
        digest = weights_digest(load(source))
    except OnTargetError as error:
        return {"locator": locator, "title": str(error), "licence": "unknown", "sha256": ""}
    return {"locator": locator, "title": source.title, "licence": source.licence or "unknown", "sha256": digest}


def _spread(rows: int, count: int, seed: int) -> np.ndarray[Any, Any]:
    """``count`` of ``rows`` positions, seeded."""
    return np.sort(np.random.default_rng(seed).permutation(rows)[:count])
