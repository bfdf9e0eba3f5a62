"""Few labels and 1,000 unlabelled texts: what does self-training add to a linear head?

    OMP_NUM_THREADS=1 python benchmarks/self_training.py

MiniLM's features, 4, 8 and 32 labels a class, 1,000 other rows without labels, 1,000 as test; five draws. Development
sets, none of which any other benchmark scores: package descriptions of the 11th to 20th largest sections, product
reviews (VADER), quotations of the ten largest topics. They decided the weight of a guess (0.1; 0.3 and 1.0 stand
beside it).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ontarget.values import Array
from record import record

LABELS, ROWS, SEEDS, WEIGHTS = (4, 8, 32), 1000, 5, (0.1, 0.3, 1.0)


def sets() -> dict[str, tuple[list[str], Array]]:
    from ontarget.data import samples

    sections = samples.package_sections()
    names = sorted(sections["section"].value_counts().index[10:20])
    sections = sections[sections["section"].isin(names)].sample(3000, random_state=1)
    products = samples.vader("products").drop_duplicates("text")
    products = products[products["sentiment"].abs() >= 0.5].head(3000)
    quotations = samples.fortunes()
    topics = sorted(quotations["topic"].value_counts().index[:10])
    quotations = quotations[quotations["topic"].isin(topics)].sample(3000, random_state=1)
    return {
        "sections2": (sections["text"].tolist(), np.array([names.index(name) for name in sections["section"]])),
        "products": (products["text"].tolist(), (products["sentiment"] > 0).to_numpy().astype(np.int64)),
        "fortunes": (quotations["text"].tolist(), np.array([topics.index(name) for name in quotations["topic"]])),
    }


def main() -> None:
    from ontarget.adapt.shift.self_training import self_training
    from ontarget.adapt.tune.linear_head import linear_head
    from ontarget.pool import load, resolve
    from ontarget.pool.features import cached_features

    source = resolve("zoo:minilm")
    rows: list[dict[str, Any]] = []
    for name, (texts, targets) in sets().items():
        features = np.asarray(cached_features(source, load(source), texts)[0], dtype=np.float64)
        classes = int(targets.max()) + 1
        for labels in LABELS:
            for seed in range(SEEDS):
                order = np.random.default_rng(seed).permutation(len(targets))
                few = np.concatenate([order[targets[order] == label][:labels] for label in range(classes)])
                rest = order[~np.isin(order, few)]
                unlabelled, test = rest[:ROWS], rest[ROWS : 2 * ROWS]

                def accuracy(head: Any, test: Array = test) -> float:
                    scores = features[test] @ head.weight.T + head.bias  # noqa: B023
                    return float((scores.argmax(axis=1) == targets[test]).mean())  # noqa: B023

                plain = linear_head(features[few], targets[few], outputs=classes, kind="classification")
                found: dict[str, Any] = {"set": name, "labels": labels, "seed": seed, "head": accuracy(plain)}
                for weight in WEIGHTS:
                    head = self_training(
                        features[few], targets[few], features[unlabelled], outputs=classes, weight=weight
                    )
                    found[f"weight {weight}"] = accuracy(head)
                rows.append(found)
            print(name, labels, _means(rows, name, labels), flush=True)
    said = []
    for labels in LABELS:
        gains = {name: _means(rows, name, labels) for name in dict.fromkeys(row["set"] for row in rows)}
        said.append(
            f"{labels} labels a class: "
            + ", ".join(f"{name} {mean['head']:.3f} to {mean['weight 0.1']:.3f}" for name, mean in gains.items())
        )
    record("self_training", headline="accuracy, head alone to self-trained: " + "; ".join(said), rows=rows)


def _means(rows: list[dict[str, Any]], name: str, labels: int) -> dict[str, float]:
    chosen = [row for row in rows if row["set"] == name and row["labels"] == labels]
    return {arm: float(np.mean([row[arm] for row in chosen])) for arm in ("head", *(f"weight {w}" for w in WEIGHTS))}


if __name__ == "__main__":
    main()
