"""How well does each transferability score rank text encoders by their fine-tuned accuracy?

    OMP_NUM_THREADS=1 python benchmarks/score_agreement_texts.py --work WORK [--seeds 2] [--jobs 2]

The same question as score_agreement.py, whose measure and intervals are used here. Pool: MiniLM cut at 1 to 6 layers,
WordLlama, and a MiniLM of random weights. 300 training texts of 32 tokens at most, fine-tuned as a fit does it (from a
linear probe) for 3 epochs, 1,000 test texts or what there is. A score is chosen on three targets (film reviews, product
reviews, intents) and reported on four others (sections of Debian packages, topics of quotations, tweets, editorials).
Finished trainings are kept in WORK. About half an hour a seed on one core.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from ontarget.values import Array, Context, Examples
from record import record
from score_agreement import draws_of

TRAIN, TEST, LENGTH, EPOCHS, RATE = 300, 1000, 32, 3, 1e-4
CHOSEN_ON = ("movies", "products", "intents")
REPORTED = ("sections", "fortunes", "tweets", "editorials")
RANDOM = "minilm, random"
POOL = (*(f"minilm, {layers} layers" for layers in range(1, 7)), "wordllama", RANDOM)


def texts(name: str) -> tuple[list[str], list[str]]:
    """Texts and their classes."""
    from ontarget.data import samples

    if name == "sections":
        table = samples.package_sections(sections=10)
    elif name == "fortunes":
        table = samples.fortunes(topics=10)
    elif name == "intents":
        table = samples.intents().drop_duplicates("text")
    else:
        table = samples.polarity(name)  # type: ignore[arg-type]
    return table.iloc[:, 0].tolist(), table.iloc[:, 1].tolist()


def target(name: str, seed: int) -> tuple[Examples, Examples]:
    """Training and test rows, drawn by the seed."""
    inputs, classes = texts(name)
    targets = np.unique(classes, return_inverse=True)[1].astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(inputs))
    parts = (order[:TRAIN], order[TRAIN : TRAIN + TEST])
    first, second = (Examples([inputs[int(at)] for at in rows], targets[rows], rows) for rows in parts)
    return first, second


def source(name: str) -> Any:
    """A loaded source of the pool."""
    import torch

    from ontarget.pool import load, resolve

    if name == "wordllama":
        return load(resolve("zoo:wordllama"), max_length=LENGTH)
    loaded = load(resolve("zoo:minilm"), max_length=LENGTH)
    model: Any = loaded.encoder.model
    if name == RANDOM:
        torch.manual_seed(0)
        loaded.encoder.model = type(model)(model.config).eval()
    else:
        model.encoder.layer = model.encoder.layer[: int(name.split()[1])]
    return loaded


def cell(work: Path, name: str, seed: int, of_pool: str) -> Path:
    """One source on one target: features of the training rows, and what the fine-tuned network gets right."""
    import torch

    from ontarget.adapt.predict import predict_scores
    from ontarget.adapt.tune.finetune import finetune
    from ontarget.pool.features import extract

    torch.set_num_threads(1)
    path = work / f"{name} {seed} {of_pool}.npz"
    if not path.exists():
        train, test = target(name, seed)
        loaded = source(of_pool)
        features = extract(loaded, train.inputs)
        tuned = finetune(
            loaded, train, None, outputs=int(max(train.targets.max(), test.targets.max())) + 1, kind="classification",
            metric="accuracy", total_epochs=EPOCHS, batch_size=16, learning_rate=RATE, context=Context(seed=seed),
        )  # fmt: skip
        right = predict_scores(tuned.network, loaded.preprocess, test.inputs).argmax(1) == test.targets
        np.savez(path.with_suffix(".tmp.npz"), features=features, right=right)
        path.with_suffix(".tmp.npz").rename(path)
    return path


def pooled(draws: list[dict[str, Array]]) -> dict[str, dict[str, float]]:
    """Score -> mean tau over targets and seeds with its interval."""
    found = {}
    for score in draws[0]:
        every = np.mean([taus[score] for taus in draws], axis=0)
        low, high = np.quantile(every[1:], [0.025, 0.975])
        found[score] = {"tau": float(every[0]), "low": float(low), "high": float(high)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    targets = [(seed, name) for seed in range(options.seeds) for name in (*CHOSEN_ON, *REPORTED)]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as executor:
        futures = [executor.submit(cell, options.work, name, seed, one) for seed, name in targets for one in POOL]
        for done, future in enumerate(as_completed(futures), 1):
            print(f"{done} of {len(futures)}: {future.result().name}", flush=True)
    rows, draws = [], {}
    for seed, name in targets:
        found: dict[str, tuple[Array, Array]] = {}
        for one in POOL:
            with np.load(cell(options.work, name, seed, one), allow_pickle=False) as arrays:
                found[one] = arrays["features"], arrays["right"]
        labels: Array = np.asarray(target(name, seed)[0].targets)
        draws[seed, name] = draws_of({one: entry for one, entry in found.items() if one != RANDOM}, labels, seed)
        ten = draws_of(found, labels, seed)
        rows.append({
            "seed": seed, "target": name,
            "accuracy": {one: float(right.mean()) for one, (_, right) in found.items()},
            "tau": {score: float(listed[0]) for score, listed in draws[seed, name].items()},
            "tau_with_random": {score: float(listed[0]) for score, listed in ten.items()},
        })  # fmt: skip
        print(rows[-1], flush=True)
    tables = {
        part: pooled([taus for (_, name), taus in draws.items() if name in names])
        for part, names in (("chosen_on", CHOSEN_ON), ("reported", REPORTED))
    }
    best = max((score for score in tables["chosen_on"] if score != "dimension"),
               key=lambda score: tables["chosen_on"][score]["tau"])  # fmt: skip
    said = ", ".join(
        f"{score} {entry['tau']:.2f}"
        for score, entry in sorted(tables["reported"].items(), key=lambda item: -item[1]["tau"])
    )
    record(
        "score_agreement_texts",
        headline=f"chosen on other targets: {best}; weighted Kendall tau on four targets: {said}",
        command="OMP_NUM_THREADS=1 python benchmarks/score_agreement_texts.py --work WORK",
        best_on_others=best, tables=tables, rows=rows, pool=POOL,
    )  # fmt: skip


if __name__ == "__main__":
    main()
