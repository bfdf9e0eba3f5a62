"""The deployed forms of MiniLM with a head against PyTorch eager with the same weights: one row a call.

    python benchmarks/bundle_latency.py

Target: the kept form at most a third of eager's p50, cosine of outputs at least 0.99, no significant loss. Real rows
(vaderSentiment's product reviews), preprocessing included on both sides, alternating rounds, five draws of rows.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import numpy as np

from ontarget.adapt.tune.assembled import Assembled
from ontarget.adapt.tune.linear_head import linear_head
from ontarget.compress.choose import choose
from ontarget.data.samples import vader
from ontarget.pool import load, resolve
from ontarget.pool.features import extract
from ontarget.task import Limits
from ontarget.values import Context, Examples
from record import record

SEEDS, TRAIN, HELD = 5, 600, 600
THREADS = 2


def main() -> None:
    table = vader("products")
    texts, labels = table["text"].tolist(), (table["sentiment"] > 0).to_numpy().astype(np.int64)
    loaded = load(resolve("zoo:minilm"))
    rows = []
    for seed in range(SEEDS):
        order = np.random.default_rng(seed).permutation(len(texts))[: TRAIN + HELD]
        examples = [Examples([texts[at] for at in part], labels[part], part) for part in (order[:TRAIN], order[TRAIN:])]
        head = linear_head(
            extract(loaded, examples[0].inputs), examples[0].targets, outputs=2, kind="classification"
        ).module()
        with tempfile.TemporaryDirectory() as folder:
            variants = choose(
                Assembled(loaded.encoder, head).eval(), loaded.preprocess, *examples, metric="accuracy",
                kind="classification", limits=Limits(), batch_size=1, threads=THREADS, folder=Path(folder),
                context=Context(seed=seed),
            )  # fmt: skip
        eager = next(variant for variant in variants if variant.form == "pytorch")
        for variant in variants:
            a, b = eager.validation_scores.ravel(), variant.validation_scores.ravel()
            rows.append(
                {
                    "seed": seed,
                    "form": variant.form,
                    "kept": variant.kept,
                    "reason": variant.reason,
                    "p50_ms": variant.measurement.latency_p50_ms,
                    "p95_ms": variant.measurement.latency_p95_ms,
                    "size_mb": variant.measurement.size_mb,
                    "memory_mb": variant.measurement.memory_mb,
                    "accuracy": variant.validation_metric,
                    "speed_up": eager.measurement.latency_p50_ms / variant.measurement.latency_p50_ms,
                    "cosine": float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))),
                }
            )
            print(rows[-1], flush=True)
    kept = [row for row in rows if row["kept"]]
    speed_up = statistics.median(row["speed_up"] for row in kept)
    p50_ms, cosine = statistics.median(row["p50_ms"] for row in kept), min(row["cosine"] for row in kept)
    headline = (
        f"kept form {statistics.mode(row['form'] for row in kept)}: {speed_up:.2f}x PyTorch eager "
        f"(median of {len(kept)}), p50 {p50_ms:.2f} ms, cosine at least {cosine:.4f}"
    )
    record("bundle_latency", headline=headline, rows=rows, threads=THREADS)


if __name__ == "__main__":
    main()
