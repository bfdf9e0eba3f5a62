"""Claims: small experiments on real data that show whether a method beats the baseline that its paper names.

A claim is one module ``claims/NN_name.py`` (installed as ``ontarget/_claims``) that holds constants and one
function:

    NUMBER, NAME, TITLE     e.g. 20, "tmi", "TMI ranks pretrained models"
    KIND                    "identity" | "direction" | "size"
    STATEMENT               what is claimed, in one sentence
    DATA, BUDGET            which real data; what is equal for all arms
    ARMS                    (method, baseline, further baselines ...)
    PAIRS                   optional: ((better, worse), ...) that the statement is about; (method, baseline) by default
    SEEDS                   how many
    MEASURE                 name of the number that arms are compared by; higher is better
    run(seed, context)      -> {arm: {measure: value, ...}}

The harness repeats ``run`` with seeds 0, 1, ..., computes the paired difference to the baseline with a bootstrap
interval, and writes ``claims/results/NN_name.json``. A direction holds where the interval of the mean paired
difference lies above zero, for every pair of the statement; the row is published either way.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ontarget.errors import SettingError, nearest
from ontarget.values import Context


def claims_folder() -> Path:
    """Where the claims are: in the checkout, or inside the installed package."""
    installed = Path(__file__).parent / "_claims"
    return installed if installed.exists() else Path(__file__).parents[2] / "claims"


def find_claims() -> dict[str, Path]:
    """Number as two digits -> module path, in order."""
    return {path.name[:2]: path for path in sorted(claims_folder().glob("[0-9][0-9]_*.py"))}


def load_claim(path: Path) -> ModuleType:
    """Import a claim's module from its path."""
    spec = importlib.util.spec_from_file_location(f"ontarget_claim_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def paired_difference(method: Sequence[float], baseline: Sequence[float], *, seed: int = 0) -> dict[str, float]:
    """Mean paired difference with its 95% interval.

    The interval is Student's t over seeds: with a handful of seeds a bootstrap of means is too narrow.
    """
    from scipy import stats

    differences = np.asarray(method, dtype=float) - np.asarray(baseline, dtype=float)
    mean = float(differences.mean())
    if len(differences) < 2:
        return {"mean": mean, "low": float("nan"), "high": float("nan")}
    half = float(stats.t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / np.sqrt(len(differences)))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def verdict(kind: str, difference: Mapping[str, Any]) -> str:
    """ "holds", "fails" or "undecided" from the paired difference of method and baseline."""
    low, high = difference["low"], difference["high"]
    if kind == "identity":
        return "holds" if abs(difference["mean"]) <= 1e-6 else "fails"
    if np.isnan(low):
        return "undecided"
    return "holds" if low > 0 else "fails" if high < 0 else "undecided"


def verdict_of_all(verdicts: Sequence[str]) -> str:
    """What holds for a statement about several pairs: the worst of their verdicts."""
    return next(found for found in ("fails", "undecided", "holds") if found in verdicts)


def run_claim(
    path: Path, *, seeds: int | None = None, output: Path | None = None, jobs: int = 1, progress: Any = None
) -> Path:
    """Run one claim and write its result; returns the file.

    jobs: seeds that run at the same time, each in a process of its own with its share of the cores.
    """
    from ontarget.plan.run_folder import to_json, write_atomic

    claim = load_claim(path)
    count = seeds or claim.SEEDS
    start = time.time()
    done: list[dict[str, Any]] = []
    if progress:
        progress(0, count, f"seeds of claim {path.stem}")
    for entry in _seeds(path, count, jobs):
        done.append(entry)
        if progress:
            progress(len(done), count, f"seeds of claim {path.stem}")
    rows = [entry["row"] for entry in done]
    measure = claim.MEASURE
    arms = {arm: [row[arm][measure] for row in rows] for arm in claim.ARMS}
    method, *baselines = claim.ARMS
    differences = {name: paired_difference(arms[method], arms[name]) for name in baselines}
    pairs = [
        {"better": better, "worse": worse, **paired_difference(arms[better], arms[worse])}
        for better, worse in getattr(claim, "PAIRS", ((method, baselines[0]),))
    ]
    result = {
        "number": claim.NUMBER,
        "name": claim.NAME,
        "title": claim.TITLE,
        "kind": claim.KIND,
        "statement": claim.STATEMENT,
        "data": claim.DATA,
        "budget": claim.BUDGET,
        "measure": measure,
        "method": method,
        "baseline": baselines[0],
        "seeds": list(range(count)),
        "verdict": verdict_of_all([verdict(claim.KIND, pair) for pair in pairs]),
        "pairs": [{**pair, "verdict": verdict(claim.KIND, pair)} for pair in pairs],
        "difference": differences,
        "means": {arm: float(np.mean(values)) for arm, values in arms.items()},
        "arms": arms,
        "rows": rows,
        "seconds": sum(entry["seconds"] for entry in done),
        "cpu_seconds": sum(entry["cpu_seconds"] for entry in done),
        "date": time.strftime("%Y-%m-%d", time.gmtime(start)),
        "environment": environment(),
        "command": f"ontarget claims run {claim.NUMBER:02d}",
    }
    folder = output or claims_folder() / "results"
    target = folder / f"{path.stem}.json"
    if target.exists():  # results are added, never edited
        target = folder / f"{path.stem}.{time.strftime('%Y%m%dT%H%M%S', time.gmtime(start))}.json"
    write_atomic(target, to_json(result))
    return target


def _seeds(path: Path, count: int, jobs: int) -> Iterator[dict[str, Any]]:
    """What `_one_seed` gives for seeds 0, 1, ..., in that order."""
    if jobs < 2:
        yield from (_one_seed(path, seed) for seed in range(count))
        return
    import multiprocessing
    import os
    from concurrent.futures import ProcessPoolExecutor

    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(
        jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_share_cores, initargs=(threads,)
    ) as pool:
        yield from pool.map(_one_seed, [path] * count, range(count))


def _share_cores(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _one_seed(path: Path, seed: int) -> dict[str, Any]:
    """One seed's row with its seconds; kept in the cache, so that a claim that was stopped goes on where it was.

    The key holds the claim's code and OnTarget's: rows made by different code never meet in one result.
    """
    from ontarget.plan.run_folder import to_json, write_atomic
    from ontarget.pool.cache import cache_folder, key_of

    code = [source.read_text() for source in (path, *sorted(Path(__file__).parent.rglob("*.py")))]
    stored = cache_folder() / "claims" / f"{path.stem}-{seed}-{key_of(*code)[:16]}.json"
    if not stored.exists():
        start, cpu = time.time(), time.process_time()
        row = load_claim(path).run(seed, Context(seed=seed))
        spent = {"seconds": time.time() - start, "cpu_seconds": time.process_time() - cpu}
        write_atomic(stored, to_json({"row": row, **spent}))
    entry: dict[str, Any] = json.loads(stored.read_text())
    return entry


def environment() -> dict[str, Any]:
    """Versions and machine that a recorded number depends on."""
    import platform
    from importlib import metadata

    from ontarget import __version__
    from ontarget.device import describe

    versions = {}
    for name in ("torch", "transformers", "timm", "peft", "scikit-learn", "numpy", "onnxruntime", "optuna"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "ontarget": __version__,
        "python": platform.python_version(),
        "versions": versions,
        "device": {name: value for name, value in describe().items() if isinstance(value, (str, int, float))},
    }


def results() -> dict[str, dict[str, Any]]:
    """Number as two digits -> newest recorded result."""
    newest: dict[str, dict[str, Any]] = {}
    recorded = (claims_folder() / "results").glob("*.json")
    # A later record has its time in its name.
    for path in sorted(recorded, key=lambda path: (path.name[:2], len(path.name), path.name)):
        newest[path.name[:2]] = json.loads(path.read_text())
    return newest


def run_claims(
    numbers: Sequence[str], *, seeds: int | None = None, output: Path | None = None, jobs: int = 1
) -> list[Path]:
    """Run the claims with these numbers ("all" for every one), print and record their results."""
    import typer

    from ontarget.progress import console_progress

    known = find_claims()
    wanted = list(known) if list(numbers) == ["all"] else [number.zfill(2) for number in numbers]
    for number in wanted:
        if number not in known:
            raise SettingError(
                f"There is no claim {number}.",
                allowed=", ".join(known) or "none is installed",
                next_step=nearest(number, known) or "ontarget claims list",
            )
    written = []
    for number in wanted:
        with console_progress() as progress:
            written.append(run_claim(known[number], seeds=seeds, output=output, jobs=jobs, progress=progress))
        typer.echo(_line(json.loads(written[-1].read_text())))
    return written


def pair_texts(result: Mapping[str, Any]) -> list[str]:
    """The statement's differences with their intervals, one a pair, for people to read."""
    found = []
    first = {"better": result["method"], "worse": result["baseline"], **result["difference"][result["baseline"]]}
    for pair in result.get("pairs", [first]):  # results of before statements could be about several pairs have none
        interval = "" if pair["low"] is None else f" [{pair['low']:+.4f}, {pair['high']:+.4f}]"
        found.append(f"{pair['better']} − {pair['worse']} = {pair['mean']:+.4f}{interval} {result['measure']}")
    return found


def _line(result: Mapping[str, Any]) -> str:
    return (
        f"{result['number']:02d} {result['name']}: {result['verdict']} ({result['kind']}) "
        f"{'; '.join(pair_texts(result))}, {len(result['seeds'])} seeds, {result['seconds']:.0f} s"
    )


def print_claims() -> None:
    """All claims with their newest recorded results, as a table."""
    from rich.console import Console
    from rich.table import Table

    recorded = results()
    table = Table("no", "claim", "kind", "verdict", "differences [95%]", "seeds", "seconds")
    for number, path in find_claims().items():
        result = recorded.get(number)
        if result is None:
            table.add_row(number, load_claim(path).TITLE, load_claim(path).KIND, "not run yet", "", "", "")
            continue
        table.add_row(
            number, result["title"], result["kind"], result["verdict"], "\n".join(pair_texts(result)),
            str(len(result["seeds"])), f"{result['seconds']:.0f}",
        )  # fmt: skip
    Console().print(table)
