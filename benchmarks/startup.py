"""How long `import ontarget` and `ontarget --help` take in a fresh process.

    python benchmarks/startup.py

Targets: under 0.3 s and under 0.6 s. Medians over 15 processes, one unmeasured first.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from record import record

COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "import ontarget": [sys.executable, "-c", "import ontarget"],
    "ontarget --help": [str(Path(sys.executable).with_name("ontarget")), "--help"],
}
REPEATS = 15


def seconds(command: list[str]) -> list[float]:
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return times[1:]


def main() -> None:
    measured = {name: seconds(command) for name, command in COMMANDS.items()}
    medians = {name: statistics.median(times) for name, times in measured.items()}
    headline = ", ".join(f"{name} {value:.3f} s" for name, value in medians.items())
    record("startup", headline=headline, medians_s=medians, seconds=measured)


if __name__ == "__main__":
    main()
