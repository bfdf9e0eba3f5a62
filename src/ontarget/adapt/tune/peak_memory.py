"""The most memory that a stretch of work has held."""

from __future__ import annotations

import sys
from pathlib import Path

import torch


def reset_peak_memory(device: str) -> None:
    """Forget earlier peaks, where the system allows it (CUDA; Linux)."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak_memory_mb(device: str) -> float:
    """Peak since `reset_peak_memory`, 2**20 bytes: allocated on the GPU, or resident in this process as a whole."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
