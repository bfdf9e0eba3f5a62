"""How well a latency table predicts whole networks: Kendall's tau and the median error over 50 random ones.

Targets, batch 1 on a quiet core: tau at least 0.9, median error at most 10%, over 50 networks that the table was not
made from. Spaces: the mobile CNNs for pictures of 28 (grey) and 64 pixels (colour), slices of MiniLM at 32 tokens, each
on ONNX Runtime and PyTorch with one thread. The 50 networks are measured in the same turns as the networks that correct
the table, and in further passes of their own (MiniLM one, others five), in which each is built anew. As a shared
machine's speed may change between minutes, each pass is set to the geometric mean of the first; the mean over passes is
what is predicted. ``repeat``: the first half of the passes against the second, noise that no table made from as many
can be better than. ``levels``: the geometric means, by the first.

    OMP_NUM_THREADS=1 python benchmarks/latency_prediction.py            # about 20 minutes, on a machine at rest
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

import numpy as np
import torch
from scipy import stats

from ontarget.latency_table import LatencyTable, Setting, profile
from ontarget.progress import console_progress
from ontarget.search.space import Code, draw
from ontarget.time_networks import Maker, time_builds
from ontarget.values import Array, Context
from record import record

SPACES = ("mobile 28", "mobile 64", "minilm 32")
CHECKED = 50


def space_of(name: str) -> Any:
    kind, size = name.split()
    if kind == "mobile":
        from ontarget.search.mobile_space import MobileSpace, stages_for

        pixels = int(size)
        channels = 1 if pixels == 28 else 3
        return MobileSpace(image_size=pixels, channels=channels, outputs=10, **stages_for(pixels)).eval()
    from ontarget.pool import load, resolve
    from ontarget.search.elastic_bert import elastic_bert

    encoder: Any = load(resolve("zoo:minilm"), max_length=int(size)).encoder
    return elastic_bert(encoder.model, outputs=10, length=int(size)).eval()


def checked(space: Any, fitted: int, networks: int) -> list[Code]:
    """The last of those that `profile` draws."""
    generator = np.random.default_rng(0)
    codes: dict[Code, None] = {}
    while len(codes) < fitted + networks:
        codes.setdefault(draw(space, generator))
    return list(codes)[fitted:]


def agreement(predicted: Array, measured: Array) -> dict[str, float]:
    return {
        "kendall": float(stats.kendalltau(predicted, measured).statistic),
        "median_error": float(np.median(abs(predicted - measured) / measured)),
    }


def measured(name: str, runtime: Any) -> dict[str, Any]:
    start = time.monotonic()
    setting = Setting(runtime, threads=1)
    torch.manual_seed(0)
    space = space_of(name)
    with console_progress(False) as progress:
        table: LatencyTable = profile(space, setting, checked=CHECKED, context=Context(progress=progress))
    codes = checked(space, table.fitted, len(table.agreement.measured_ms))
    predicted = np.array([table.predict(space.operators(code)) for code in codes])
    assert np.array_equal(predicted, table.agreement.predicted_ms), "other networks than the table was checked on"
    makers = [Maker(space.slice(code).eval(), space.example(1), setting) for code in codes]
    more = [time_builds(makers, setting) for _ in range(1 if name.startswith("minilm") else 5)]
    found = np.array([table.agreement.measured_ms, *more])
    levels = np.exp(np.log(found).mean(1))
    levels /= levels[0]
    found /= levels[:, None]
    truth = found.mean(0)
    half = len(found) // 2
    row = {
        "space": name, "runtime": runtime, "networks": len(codes), **agreement(predicted, truth),
        "operators": len(table.operators), "fitted": table.fitted,
        "fastest_ms": float(truth.min()), "slowest_ms": float(truth.max()),
        "predicted_ms": predicted.tolist(), "measured_ms": truth.tolist(), "passes_ms": found.tolist(),
        "levels": levels.tolist(),
        "repeat": agreement(found[:half].mean(0), found[half:].mean(0)), "seconds": time.monotonic() - start,
    }  # fmt: skip
    print({key: value for key, value in row.items() if not key.endswith("_ms") or key[0] in "fs"}, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spaces", nargs="+", choices=SPACES, default=SPACES)
    parser.add_argument("--runtimes", nargs="+", choices=("onnxruntime", "pytorch"), default=("onnxruntime", "pytorch"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    rows = [measured(space, runtime) for space in options.spaces for runtime in options.runtimes]
    parts = [f"{row['space']}, {row['runtime']}: tau {row['kendall']:.2f}, {row['median_error']:.1%}" for row in rows]
    record(
        "latency_prediction", headline=f"over {CHECKED} networks each, {'; '.join(parts)}", target_kendall=0.9,
        target_error=0.1, load_before=load, rows=rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
