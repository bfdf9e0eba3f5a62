"""Our side of the few-label comparison with SetFit: 8 labels a class, MiniLM, the same splits, one thread.

    python benchmarks/few_labels_data.py --set movies sections --seeds 0 1 2 3 4 --out DATA
    OMP_NUM_THREADS=1 python benchmarks/few_labels.py --data DATA

Targets: median accuracy at least SetFit's (benchmarks/results/setfit_peer.json) in at most a tenth of its
CPU-seconds. Arms: a linear head on frozen features; contrastive tuning without and with the names of the classes.
SetFit's defaults do not see the names, so the arm without them is the like-for-like one. CPU-seconds are those of
the training call, features of the training rows included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ontarget.adapt.metric import metric_value
from ontarget.adapt.predict import predict_scores
from ontarget.adapt.tune.assembled import Assembled
from ontarget.adapt.tune.contrastive import contrastive
from ontarget.adapt.tune.linear_head import linear_head
from ontarget.pool import load, resolve
from ontarget.pool.features import extract
from ontarget.values import Context, Examples
from record import RESULTS, record

ARMS = ("linear head", "contrastive", "contrastive with class names")


def trained(arm: str, train: Examples, classes: list[str], seed: int) -> tuple[torch.nn.Module, Any, float]:
    """(network, preprocessing, CPU-seconds of training)."""
    loaded = load(resolve("zoo:minilm"))
    context = Context(seed=seed)
    start = time.process_time()
    if arm == "linear head":
        features = extract(loaded, train.inputs)
        head = linear_head(features, train.targets, outputs=len(classes), kind="classification").module()
        network: torch.nn.Module = Assembled(loaded.encoder, head)
    else:
        names = classes if arm.endswith("names") else ()
        network = contrastive(loaded, train, outputs=len(classes), class_names=names, context=context).network
    return network, loaded.preprocess, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    folder = parser.parse_args().data
    torch.set_num_threads(1)
    rows = []
    for path in sorted(folder.glob("*/seed-*")):
        train_table, test_table = (pd.read_csv(path / f"{name}.csv") for name in ("train", "test"))
        classes = sorted(train_table["label"].unique())
        numbers = {name: number for number, name in enumerate(classes)}
        train, test = (
            Examples(table["text"].tolist(), table["label"].map(numbers).to_numpy(np.int64), np.arange(len(table)))
            for table in (train_table, test_table)
        )
        seed = int(path.name.removeprefix("seed-"))
        for arm in ARMS:
            network, preprocess, cpu_s = trained(arm, train, classes, seed)
            scores = predict_scores(network, preprocess, test.inputs)
            accuracy = metric_value("accuracy", scores, test.targets)
            rows.append({"set": path.parent.name, "seed": seed, "arm": arm, "accuracy": accuracy, "cpu_s": cpu_s})
            print(rows[-1], flush=True)
    peer = json.loads((RESULTS / "setfit_peer.json").read_text())["medians"]
    medians: dict[str, Any] = {}
    parts = []
    for name in sorted({row["set"] for row in rows}):
        theirs = peer[name]
        parts.append(
            f"{name}: SetFit {theirs['accuracy']:.3f} in {theirs['cpu_s_train']:.0f} CPU-s ({theirs['seeds']} seeds)"
        )
        for arm in ARMS:
            chosen = [row for row in rows if row["set"] == name and row["arm"] == arm]
            accuracy, cpu_s = (statistics.median(row[key] for row in chosen) for key in ("accuracy", "cpu_s"))
            medians[f"{name}, {arm}"] = {"accuracy": accuracy, "cpu_s": cpu_s, "seeds": len(chosen)}
            parts.append(f"{arm} {accuracy:.3f} in {cpu_s:.1f}")
    record(
        "few_labels",
        headline="; ".join(parts),
        command="OMP_NUM_THREADS=1 python benchmarks/few_labels.py --data DATA",
        medians=medians,
        setfit=peer,
        rows=rows,
    )


if __name__ == "__main__":
    main()
