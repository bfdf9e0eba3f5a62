"""Does symbolic discovery find a rule that beats AdamW where the search never looked?

    OMP_NUM_THREADS=1 python benchmarks/discover_optimizer.py --work WORK

The check of method 18's second half. For each seed the whole search anew: 300 programs on perceptrons trained with
1,000 Fashion-MNIST images, the funnel on 10 and 100 times the work, simplification. Then two held-out tasks: MNIST
digits, and a larger perceptron on Fashion-MNIST rows that the search did not have. On each, the rule and AdamW (with
bias correction) have their rates tuned on validation rows with the same grid, which widens at its edges in the same
way; a third arm tunes AdamW's decay as well. Measured: accuracy and loss on test rows, mean of three trainings whose
seeds tuning did not use. Passes where the interval of rule minus AdamW, over the seeds of the search, lies above 0 in
accuracy on both tasks. Some 7 CPU-minutes a seed; a search that was stopped goes on from WORK.

Where a search finds nothing that beats AdamW on its largest task, it hands out AdamW without bias correction; that is
then what is compared, and the seed says so. The result is recorded from three seeds on.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ontarget.claims import paired_difference, verdict
from ontarget.plan.run_folder import to_json, write_atomic
from ontarget.search.discover_optimizer import discover_optimizer
from ontarget.search.optimizer_program import Program
from ontarget.search.proxy_tasks import AdamW, Candidate, MLPTask, mlp_tasks
from ontarget.search.symbolic_optimizer import tuned
from ontarget.values import Array, Context
from record import record

PROGRAMS = 300
SEARCHED, JUDGED, OTHERS = 12_000, 4_000, 12_000  # Fashion-MNIST rows: of the search, its validation, the larger task
RATES = tuple(1e-3 * 2.0**power for power in range(-2, 4))
FACTORS = tuple(2.0**power for power in range(-3, 3))
DECAYS = (0.0, 0.01, 0.1, 1.0)
TUNED, MEASURED = 90, 91  # seeds of the trainings that tune, and of those that are measured
TASKS = ("digits", "larger perceptron")


def held_out(seed: int) -> dict[str, tuple[MLPTask, MLPTask]]:
    """Task -> (judged on validation rows, judged on test rows); both train on the same rows."""
    from ontarget.data.samples import digits, fashion_mnist

    found = {}
    images, labels = digits()
    order = np.random.default_rng(seed).permutation(len(labels))
    parts = [(images[rows], labels[rows]) for rows in (order[:3000], order[3000:4000], order[4000:])]
    found["digits"] = _pair(parts, width=100, steps=300)
    images, labels, test_images, test_labels = fashion_mnist()
    order = np.random.default_rng(seed).permutation(len(labels))[SEARCHED + JUDGED :]
    parts = [(images[rows], labels[rows]) for rows in (order[:OTHERS], order[OTHERS : OTHERS + JUDGED])]
    found["larger perceptron"] = _pair([*parts, (test_images, test_labels)], width=512, steps=750)
    return found


def _pair(parts: list[tuple[Array, Array]], *, width: int, steps: int) -> tuple[MLPTask, MLPTask]:
    train, validation, test = parts
    shared: dict[str, Any] = {"sizes": (1,), "rows": len(train[0]), "width": width, "steps": steps}
    return (
        mlp_tasks(*train, *validation, repeats=1, seed=TUNED, **shared)[0],
        mlp_tasks(*train, *test, repeats=3, seed=MEASURED, **shared)[0],
    )


def measured(task: MLPTask, candidate: Candidate, rate: float) -> dict[str, float]:
    runs = [task.train(candidate, rate, seed) for seed in task.seeds]
    return {"accuracy": float(np.mean([r.accuracy for r in runs])), "loss": float(np.mean([r.loss for r in runs]))}


def compared(program: Program, rate: float, tasks: tuple[MLPTask, MLPTask]) -> dict[str, Any]:
    """Arm -> accuracy and loss on test rows, at the rate that validation rows chose."""
    validation, test = tasks
    factor = tuned(lambda factor: validation.fitness(program, factor), [rate * f for f in FACTORS], 2.0)[1]
    lr = tuned(lambda lr: validation.fitness(AdamW(lr), 1.0), RATES, 2.0)[1]
    decay = max(DECAYS, key=lambda decay: validation.fitness(AdamW(lr, decay), 1.0))
    return {
        "rule": {**measured(test, program, factor), "rate": factor},
        "adamw": {**measured(test, AdamW(lr), 1.0), "rate": lr},
        "adamw, decay tuned": {**measured(test, AdamW(lr, decay), 1.0), "rate": lr, "decay": decay},
    }


def one_seed(seed: int, work: Path) -> dict[str, Any]:
    """The whole search and what its rule does; kept in WORK."""
    from ontarget.data.samples import fashion_mnist

    path = work / f"seed{seed}.json"
    if path.exists():
        stored: dict[str, Any] = json.loads(path.read_text())
        return stored
    start, cpu = time.time(), time.process_time()
    images, labels, *_ = fashion_mnist()
    order = np.random.default_rng(seed).permutation(len(labels))
    rows, judges = order[:SEARCHED], order[SEARCHED : SEARCHED + JUDGED]
    found = discover_optimizer(
        images[rows], labels[rows], work / f"search{seed}", validation=(images[judges], labels[judges]),
        programs=PROGRAMS, context=Context(seed=seed),
    )  # fmt: skip
    searched = time.process_time() - cpu
    result = {
        "seed": seed, "improved": found.improved, "rule": found.program.text(), "evaluations": found.evaluations,
        "proxy": {"start": found.history[0], "best": max(found.history), "programs": len(found.history)},
        "funnel": [{"name": row.name, "fitness": row.fitness, "rates": row.rates} for row in found.funnel],
        "held_out": {name: compared(found.program, found.rate, tasks) for name, tasks in held_out(seed).items()},
        "seconds": time.time() - start, "cpu_s_search": searched, "cpu_s": time.process_time() - cpu,
    }  # fmt: skip
    write_atomic(path, to_json(result))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="Seeds that run at the same time, one core each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.jobs > 1:  # finished seeds are read back below
        context = get_context("spawn")
        with ProcessPoolExecutor(options.jobs, context, torch.set_num_threads, (1,)) as executor:
            list(executor.map(one_seed, range(options.seeds), [options.work] * options.seeds))
    rows = []
    for seed in range(options.seeds):
        rows.append(one_seed(seed, options.work))
        print(f"seed {seed}: improved on the largest task: {rows[-1]['improved']}; {rows[-1]['cpu_s']:.0f} CPU-seconds")
        print(rows[-1]["rule"])
        for name, arms in rows[-1]["held_out"].items():
            said = ", ".join(f"{arm} {found['accuracy']:.4f} (loss {found['loss']:.4f})" for arm, found in arms.items())
            print(f"  {name}: {said}", flush=True)
    differences: dict[str, Any] = {}
    for name in TASKS:
        for baseline in ("adamw", "adamw, decay tuned"):
            for measure, sign in (("accuracy", 1), ("loss", -1)):
                mine, other = (
                    [sign * row["held_out"][name][arm][measure] for row in rows] for arm in ("rule", baseline)
                )
                between = paired_difference(mine, other)
                differences[f"{name}: {measure}, rule better than {baseline}"] = {
                    **between, "verdict": verdict("direction", between)
                }  # fmt: skip
    if len(rows) < 3:
        print("fewer than three seeds: nothing is recorded")
        return
    accuracy = {name: differences[f"{name}: accuracy, rule better than adamw"] for name in TASKS}
    parts = [
        f"{name} {d['mean']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}] ({d['verdict']})" for name, d in accuracy.items()
    ]
    record(
        "discover_optimizer",
        headline=f"test accuracy of the discovered rule minus AdamW's, both with tuned rates, {len(rows)} searches of "
        f"{PROGRAMS} programs: {'; '.join(parts)}; {sum(row['improved'] for row in rows)} searches found a rule that "
        "beat AdamW on their largest task",
        command="OMP_NUM_THREADS=1 python benchmarks/discover_optimizer.py --work WORK",
        passes=all(d["verdict"] == "holds" for d in accuracy.values()),
        differences=differences,
        rows=rows,
    )


if __name__ == "__main__":
    main()
