"""LogME here against the official code: equal scores, CPU-seconds of both in one run.

    git clone https://github.com/thuml/LogME && pip install numba
    python benchmarks/logme.py --official LogME

Target: the same score to 1e-6 relative, at most a fifth of the process CPU-seconds at each size. Runs alternate;
medians over 51, 9 and 5 repeats after one unmeasured (which compiles the official code). Features have classes and a
decaying spectrum; with --noise they are independent normal noise, where every class needs all 11 steps.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time

import numpy as np
from threadpoolctl import threadpool_limits

from ontarget.select.logme import logme
from ontarget.values import Array
from record import record

SIZES = ((1_000, 384, 10), (5_000, 768, 100), (10_000, 2_048, 100))
REPEATS = (51, 9, 5)  # short ones vary more


def make(rows: int, dim: int, classes: int, noise: bool) -> tuple[Array, Array]:
    random = np.random.default_rng(0)
    targets = random.integers(0, classes, rows)
    features = random.normal(size=(rows, dim))
    if not noise:
        features += random.normal(size=(classes, dim))[targets] / 2
        features *= np.arange(1, dim + 1) ** -0.5
    return features, targets


def cpu_seconds(function: object, *arguments: Array) -> tuple[float, float]:
    start = time.process_time()
    score = float(function(*arguments))  # type: ignore[operator]
    return time.process_time() - start, score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", required=True, help="checkout of github.com/thuml/LogME")
    parser.add_argument("--threads", type=int, default=1, help="BLAS threads of both (1); 0: as many as BLAS takes")
    parser.add_argument("--noise", action="store_true", help="features without structure")
    options = parser.parse_args()
    sys.path.insert(0, options.official)
    official = importlib.import_module("LogME").LogME
    rows = []
    print(f"{'N':>6} {'D':>5} {'C':>4} {'official s':>11} {'ontarget s':>11} {'ratio':>6} {'difference':>11}")
    with threadpool_limits(options.threads or None, user_api="blas"):
        for size, repeats in zip(SIZES, REPEATS, strict=True):
            features, targets = make(*size, options.noise)
            theirs, ours, scores = [], [], (0.0, 0.0)
            for repeat in range(repeats + 1):
                seconds, score = cpu_seconds(official().fit, features, targets)
                own_seconds, own_score = cpu_seconds(logme, features, targets)
                if repeat:
                    theirs.append(seconds)
                    ours.append(own_seconds)
                scores = score, own_score
            difference = abs(scores[0] - scores[1]) / abs(scores[0])
            ratio = statistics.median(theirs) / statistics.median(ours)
            print("{:>6} {:>5} {:>4}".format(*size), end=" ")
            print(
                f"{statistics.median(theirs):>11.4f} {statistics.median(ours):>11.4f} {ratio:>6.2f} {difference:>11.1e}"
            )
            rows.append(
                {
                    "rows": size[0],
                    "dim": size[1],
                    "classes": size[2],
                    "official_cpu_s": theirs,
                    "ontarget_cpu_s": ours,
                    "ratio_of_medians": ratio,
                    "official_score": scores[0],
                    "relative_difference": difference,
                }
            )
    headline = "official / ontarget CPU-seconds " + " / ".join(f"{row['ratio_of_medians']:.2f}" for row in rows)
    name = (
        "logme" + ("_noise" if options.noise else "") + ("" if options.threads == 1 else f"_threads{options.threads}")
    )
    record(name, headline=headline, threads=options.threads, noise=options.noise, sizes=rows)


if __name__ == "__main__":
    main()
