"""Which sources may take part: each is loaded, timed on this device and held against the limits, before training."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ontarget.errors import LimitError, OnTargetError
from ontarget.task import Limits
from ontarget.values import TargetData

PROBE_ROWS = 32  # rows on which features are timed (choice)
LATENCY_REPEATS = 15  # calls of the eager network (choice)
# How much faster than eager PyTorch the best ONNX form has been at most: what is slower than this times the limit
# is not worth an export. Checked by benchmarks/bundle_latency.py.
EAGER_ALLOWANCE = 6.0


def admit(
    locators: Sequence[str],
    data: TargetData,
    limits: Limits,
    *,
    batch_size: int,
    max_length: int | None,
    progress: Any,
) -> dict[str, dict[str, Any]]:
    """Locator -> measurements and ``admitted`` with ``reason``.

    latency_p50_ms, latency_p95_ms: eager PyTorch, preprocessing included, at ``batch_size`` rows of the task.
    seconds_per_row: of feature extraction in batches. size_mb: of the weights as float32.
    as_found: of a network that a search found: whether it was trained on these rows and classes, so that it takes part
    with its own head.
    """
    found = {}
    for position, locator in enumerate(locators):
        if progress:
            progress(position, len(locators), "measuring sources on this device")
        found[locator] = _admit_one(locator, data, limits, batch_size=batch_size, max_length=max_length)
    return found


def _found(locator: str) -> Path | None:
    """The folder of a network that a search found, or None for another source."""
    folder = Path(locator.removeprefix("file:"))
    return folder if locator.startswith("file:") and (folder / "network.json").exists() else None


def _admit_one(
    locator: str, data: TargetData, limits: Limits, *, batch_size: int, max_length: int | None
) -> dict[str, Any]:
    import torch

    from ontarget.pool import load, resolve
    from ontarget.pool.features import extract

    start = time.monotonic()
    try:
        source = resolve(locator)
        loaded = load(source, max_length=max_length)
    except OnTargetError as error:
        return {"admitted": False, "reason": str(error), "load_s": time.monotonic() - start}
    load_s = time.monotonic() - start
    found = _found(locator)
    if found is not None:
        from ontarget.pool.found_networks import refused

        reason = refused(found, data)
        if reason:
            return {"admitted": False, "reason": reason, "load_s": load_s}
    probe = data.train.take(np.arange(min(PROBE_ROWS, len(data.train))))
    extract(loaded, probe.inputs[: max(1, len(probe) // 4)])  # warm-up
    passes = []
    for _ in range(2):
        start = time.monotonic()
        extract(loaded, probe.inputs)
        passes.append((time.monotonic() - start) / len(probe))
    seconds_per_row = min(passes)

    loaded.encoder.eval()
    rows = [probe.take(np.arange(at, at + batch_size) % len(probe)).inputs for at in range(LATENCY_REPEATS)]
    times = []
    with torch.inference_mode():
        for inputs in rows:
            start = time.monotonic()
            loaded.encoder(*(torch.from_numpy(value) for value in loaded.preprocess(inputs).values()))
            times.append(1000 * (time.monotonic() - start))
    parameters = sum(parameter.numel() for parameter in loaded.encoder.parameters())
    entry: dict[str, Any] = {
        "admitted": True,
        "reason": "",
        "load_s": load_s,
        "seconds_per_row": seconds_per_row,
        "latency_p50_ms": float(np.percentile(times, 50)),
        "latency_p95_ms": float(np.percentile(times, 95)),
        "latency_best_ms": float(min(times)),
        "size_mb": 4 * parameters / 2**20,
        "parameters": parameters,
        "dim": loaded.dim,
    }
    if found is not None:
        from ontarget.pool.found_networks import trained_on

        entry["as_found"] = trained_on(found, data)
    return {**entry, **_verdict(entry, limits)}


def _verdict(entry: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """Refused only where no later compression can help: four bytes a weight become one at best."""
    broken = []
    # The fastest call counts: a device that is busy for a moment must not cost a source its place.
    if limits.latency_ms is not None and entry["latency_best_ms"] > EAGER_ALLOWANCE * limits.latency_ms:
        broken.append(
            f"latency {entry['latency_best_ms']:.1f} ms at best in PyTorch is over {EAGER_ALLOWANCE:.0f}x the limit of "
            f"{limits.latency_ms:g} ms"
        )
    if limits.size_mb is not None and entry["size_mb"] / 4 > limits.size_mb:
        broken.append(f"{entry['size_mb'] / 4:.0f} MiB even at 8 bits a weight, over the limit of {limits.size_mb:g}")
    if limits.memory_mb is not None and entry["size_mb"] / 4 > limits.memory_mb:
        broken.append(f"{entry['size_mb'] / 4:.0f} MiB of weights alone, over the limit of {limits.memory_mb:g}")
    return {"admitted": not broken, "reason": "; ".join(broken)}


def require_any(found: Mapping[str, Mapping[str, Any]], cheap: Sequence[str]) -> None:
    """Raise LimitError where nothing at all may take part, with the fastest figure that was seen."""
    if cheap or any(entry["admitted"] for entry in found.values()):
        return
    fastest = min((entry["latency_best_ms"] for entry in found.values() if "latency_best_ms" in entry), default=None)
    reasons = "; ".join(f"{locator}: {entry['reason']}" for locator, entry in found.items())
    raise LimitError(
        f"No source fits the limits ({reasons}).",
        allowed=f"the fastest needs {fastest:.1f} ms in PyTorch" if fastest is not None else "",
        option="--latency-ms, --size-mb, --memory-mb, --pool",
        next_step="raise the limit or add a smaller source to the pool",
    )
