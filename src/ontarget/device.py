"""What this device is, and what a call costs on it: measured, never guessed."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

WARM_UP = 5
MIN_REPEATS = 30
MAX_SECONDS = 3.0  # one measurement ends after this long once it has MIN_REPEATS / 3 calls (choice)


def describe() -> dict[str, Any]:
    """Processor, cores, memory and versions that measurements depend on."""
    import psutil

    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count() or 1,
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "instructions": _instructions(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "onnxruntime": _version("onnxruntime"),
        "torch": _version("torch"),
        "accelerator": _accelerator(),
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _instructions() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    flags = set(next((line for line in text.splitlines() if line.startswith("flags")), "").split())
    return " ".join(
        name for name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "avx512_bf16") if name in flags
    )


def _version(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def check_device(name: str) -> None:
    """Raises SettingError, before any work, where torch cannot work on ``name``: "cpu", "cuda", "cuda:1", "mps"."""
    import torch

    from ontarget.errors import SettingError

    allowed = ["cpu"]
    if torch.cuda.is_available():
        allowed += ["cuda", *(f"cuda:{at}" for at in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        allowed.append("mps")
    if name not in allowed:
        built = torch.version.cuda or torch.backends.mps.is_built()
        missing = "no accelerator is found here" if built else "this build of torch has no support for accelerators"
        raise SettingError(
            f"Torch cannot work on '{name}' here.", allowed=", ".join(allowed), option="--device",
            next_step=f"leave it out for the CPU ({missing})" if allowed == ["cpu"] else "take one of these",
        )  # fmt: skip


def _accelerator() -> str:
    if "torch" not in sys.modules:
        return ""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""


def measure_latency(
    calls: Sequence[Callable[[], Any]], *, repeats: int = MIN_REPEATS, max_s: float = MAX_SECONDS
) -> tuple[float, float, int]:
    """(p50 ms, p95 ms, number of calls) over ``calls`` taken in turn, after a warm-up.

    Several different calls (rows of different length) make the figure that of the task and not of one row.
    """
    for at in range(min(WARM_UP, repeats)):
        calls[at % len(calls)]()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < repeats and (len(times) < repeats // 3 or time.perf_counter() - begin < max_s):
        call = calls[len(times) % len(calls)]
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return float(np.percentile(times, 50)), float(np.percentile(times, 95)), len(times)


def measure_side_by_side(
    groups: dict[str, Sequence[Callable[[], Any]]], *, rounds: int = 3, repeats: int = MIN_REPEATS
) -> dict[str, tuple[float, float, int]]:
    """`measure_latency` of several alternatives in alternating rounds: what disturbs one disturbs all.

    The figures are medians over the rounds.
    """
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in groups}
    for _ in range(rounds):
        for name, calls in groups.items():
            found[name].append(measure_latency(calls, repeats=max(9, repeats // rounds), max_s=MAX_SECONDS / rounds))
    return {
        name: (
            float(np.median([row[0] for row in rows])),
            float(np.median([row[1] for row in rows])),
            sum(row[2] for row in rows),
        )
        for name, rows in found.items()
    }


_MEMORY_PROBE = """
import json, os, sys, numpy as np, onnxruntime as ort
def resident_mb():
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
path, tensors, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
feeds = dict(np.load(tensors))
before = resident_mb()
options = ort.SessionOptions(); options.intra_op_num_threads = threads
session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
highest = resident_mb()
for _ in range(3):
    session.run(None, feeds)
    highest = max(highest, resident_mb())
print(json.dumps({"memory_mb": highest - before}))
"""


def measure_onnx_memory(path: Path, tensors: dict[str, Any], *, threads: int) -> float:
    """Peak resident memory, 2**20 bytes, that loading and calling the model adds in a fresh process."""
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        np.savez(file, **tensors)
        file.flush()
        command = [sys.executable, "-c", _MEMORY_PROBE, str(path), file.name, str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return max(0.0, float(json.loads(done.stdout)["memory_mb"]))


def return_memory() -> None:
    """Give freed memory back to the system: the C library keeps it, hundreds of MiB after a model was converted.

    Does nothing where there is no glibc.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
