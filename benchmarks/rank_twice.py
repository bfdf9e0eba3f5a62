"""`ontarget rank` a second time on the same data and pool: how much faster?

    python benchmarks/rank_twice.py

Target: at least 20 times. Five draws of 2,000 package descriptions in 10 sections, the whole text zoo, a cache that
is empty at first, each command in a process of its own. Times are of the whole command, start of Python included.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from few_labels_data import sections
from record import record

SEEDS, ROWS = 5, 2000


def main() -> None:
    program = str(Path(sys.executable).with_name("ontarget"))
    table = sections()
    rows = []
    for seed in range(SEEDS):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            table.sample(n=ROWS, random_state=seed).to_csv(folder / "rows.csv", index=False)
            command = [program, "rank", str(folder / "rows.csv"), "--input", "text", "--target", "label", "--quiet"]
            environment = os.environ | {"ONTARGET_CACHE": str(folder / "cache")}
            times, outputs = [], []
            for _ in range(2):
                start = time.perf_counter()
                done = subprocess.run(
                    [*command, "--json"], check=True, env=environment, stdout=subprocess.PIPE, text=True
                )
                times.append(time.perf_counter() - start)
                outputs.append(done.stdout)
        rows.append({"seed": seed, "first_s": times[0], "second_s": times[1], "ratio": times[0] / times[1],
                     "same": outputs[0] == outputs[1]})  # fmt: skip
        print(rows[-1], flush=True)
    first, second, ratio = (statistics.median(row[key] for row in rows) for key in ("first_s", "second_s", "ratio"))
    record(
        "rank_twice",
        headline=f"rank of {ROWS} texts: {first:.0f} s, a second time {second:.2f} s: {ratio:.0f} times faster "
        f"(median of {SEEDS})",
        rows=rows,
    )


if __name__ == "__main__":
    main()
