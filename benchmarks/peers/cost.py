"""What a peer's run costs: CPU-seconds of this process and its children, and wall-clock seconds, stage by stage."""

from __future__ import annotations

import json
import os
import platform
import resource
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


class Stages:
    """``mark(name)`` at the end of each stage; the first stage begins with the process's own start in CPU terms."""

    def __init__(self) -> None:
        self.cpu_s: dict[str, float] = {}
        self.wall_s: dict[str, float] = {}
        self._cpu, self._wall = 0.0, time.perf_counter()

    def mark(self, name: str) -> None:
        cpu, wall = cpu_seconds(), time.perf_counter()
        self.cpu_s[name] = round(cpu - self._cpu, 3)
        self.wall_s[name] = round(wall - self._wall, 3)
        self._cpu, self._wall = cpu, wall


def cpu_seconds() -> float:
    """User and system seconds of this process and of its children that have ended."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def write(path: Path, packages: list[str], **values: object) -> None:
    """One JSON file with the values, versions, machine and date."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    machine = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "load_average_1m": round(os.getloadavg()[0], 2),
    }
    result = {"date": time.strftime("%Y-%m-%d", time.gmtime()), **values, "versions": versions, "machine": machine}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def processor() -> str:
    """The model's name as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
