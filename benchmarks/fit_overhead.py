"""The part of a `fit` that is spent neither in features nor in training nor in measuring.

    python benchmarks/fit_overhead.py                  # 10 fits of 3 minutes
    python benchmarks/fit_overhead.py --recorded       # from the 10-minute fits of equal_budget.py, as recorded

Target: at most 10% of its time. Five draws each of a text set (1,000 package descriptions, 10 sections) and an image
set (1,000 pictures of Fashion-MNIST), the installed zoo, a budget of 3 minutes, an empty cache. The figures are the
report's own (costs in report.json); the time of the whole command stands beside them, and what is left of it after
the three is counted as overhead too, so that nothing hides before the run's clock starts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

from few_labels_data import images, sections
from record import RESULTS, record

SEEDS, ROWS = 5, 1000
PAID = ("features_s", "training_s", "measuring_s")


def from_equal_budget() -> list[dict[str, Any]]:
    """A row for each fit that equal_budget.py has recorded."""
    recorded = json.loads((RESULTS / "equal_budget.json").read_text())
    return [
        {
            "set": row["set"],
            "seed": row["seed"],
            "command_s": row["ours"]["wall_s"],
            "overhead": 1 - sum(row["ours"]["costs"][what] for what in PAID) / row["ours"]["wall_s"],
            **row["ours"]["costs"],
        }
        for row in recorded["rows"]
    ]


def measured(budget: str, seeds: int) -> list[dict[str, Any]]:
    """A row for each fit of ``budget``, of a text and an image set."""
    program = str(Path(sys.executable).with_name("ontarget"))
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tables: dict[str, pd.DataFrame] = {"text": sections(), "image": images("fashion", folder / "images")}
        for seed in range(seeds):
            for kind, table in tables.items():
                path, run = folder / f"{kind}-{seed}.csv", folder / f"run-{kind}-{seed}"
                table.sample(n=ROWS, random_state=seed).to_csv(path, index=False)
                command = [program, "fit", str(path), "--input", kind, "--target", "label", "--budget", budget]
                environment = os.environ | {"ONTARGET_CACHE": str(folder / f"cache-{kind}-{seed}")}
                start = time.perf_counter()
                subprocess.run([*command, "--run", str(run), "--quiet"], check=True, env=environment,
                               stdout=subprocess.DEVNULL)  # fmt: skip
                wall_s = time.perf_counter() - start
                costs = json.loads((run / "report.json").read_text())["costs"]
                share = 1 - sum(costs[what] for what in PAID) / wall_s
                rows.append({"set": kind, "seed": seed, "command_s": wall_s, "overhead": share, **costs})
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", default="180s")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--recorded", action="store_true", help="from results/equal_budget.json, nothing is run")
    options = parser.parse_args()
    rows = from_equal_budget() if options.recorded else measured(options.budget, options.seeds)
    kinds = dict.fromkeys(row["set"] for row in rows)
    budget = f"{rows[0]['budget_s']:.0f} s"
    medians = {kind: statistics.median(row["overhead"] for row in rows if row["set"] == kind) for kind in kinds}
    record(
        "fit_overhead",
        headline=f"overhead of a fit of {budget}: "
        + ", ".join(f"{kind} {share:.1%}" for kind, share in medians.items())
        + f" of the whole command (medians of {len(rows) // len(kinds)})",
        medians=medians,
        rows=rows,
    )


if __name__ == "__main__":
    main()
