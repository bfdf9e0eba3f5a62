"""Data selection: speed and scores against the packages zip-fit and data-selection, quality, and memory.

    sh benchmarks/peers/setup_data_selection.sh PEER
    python benchmarks/data_selection.py --peer PEER/bin/python --work WORK [--only zipfit dsir near-copies memory]

zipfit: 1,000 documents x 32 targets of about 1 kB, gzip level 6, 2 processes each. Targets: the same ranking in at most
a fifth of the CPU-seconds; the fast mode in at most a fiftieth, with a rank correlation of at least 0.95.
dsir: the same weights (1e-6), and at least the package's MB/s on one core.
near-copies: 30 copies of targets with 20% of their words replaced, among 240 other documents of equal length (licences
and changelogs are copied between packages, so documents that share a tenth of their runs of five words with a target,
which a copy has a third of, are none of these):
precision at 30, over 5 draws, by the mean over targets and by the nearest target. Target: at least 0.6.
memory: a pool of 1 GB; the highest resident size of all
processes together. Target: at most 1 GB.
Text: this Python's own modules, changelogs and licences of this system. Numba's compilation, once an installation, is
not counted: a first call comes before.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from scipy.stats import spearmanr

from record import RESULTS, record

SIDE = Path(__file__).parent / "peers" / "data_selection_side.py"
DOCUMENTS, TARGETS, SIZE, SEEDS = 1000, 32, 1000, 5


def files() -> list[str]:
    """Texts of more than 1.5 kB: modules, licences, changelogs."""
    found = [path.read_text(errors="ignore") for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))]
    documents = Path("/usr/share/doc")
    found += [path.read_text(errors="ignore") for path in sorted(documents.glob("*/copyright"))[:200]]
    found += [gzip.decompress(path.read_bytes()).decode("utf-8", "ignore")
              for path in sorted(documents.glob("*/changelog*.gz"))[:200]]  # fmt: skip
    return [text for text in found if len(text) > SIZE + 500]


def chunks(texts: list[str], count: int, random: np.random.Generator, size: int = SIZE) -> list[str]:
    """Distinct pieces of about ``size`` letters."""
    found: dict[str, None] = {}
    while len(found) < count:
        text = texts[int(random.integers(len(texts)))]
        length = int(size * random.uniform(0.8, 1.2))
        start = int(random.integers(len(text) - length)) if len(text) > length else 0
        found[text[start : start + length]] = None
    return list(found)


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return path


def measured(call: Callable[[], Any]) -> tuple[Any, float]:
    """(result, CPU-seconds of this process)."""
    start = time.process_time()
    found = call()
    return found, time.process_time() - start


def peer(options: argparse.Namespace, which: str, pool: Path, target: Path) -> dict[str, Any]:
    out = options.work / f"{which}-theirs.json"
    subprocess.run([options.peer, SIDE, which, pool, target, out], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)  # fmt: skip
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def zipfit_speed(options: argparse.Namespace) -> dict[str, Any]:
    from ontarget.select.fast_zipfit import fast_zipfit
    from ontarget.select.zipfit import zipfit

    rows = []
    for seed in range(SEEDS):
        random = np.random.default_rng(seed)
        texts = files()
        order = random.permutation(len(texts))
        halves = [[texts[at] for at in part] for part in np.array_split(order, 2)]
        pool, targets = chunks(halves[0], DOCUMENTS, random), chunks(halves[1], TARGETS, random)
        zipfit(pool[:2], targets[:2])  # Numba's compilation
        fast_zipfit(pool[:50], targets[:2])
        theirs = peer(options, "zipfit", write(options.work / "pool.jsonl", pool),
                      write(options.work / "target.jsonl", targets))  # fmt: skip
        exact, exact_s = measured(lambda: zipfit(pool, targets))  # noqa: B023
        repeats = [measured(lambda: fast_zipfit(pool, targets, seed=seed)) for _ in range(5)]  # noqa: B023
        fast, fast_s = repeats[0][0], statistics.median(seconds for _, seconds in repeats)
        rows.append({
            "seed": seed, "theirs_cpu_s": theirs["cpu_s"], "exact_cpu_s": exact_s, "fast_cpu_s": fast_s,
            "exact_ratio": theirs["cpu_s"] / exact_s, "fast_ratio": theirs["cpu_s"] / fast_s,
            "largest_difference": float(np.abs(exact - np.array(theirs["scores"])).max()),
            "same_ranking": bool((np.argsort(-exact, kind="stable")
                                  == np.argsort(-np.array(theirs["scores"]), kind="stable")).all()),
            "fast_spearman": float(spearmanr(fast.scores, exact).statistic), "said_agreement": fast.agreement,
        })  # fmt: skip
        print(rows[-1], flush=True)
    return {"zipfit": rows}


def dsir_speed(options: argparse.Namespace) -> dict[str, Any]:
    from ontarget.select import dsir
    from ontarget.select.dsir import dsir_weights, fit_dsir

    rows = []
    for seed in range(SEEDS):
        random = np.random.default_rng(seed)
        texts = files()
        pool, targets = chunks(texts, 4000, random), chunks(texts, 100, random)
        theirs = peer(options, "dsir", write(options.work / "pool.jsonl", pool),
                      write(options.work / "target.jsonl", targets))  # fmt: skip
        dsir._hashed.clear()  # nothing is remembered from another seed
        weights, cpu_s = measured(lambda: dsir_weights(pool, fit_dsir(pool, targets)))  # noqa: B023
        megabytes = sum(len(text.encode()) for text in pool) / 1e6
        rows.append({
            "seed": seed, "mb_s": megabytes / cpu_s, "theirs_mb_s": megabytes / theirs["cpu_s"],
            "largest_difference": float(np.abs(weights - np.array(theirs["weights"])).max()),
        })  # fmt: skip
        print(rows[-1], flush=True)
    return {"dsir": rows}


def word_runs(text: str, size: int = 5) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[at : at + size]) for at in range(len(words) - size + 1)}


def shared_runs(text: str, known: set[tuple[str, ...]]) -> float:
    """Share of the text's runs of words that are known."""
    runs = word_runs(text)
    return len(runs & known) / max(1, len(runs))


def near_copies(options: argparse.Namespace) -> dict[str, Any]:
    from ontarget.select.fast_zipfit import fast_zipfit
    from ontarget.select.zipfit import zipfit

    rows = []
    for seed in range(SEEDS):
        random = np.random.default_rng(seed)
        texts = files()
        targets = chunks(texts, 30, random)
        known = {run for target in targets for run in word_runs(target)}
        others = [text for text in chunks(texts, 600, random) if shared_runs(text, known) < 0.1][:240]
        assert len(others) == 240
        words = " ".join(others).split()
        copies = []
        for target in targets:
            parts = target.split(" ")
            for at in random.permutation(len(parts))[: round(0.2 * len(parts))]:
                parts[at] = words[int(random.integers(len(words)))]
            copies.append(" ".join(parts))
        length = min(len(text) for text in [*copies, *others])
        pool = [text[:length] for text in [*copies, *others]]
        entry: dict[str, Any] = {"seed": seed, "chance": 30 / 270}
        for name, scores in (
            ("gzip 6", zipfit(pool, targets)), ("lz4", zipfit(pool, targets, compressor="lz4")),
            ("gzip 6, nearest", zipfit(pool, targets, aggregate="nearest")),
            ("lz4, nearest", zipfit(pool, targets, compressor="lz4", aggregate="nearest")),
            ("fast", fast_zipfit(pool, targets, seed=seed).scores),
        ):  # fmt: skip
            entry[name] = float((np.argsort(-scores, kind="stable")[:30] < 30).mean())
        rows.append(entry)
        print(entry, flush=True)
    return {"near_copies": rows}


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """select-data on 1 GB of text: the highest resident size of it and its workers together, and its speed."""
    import sys

    path = options.work / "large.jsonl"
    if not path.exists():
        random, whole = np.random.default_rng(0), "\n".join(files())
        with path.open("w") as file:
            size = 0
            while size < 10**9:  # from anywhere, so that large files give more than small ones
                for start in random.integers(0, len(whole) - 2000, 500):
                    size += file.write(json.dumps({"text": whole[start : start + int(random.integers(1600, 2400))]}))
                    size += file.write("\n")
    target = write(options.work / "few.jsonl", chunks(files(), TARGETS, np.random.default_rng(1)))
    program = str(Path(sys.executable).with_name("ontarget"))
    output = options.work / "selection"
    subprocess.run(["rm", "-rf", str(output)], check=True)
    command = [program, "select-data", str(path), "--target", str(target), "--count", "5000", "--mode", "fast", "-o",
               str(output), "-q"]  # fmt: skip
    start, highest = time.perf_counter(), 0
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            family = [process, *process.children(recursive=True)]
            highest = max(highest, sum(member.memory_info().rss for member in family if member.is_running()))
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit("select-data failed")
    seconds = time.perf_counter() - start
    documents = json.loads((output / "selection.json").read_text())["documents"]
    found = {"pool_mb": path.stat().st_size / 1e6, "documents": documents, "highest_mb": highest / 1e6,
             "seconds": seconds, "mb_s": path.stat().st_size / 1e6 / seconds, "processes": os.cpu_count()}  # fmt: skip
    print(found, flush=True)
    return {"memory": found}


PARTS = {"zipfit": zipfit_speed, "dsir": dsir_speed, "near-copies": near_copies, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="Python of the peers' environment; for zipfit and dsir")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    stored = RESULTS / "data_selection.json"
    found: dict[str, Any] = json.loads(stored.read_text()) if stored.exists() else {}
    found = {name: found[name] for name in ("zipfit", "dsir", "near_copies", "memory") if name in found}
    for name in options.only:
        found |= PARTS[name](options)
    said = []
    if "zipfit" in found:
        median = {key: statistics.median(row[key] for row in found["zipfit"])
                  for key in ("exact_ratio", "fast_ratio", "fast_spearman")}  # fmt: skip
        said.append(f"zip-fit's CPU-seconds / ours: exact {median['exact_ratio']:.1f}, fast {median['fast_ratio']:.0f} "
                    f"(Spearman {median['fast_spearman']:.3f})")  # fmt: skip
    if "dsir" in found:
        ratio = statistics.median(row["mb_s"] / row["theirs_mb_s"] for row in found["dsir"])
        said.append(f"DSIR's MB/s against data-selection's: {ratio:.1f} times")
    if "near_copies" in found:
        best = {
            name: statistics.mean(row[name] for row in found["near_copies"])
            for name in found["near_copies"][0]
            if name not in ("seed", "chance")
        }
        said.append("precision@30 of near-copies: " + ", ".join(f"{name} {value:.2f}" for name, value in best.items()))
    if "memory" in found:
        row = found["memory"]
        said.append(f"{row['pool_mb']:.0f} MB of text within {row['highest_mb']:.0f} MB, {row['mb_s']:.1f} MB/s")
    record("data_selection", headline="; ".join(said), **found)


if __name__ == "__main__":
    main()
