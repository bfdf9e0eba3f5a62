"""`kill -9` at random moments of a fit: does every resume end with the decision of an undisturbed run?

    python benchmarks/kill_resume.py reviews.csv --kills 20 -- --input text --target label --budget 60s

The recorded run is of a sample, 250 product reviews, on an otherwise idle machine:

    python -c "from ontarget.data.samples import write_text_demo; write_text_demo('.', rows=250)"
    python benchmarks/kill_resume.py products.csv -- --input text --target label --budget 75s --pool zoo:minilm

One undisturbed run first; then ``--kills`` runs, each killed once at a moment drawn uniformly from the undisturbed
run's length and resumed. Compared: the decision (the chosen trial with its recipe and metric), and the recipe and
metric of every trial that both have. How many recipes a budget buys is measured anew in every run, killed or not;
"same_trials" says whether both ran the same list. No trial that was finished before the kill may be run again (its
record must be the same file, byte for byte).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from record import record

PROGRAM = str(Path(sys.executable).with_name("ontarget"))


def trial_records(run: Path) -> dict[str, str]:
    """Trial folder -> digest of its record."""
    return {
        path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (run / "trials").glob("*/trial.json")
    }


def outcome(run: Path) -> dict[str, Any]:
    """What has to be the same: the decision and every trial's recipe and metric."""
    decision = json.loads((run / "stages" / "decision.json").read_text())["value"]
    trials = {}
    for path in sorted((run / "trials").glob("*/trial.json")):
        trial = json.loads(path.read_text())
        trials[trial["number"]] = [
            trial["source"],
            trial["method"],
            trial["settings"],
            trial["state"],
            trial["metric"],
        ]
    return {"chosen": decision["number"], "trials": trials}


def agree(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """The same decision, and no trial that both have differs."""
    mine, theirs = found["trials"], expected["trials"]
    common = mine.keys() & theirs.keys()
    return found["chosen"] == expected["chosen"] and all(mine[number] == theirs[number] for number in common)


def main() -> None:
    own, _, rest = " ".join(sys.argv[1:]).partition(" -- ")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/kill-resume"))
    arguments = parser.parse_args(own.split())
    fit = [PROGRAM, "fit", arguments.data, *rest.split(), "--quiet"]
    shutil.rmtree(arguments.folder, ignore_errors=True)
    arguments.folder.mkdir(parents=True)
    start = time.perf_counter()
    subprocess.run([*fit, "--run", str(arguments.folder / "undisturbed")], check=True, stdout=subprocess.DEVNULL)
    length_s = time.perf_counter() - start
    expected = outcome(arguments.folder / "undisturbed")
    draw = random.Random(arguments.seed)
    rows = []
    for number in range(arguments.kills):
        run = arguments.folder / f"killed-{number:02d}"
        moment_s = draw.uniform(0.0, length_s)
        process = subprocess.Popen([*fit, "--run", str(run)], stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            process.wait(moment_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        before = trial_records(run)
        stages = len(list((run / "stages").glob("*.json"))) if (run / "stages").exists() else 0
        again = [PROGRAM, "fit", "--resume", str(run), "--quiet"] if (run / "task.toml").exists() else [
            *fit, "--run", str(run)
        ]  # fmt: skip
        finished = subprocess.run(again, stdout=subprocess.DEVNULL, check=False)
        after = trial_records(run)
        same = finished.returncode == 0 and agree(outcome(run), expected)
        same_trials = same and outcome(run) == expected
        kept = all(after.get(name) == digest for name, digest in before.items())
        rows.append(
            {
                "killed_at_s": moment_s,
                "stages": stages,
                "trials_before": len(before),
                "same": same,
                "same_trials": same_trials,
                "kept": kept,
            }
        )
        print(rows[-1], flush=True)
        if same and kept:
            shutil.rmtree(run)
    good = sum(row["same"] and row["kept"] for row in rows)
    record(
        "kill_resume",
        headline=f"{good} of {len(rows)} killed runs resumed to the same decision and trials; "
        f"undisturbed run {length_s:.0f} s",
        length_s=length_s,
        rows=rows,
    )
    raise SystemExit(0 if good == len(rows) else 1)


if __name__ == "__main__":
    main()
