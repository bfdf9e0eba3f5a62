"""Intruder dimensions of LoRA and of full fine-tuning at equal accuracy, and forgetting with and without a repair.

The spec's honest check: all-MiniLM-L6 tuned on the polarity of 2,000 film review snippets, all weights or LoRA of rank
1, 8 and 64 on all linear layers (alpha = 2 r), without weight decay, batches of 16. Every arm trains 5 epochs; of its
states after epochs 2 to 5 those are compared whose accuracies on 500 validation texts lie within a point, half a point
around their middle, with the most epochs in all; where none do, the nearest (choice). The head starts at random; texts
are cut to 24 tokens (choice). Learning rates, with a warm-up and then a cosine (choice): all weights 1e-4 (choice);
LoRA 3e-4 as the official code's, but 2e-3 for rank 1. On the development seed 100, with a head from a linear probe,
rank 1 at 3e-4 stayed at 0.778, two points below all weights, and had no intruders; at 2e-3 with a head at random it
reached 0.80, and the counts of intruders on that seed were known when 2e-3 was chosen. Rate and rank change together
here: ranks 8 and 64 are no part of the statement. A grid of three rates on seed 100 (validation accuracy after epoch 5;
all weights 3e-5, 1e-4, 3e-4: 0.782, 0.778, 0.796; rank 1 at 3e-4, 1e-3, 3e-3: 0.768, 0.782, 0.786; rank 8 at the same:
0.788, 0.804, 0.774; rank 64: 0.788, 0.656, 0.492) shows no rate of the statement's two arms that is better by more than
noise.

Over the 36 matrices in the layers: intruders are counted among the 10 first directions of each, 360 in all, below 0.9.
Forgetting is 1 minus Spearman's correlation of the pairwise cosines of 500 editorial snippets before and after tuning.
Repair of rank 1: intruders below 0.9 (choice; below 0.5 there may be none) scaled by 0.75, 0.5, 0.25 or 0; of the
factors that cost at most a point of validation accuracy the one that forgets least on 250 other snippets is taken, or
none where none forgets less.

The pass rule as pairs: more intruders with rank 1 than with all weights; less forgetting with the repair than without.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ontarget.values import Array, Context, Examples

NUMBER = 40
NAME = "intruder_dimensions"
TITLE = "LoRA brings in intruder dimensions"
KIND = "direction"
STATEMENT = (
    "At equal accuracy LoRA of rank 1 has more intruder dimensions than full fine-tuning, and scaling them down takes "
    "forgetting back."
)
DATA = "VADER: film review snippets (2,000 training, 500 validation, 500 test texts), 500 + 250 editorial snippets"
BUDGET = "the same texts and 5 epochs for every arm, stopped at equal validation accuracy"
ARMS = ("rank 1, intruders", "full, intruders", "rank 1 repaired, - forgetting", "rank 1, - forgetting",
        "rank 8, intruders", "rank 64, intruders", "full, - forgetting", "rank 8, - forgetting",
        "rank 64, - forgetting")  # fmt: skip
PAIRS = (("rank 1, intruders", "full, intruders"), ("rank 1 repaired, - forgetting", "rank 1, - forgetting"))
SEEDS = 3
MEASURE = "score"

TUNINGS = {"full": (0, 1e-4), "rank 1": (1, 2e-3), "rank 8": (8, 3e-4), "rank 64": (64, 3e-4)}  # rank, rate
TRAIN, VALIDATION, TEST, PROXY, CHOOSING = 2000, 500, 500, 500, 250
LENGTH, EPOCHS, FIRST_EPOCH, BATCH = 24, 5, 2, 16
EPSILONS, REPAIR_EPSILON = (0.5, 0.6, 0.7, 0.8, 0.9), 0.9
FACTORS = (0.75, 0.5, 0.25, 0.0)
EQUAL = COST = 0.01  # width of equal accuracies; accuracy that a repair may cost

State = dict[str, torch.Tensor]


def films(seed: int) -> list[Examples]:
    """Training, validation, test."""
    from ontarget.data.samples import polarity

    table = polarity("movies")
    targets = (table["label"] == "positive").to_numpy().astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(table))[: TRAIN + VALIDATION + TEST]
    texts = table["text"].tolist()
    return [Examples([texts[int(at)] for at in rows], targets[rows], rows)
            for rows in np.split(order, [TRAIN, TRAIN + VALIDATION])]  # fmt: skip


def editorials(seed: int) -> tuple[list[str], list[str]]:
    """Snippets that forgetting is measured on, and others that a repair is chosen on."""
    from ontarget.data.samples import vader

    table = vader("editorials").drop_duplicates("text")
    texts = [text for text in table["text"] if text]
    drawn = np.random.default_rng([seed, 1]).permutation(len(texts))[: PROXY + CHOOSING]
    return [texts[int(at)] for at in drawn[:PROXY]], [texts[int(at)] for at in drawn[PROXY:]]


def tuned(name: str, rows: Sequence[Examples], context: Context) -> dict[int, tuple[float, State]]:
    """Validation accuracy and the network's state after each epoch from FIRST_EPOCH on."""
    from ontarget.adapt.tune.finetune import finetune
    from ontarget.pool import load, resolve

    rank, rate = TUNINGS[name]
    found, checkpoint = {}, None
    for epoch in range(FIRST_EPOCH, EPOCHS + 1):
        done = finetune(
            load(resolve("zoo:minilm"), max_length=LENGTH), rows[0], None, outputs=2, kind="classification",
            metric="accuracy", mode="lora" if rank else "full", lora_rank=rank or 1, total_epochs=EPOCHS,
            stop_epoch=epoch, learning_rate=rate, probe=False, weight_decay=0.0, batch_size=BATCH,
            early_stopping=False, resume_from=checkpoint, context=context,
        )  # fmt: skip
        checkpoint = done.checkpoint
        state = {key: value.clone() for key, value in done.network.state_dict().items()}
        found[epoch] = (accuracy(done.network, rows[1]), state)
    return found


def accuracy(network: Any, examples: Examples) -> float:
    from ontarget.adapt.predict import predict_scores
    from ontarget.pool import load, resolve

    preprocess = load(resolve("zoo:minilm"), max_length=LENGTH).preprocess
    return float((predict_scores(network, preprocess, examples.inputs).argmax(1) == examples.targets).mean())


def equal_epochs(accuracies: Mapping[str, Mapping[int, float]]) -> dict[str, int]:
    """An epoch for each arm: accuracies within EQUAL of another and the most epochs, else the least apart."""
    best: tuple[tuple[float, int], dict[str, int]] | None = None
    for epochs in itertools.product(*accuracies.values()):
        values = [one[epoch] for one, epoch in zip(accuracies.values(), epochs, strict=True)]
        apart = max(values) - min(values)
        rank = (max(0.0, round(apart - EQUAL, 9)), -sum(epochs))
        if best is None or rank < best[0]:
            best = rank, dict(zip(accuracies, epochs, strict=True))
    assert best is not None
    return best[1]


def cosines(network: Any, texts: Sequence[str]) -> Array:
    """Of all pairs of texts, from the encoder's features."""
    from ontarget.adapt.predict import predict_scores
    from ontarget.pool import load, resolve

    preprocess = load(resolve("zoo:minilm"), max_length=LENGTH).preprocess
    features = predict_scores(network.encoder, preprocess, texts)
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    pairs: Array = (features @ features.T)[np.triu_indices(len(features), 1)]
    return pairs


def forgetting(network: Any, before: Array, texts: Sequence[str]) -> float:
    from scipy.stats import spearmanr

    return 1 - float(spearmanr(before, cosines(network, texts)).statistic)


def directions_of(base: State, state: State) -> dict[str, Any]:
    """Directions of every matrix in the encoder's layers."""
    from ontarget.judge.intruder_dimensions import intruder_dimensions
    from ontarget.merge.layer_names import layer_of

    return {
        name: intruder_dimensions(start.numpy(), state[name].numpy())
        for name, start in base.items()
        if start.ndim == 2 and layer_of(name) is not None
    }


def repaired(state: State, directions: Mapping[str, Any], factor: float) -> State:
    from ontarget.judge.intruder_dimensions import scaled_down

    mended = {
        name: torch.from_numpy(scaled_down(state[name].numpy(), found, factor, epsilon=REPAIR_EPSILON))
        for name, found in directions.items()
    }
    return {**state, **mended}


def run(seed: int, context: Context) -> dict[str, dict[str, Any]]:
    """Intruders and forgetting of every arm, and of the repair."""
    from ontarget.adapt.tune.finetune import build
    from ontarget.judge.intruder_dimensions import counts
    from ontarget.pool import load, resolve

    rows = films(seed)
    texts, choosing = editorials(seed)
    network: Any = build(load(resolve("zoo:minilm"), max_length=LENGTH), rows[0], outputs=2, kind="classification",
                         mode="full", probe=False)  # fmt: skip
    base = {key: value.clone() for key, value in network.state_dict().items()}
    before, before_choosing = cosines(network, texts), cosines(network, choosing)

    states = {name: tuned(name, rows, context) for name in TUNINGS}
    accuracies = {name: {epoch: value for epoch, (value, _) in found.items()} for name, found in states.items()}
    epochs = equal_epochs(accuracies)
    results: dict[str, dict[str, Any]] = {}
    for name, epoch in epochs.items():
        state = states[name][epoch][1]
        directions = directions_of(base, state)
        nearest = [found.nearest for found in directions.values()]
        by_epsilon = dict(zip(EPSILONS, counts(nearest, EPSILONS), strict=True))
        results[f"{name}, intruders"] = {
            MEASURE: by_epsilon[REPAIR_EPSILON], "by_epsilon": by_epsilon, "epoch": epoch,
            "validation": accuracies[name], "matrices": len(nearest),
            "mean_smallest": float(np.mean([row.min() for row in nearest])),
            "last_epoch": counts([found.nearest for found in directions_of(base, states[name][EPOCHS][1]).values()],
                                 EPSILONS),
        }  # fmt: skip
        network.load_state_dict(state)
        results[f"{name}, - forgetting"] = {
            MEASURE: -forgetting(network, before, texts), "test": accuracy(network, rows[2]),
        }  # fmt: skip

    state = states["rank 1"][epochs["rank 1"]][1]
    directions = directions_of(base, state)
    curve = []
    for factor in (1.0, *FACTORS):
        network.load_state_dict(repaired(state, directions, factor))
        curve.append({"factor": factor, "validation": accuracy(network, rows[1]),
                      "chosen_on": forgetting(network, before_choosing, choosing)})  # fmt: skip
        curve[-1] |= {"forgetting": forgetting(network, before, texts), "test": accuracy(network, rows[2])}
    allowed = [row for row in curve if row["validation"] >= curve[0]["validation"] - COST]
    taken = min(allowed, key=lambda row: row["chosen_on"])  # factor 1 is the first and wins ties
    results["rank 1 repaired, - forgetting"] = {MEASURE: -taken["forgetting"], "taken": taken, "curve": curve}
    return results
