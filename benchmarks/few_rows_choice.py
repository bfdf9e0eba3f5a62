"""Choosing by few validation rows: which epoch, which recipe, and by what?

    python benchmarks/few_rows_choice.py --work WORK

MiniLM is fine-tuned on 850 rows with nine recipes (the two defaults, then seven drawn from the search space) for six
epochs each; every epoch scores 1,600 further rows. Then 200 times: 150 of these are drawn as validation rows, a rule
chooses by them, and the choice is judged on the others. Development sets, none of which any other benchmark scores:
package descriptions of the 11th to 20th largest sections, product reviews (VADER). Some 45 minutes a set on one
thread; recipes that are in WORK already are not trained again.

The rule of `plan/decision.py` (last epoch, least surprise among those that accuracy cannot tell apart) is compared
with the highest accuracy over all recipes and epochs, and over the last epochs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ontarget.adapt.tune.tfidf_blend import blend_weights, blended
from ontarget.plan.decision import alike, surprise
from ontarget.values import Array, Context, Examples
from record import record

SETS = ("sections2", "products")
TRAIN, HELD, VALIDATION, DRAWS, EPOCHS = 850, 1600, 150, 200, 6
RATES = {"full": 3e-5, "lora": 5e-4}


def rows_of(name: str) -> tuple[list[str], Array]:
    from ontarget.data import samples

    if name == "sections2":
        table = samples.package_sections()
        names = sorted(table["section"].value_counts().index[10:20])
        table = table[table["section"].isin(names)]
        return table["text"].tolist(), np.array([names.index(section) for section in table["section"]])
    table = samples.vader("products")
    table = table[table["sentiment"].abs() >= 0.5]
    return table["text"].tolist(), (table["sentiment"] > 0).to_numpy().astype(np.int64)


def recipes() -> Iterator[dict[str, Any]]:
    """The defaults, then draws from the search space of `plan/tuning.py`."""
    for mode, rate in RATES.items():
        yield {
            "mode": mode, "learning_rate": rate, "optimizer": "adamw", "batch_size": 16, "class_weight": "none"
        }  # fmt: skip
    generator = np.random.default_rng(100)
    while True:
        mode = str(generator.choice(["full", "lora"]))
        yield {
            "mode": mode,
            "learning_rate": RATES[mode] * float(np.exp(generator.uniform(np.log(0.2), np.log(5)))),
            "optimizer": str(generator.choice(["adamw", "lion"])),
            "batch_size": int(generator.choice([16, 32])),
            "class_weight": str(generator.choice(["none", "balanced"])),
        }


def collect(name: str, work: Path, count: int) -> dict[str, Array]:
    """Held-out scores: "tfidf" (N, C), "r0".."r8" (epochs, N, C), and "targets" (N,)."""
    from ontarget.adapt.predict import predict_scores
    from ontarget.adapt.tune.finetune import finetune
    from ontarget.adapt.tune.tfidf_linear import tfidf_linear
    from ontarget.pool import load, resolve

    path = work / f"{name}-0.npz"
    found: dict[str, Array] = dict(np.load(path)) if path.exists() else {}
    texts, targets = rows_of(name)
    order = np.random.default_rng(0).permutation(len(targets))

    def examples(rows: Array) -> Examples:
        return Examples([texts[int(row)] for row in rows], targets[rows], rows)

    train, held = examples(order[:TRAIN]), examples(order[TRAIN : TRAIN + HELD])
    shared: dict[str, Any] = {"outputs": int(targets.max()) + 1, "kind": "classification", "metric": "accuracy"}
    if "tfidf" not in found:
        model = tfidf_linear(train.inputs, train.targets, **shared)
        found["targets"], found["tfidf"] = held.targets, predict_scores(model.network, model.preprocess, held.inputs)
    for number, recipe in zip(range(count), recipes(), strict=False):
        if f"r{number}" in found:
            continue
        scores, checkpoint = [], None
        for epoch in range(1, EPOCHS + 1):
            result = finetune(
                load(resolve("zoo:minilm")), train, held, **shared, **recipe, total_epochs=EPOCHS, stop_epoch=epoch,
                early_stopping=False, resume_from=checkpoint, context=Context(seed=0),
            )  # fmt: skip
            checkpoint = result.checkpoint
            scores.append(result.validation_scores)
        found[f"r{number}"] = np.stack(scores)
        np.savez(path, **found)  # type: ignore[arg-type]
        print(name, number, recipe, [round(accuracy(part, held.targets), 3) for part in scores], flush=True)
    return found


def accuracy(scores: Array, targets: Array) -> float:
    return float((scores.argmax(axis=1) == targets).mean())


def simulate(found: dict[str, Array], count: int) -> dict[str, tuple[float, float]]:
    """Rule -> mean and spread, over draws, of the accuracy on the other rows."""
    targets, tfidf = found["targets"], found["tfidf"]
    numbers = range(count)
    last = [found[f"r{number}"][-1] for number in numbers]
    generator = np.random.default_rng(0)
    results: dict[str, list[float]] = {}
    for _ in range(DRAWS):
        order = generator.permutation(len(targets))
        chosen_by, rest = order[:VALIDATION], order[VALIDATION:]

        def seen(scores: Array, rows: Array = chosen_by) -> float:
            return accuracy(scores[rows], targets[rows])

        epochs = [max(found[f"r{number}"], key=seen) for number in numbers]
        highest = max(last, key=seen)
        near = [
            scores for scores in last if alike("accuracy", highest[chosen_by], scores[chosen_by], targets[chosen_by])
        ]
        ruled = min(near, key=lambda scores: surprise("accuracy", scores[chosen_by], targets[chosen_by]))
        choices = {
            "default recipe, best epoch": epochs[0],
            "default recipe, last epoch": last[0],
            "highest accuracy over recipes and epochs": max(epochs, key=seen),
            "highest accuracy over recipes, last epoch": highest,
            "least surprise among those alike, last epoch": ruled,
            "that, blended with TF-IDF": with_tfidf(ruled, tfidf, targets, chosen_by),
            "TF-IDF alone": tfidf,
        }
        for rule, scores in choices.items():
            results.setdefault(rule, []).append(accuracy(scores[rest], targets[rest]))
    return {rule: (float(np.mean(values)), float(np.std(values))) for rule, values in results.items()}


def with_tfidf(scores: Array, tfidf: Array, targets: Array, rows: Array) -> Array:
    weights = blend_weights([scores[rows], tfidf[rows]], targets[rows], kind="classification")
    return blended([scores, tfidf], weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--set", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--recipes", type=int, default=9)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rules = {name: simulate(collect(name, options.work, options.recipes), options.recipes) for name in options.set}
    first, rule = "highest accuracy over recipes and epochs", "least surprise among those alike, last epoch"
    said = [f"{name} {found[first][0]:.3f} to {found[rule][0]:.3f}" for name, found in rules.items()]
    record(
        "few_rows_choice",
        headline=f"test accuracy of what {VALIDATION} rows choose among {options.recipes} recipes, from the highest "
        f"accuracy over recipes and epochs to the least surprise after the last: {', '.join(said)} ({DRAWS} draws)",
        command=f"python benchmarks/few_rows_choice.py --work WORK --recipes {options.recipes}",
        rules={name: {rule: {"mean": mean, "spread": spread} for rule, (mean, spread) in found.items()}
               for name, found in rules.items()},
    )  # fmt: skip


if __name__ == "__main__":
    main()
