"""InstaTune's slices of MiniLM against slices of the ordinarily fine-tuned model, at equal steps and at equal compute.

The spec's honest check, scaled down: sections of Debian packages by their one-line descriptions, the ten largest, 1,500
training texts, 500 validation and 1,000 test texts, 32 tokens; depth {4, 5, 6}, heads {6, 8, 10, 12}, neurons {768,
1152, 1536}; 2 epochs. 40 common sub-networks, drawn by the seed, and the full one are scored on the test texts. The
measure is the hypervolume of test accuracy and share of the full model's multiply-accumulates, up to (0, 1); the slice
under 70% is chosen on validation texts. The ordinarily tuned model gets the same steps, and, in an arm of its own,
twice the epochs: a step of InstaTune costs about twice as much. Heads and neurons are sliced in the given order in all
arms.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ontarget.values import Array, Context, Examples

NUMBER = 30
NAME = "instatune"
TITLE = "InstaTune on MiniLM"
KIND = "direction"
STATEMENT = (
    "The slices of a MiniLM tuned by InstaTune (gamma 0) span a larger hypervolume of accuracy and compute than those "
    "of the ordinarily fine-tuned model, at equal steps and at equal compute."
)
DATA = "Debian package descriptions in ten sections: 1,500 training, 500 validation, 1,000 test texts"
BUDGET = "equal optimizer steps; and equal compute, with twice the epochs for ordinary fine-tuning"
ARMS = ("gamma 0", "ordinary", "ordinary, equal compute", "gamma 1")
PAIRS = (("gamma 0", "ordinary"), ("gamma 0", "ordinary, equal compute"))
SEEDS = 3
MEASURE = "hypervolume"

TRAIN, VALIDATION, TEST = 1500, 500, 1000
LENGTH, EPOCHS, BATCH, RATE, NETWORKS = 32, 2, 32, 1e-4, 40
SIZES: dict[str, Any] = {"layers": (4, 5, 6), "heads": (6, 8, 10, 12), "hidden": (768, 1152, 1536)}


@lru_cache(maxsize=1)
def texts() -> tuple[list[str], Array, int]:
    """Texts, labels, classes."""
    from ontarget.data.samples import package_sections

    table = package_sections().drop_duplicates("text")
    largest = table["section"].value_counts().index[:10]
    table = table[table["section"].isin(largest)]
    return table["text"].tolist(), np.unique(table["section"], return_inverse=True)[1], 10


def splits(seed: int) -> dict[str, Examples]:
    whole, labels, _ = texts()
    order = np.random.default_rng(seed).permutation(len(labels))

    def rows(positions: Array) -> Examples:
        return Examples([whole[int(at)] for at in positions], labels[positions], positions)

    ends = np.cumsum([TRAIN, VALIDATION, TEST])
    return dict(zip(("train", "validation", "test"), map(rows, np.split(order[: ends[-1]], ends[:-1])), strict=True))


def fresh() -> tuple[Any, Any]:
    """A super-network around the pretrained MiniLM, and its preprocessing."""
    from ontarget.pool import load, resolve
    from ontarget.search.elastic_bert import ElasticBert, from_bert

    loaded = load(resolve("zoo:minilm"), max_length=LENGTH)
    network, config = from_bert(loaded.encoder.model, outputs=texts()[2])
    return ElasticBert(network, config, **SIZES, length=LENGTH), loaded.preprocess


def ordinary(space: Any, rows: Any, epochs: int, seed: int) -> None:
    """Fine-tuning of the full network: the same optimizer and schedule, cross-entropy alone."""
    from ontarget.search.instatune import linear_schedule, make_optimizer
    from ontarget.search.rows import batches

    torch.manual_seed(seed)
    space.train()
    optimizer = make_optimizer(space.network, RATE, 10.0, 0.01)
    total = epochs * -(-len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, linear_schedule(total, 0.1))
    for epoch in range(epochs):
        for ids, mask, labels in batches(rows, BATCH, seed=seed, epoch=epoch):
            loss = torch.nn.functional.cross_entropy(space(ids, mask, space.largest), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(space.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    space.eval()


def accuracy(space: Any, code: Any, rows: Any) -> float:
    from ontarget.search.text_slices import token_scores

    targets = rows.targets.numpy()
    return float((token_scores(space.slice(code), rows).argmax(1) == targets).mean())


def run(seed: int, context: Context) -> dict[str, dict[str, Any]]:
    """Hypervolumes, with every slice's accuracy and share of compute."""
    from ontarget.search.example_rows import ExampleRows
    from ontarget.search.genetic import hypervolume
    from ontarget.search.instatune import instatune
    from ontarget.search.space import draw

    parts = splits(seed)
    space, preprocess = fresh()
    train, validation, test = (ExampleRows(preprocess, parts[name]) for name in ("train", "validation", "test"))
    generator = np.random.default_rng(seed)
    codes = list(dict.fromkeys([space.largest, *(draw(space, generator) for _ in range(NETWORKS))]))
    shares = [space.macs(code) / space.macs(space.largest) for code in codes]
    results: dict[str, dict[str, Any]] = {}
    teacher: Any = None
    for arm in ("ordinary", "ordinary, equal compute", "gamma 0", "gamma 1"):
        start = time.process_time()
        space, _ = fresh()
        if arm.startswith("ordinary"):
            ordinary(space, train, EPOCHS * (1 if arm == "ordinary" else 2), seed)
            if arm == "ordinary":
                teacher = space.slice(space.largest).eval()
        else:
            instatune(
                space, train, teacher=teacher, gamma=float(arm[-1]), epochs=EPOCHS, batch_size=BATCH,
                learning_rate=RATE, context=Context(seed=seed),
            )  # fmt: skip
        spent = time.process_time() - start
        found = [accuracy(space, code, test) for code in codes]
        cheap = [at for at, share in enumerate(shares) if share < 0.7]
        best = max(cheap, key=lambda at: accuracy(space, codes[at], validation))
        results[arm] = {
            MEASURE: hypervolume(np.array([[1 - a, share] for a, share in zip(found, shares, strict=True)]),
                                 np.array([1.0, 1.0])),
            "full": found[0], "best_under_70_percent": found[best], "accuracies": found, "training_cpu_s": spent,
        }  # fmt: skip
    results["gamma 0"] |= {"codes": codes, "shares_of_macs": shares}
    for arm in ("gamma 0", "gamma 1"):
        results[arm]["loss_under_70_percent"] = results["ordinary"]["full"] - results[arm]["best_under_70_percent"]
    return results
