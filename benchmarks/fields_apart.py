"""How two texts are related: one sequence of both fields, or each field on its own, under a linear head.

    OMP_NUM_THREADS=1 python benchmarks/fields_apart.py

Quotations of 120 to 400 letters are cut in two. Half of the rows keep the two parts of one quotation, in the others
the second part is another's: do they belong together? 800 rows train, 700 are the test, five draws, MiniLM and
WordLlama. Chance is 0.5. No target: it shows what the source `zoo:minilm@apart` is for.
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from ontarget.adapt.metric import metric_value
from ontarget.adapt.tune.linear_head import linear_head
from ontarget.data import samples
from ontarget.pool import load, resolve
from ontarget.pool.features import extract
from ontarget.values import Array
from record import record

TRAIN, TEST, SEEDS = 800, 700, 5
LOCATORS = ("zoo:minilm", "zoo:minilm@apart", "zoo:wordllama", "zoo:wordllama@apart")


def drawn(seed: int) -> tuple[list[tuple[str, str]], Array]:
    """Pairs of halves and 1 where they belong together."""
    table = samples.fortunes("en")
    table = table[table["text"].str.len().between(120, 400)].sample(TRAIN + TEST, random_state=seed)
    halves = [split(text) for text in table["text"]]
    together = np.arange(len(halves)) % 2 == 0
    others = [halves[(at + 2) % len(halves)][1] for at in range(len(halves))]
    pairs = [
        (first, second if same else other)
        for (first, second), other, same in zip(halves, others, together, strict=True)
    ]
    return pairs, together.astype(np.int64)


def split(text: str) -> tuple[str, str]:
    words = text.split()
    return " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])


def main() -> None:
    rows: list[dict[str, Any]] = []
    for locator in LOCATORS:
        loaded = load(resolve(locator))
        for seed in range(SEEDS):
            pairs, targets = drawn(seed)
            features = extract(loaded, pairs)
            head = linear_head(features[:TRAIN], targets[:TRAIN], outputs=2, kind="classification")
            scores = features[TRAIN:] @ head.weight.T + head.bias
            rows.append(
                {"source": locator, "seed": seed, "accuracy": metric_value("accuracy", scores, targets[TRAIN:])}
            )
            print(rows[-1], flush=True)
    medians = {
        locator: statistics.median(row["accuracy"] for row in rows if row["source"] == locator) for locator in LOCATORS
    }
    record(
        "fields_apart",
        headline="do two halves belong together, linear head on 800 rows: "
        + "; ".join(f"{locator} {value:.3f}" for locator, value in medians.items())
        + f" (medians of {SEEDS})",
        medians=medians,
        rows=rows,
    )


if __name__ == "__main__":
    main()
