"""Writes a benchmark's result with date, versions, machine and the command that made it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from ontarget.claims import environment
from ontarget.plan.run_folder import to_json, write_atomic

RESULTS = Path(__file__).parent / "results"


def record(name: str, *, headline: str, **values: Any) -> Path:
    """Write ``results/NAME.json``, replacing an older one (its history is in git), and print the headline."""
    path = RESULTS / f"{name}.json"
    result = {
        "headline": headline,
        "command": "python " + " ".join(["benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        **values,
        "environment": environment(),
    }
    write_atomic(path, to_json(result))
    print(f"{name}: {headline}\n-> {path}")
    return path
