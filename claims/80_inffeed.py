"""Labels to re-check, chosen by influence, help more than labels chosen at random or by uncertainty.

The spec's honest check: film snippets of the VADER study; gold is the sign of the mean human rating, silver the verdict
of the same package's lexicon rules; logistic head on all-MiniLM-L6. B: 300 gold, 3,000 silver, 500 validation rows;
100 silver labels are corrected. A: 600 gold, 2,000 silver, whose labels are corrected by their influencers; the test
rows are never seen. Gold alone is an arm: noisy silver can hurt.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ontarget.values import Array, Context

NUMBER = 80
NAME = "inffeed"
TITLE = "InfFeed chooses labels to re-check"
KIND = "direction"
STATEMENT = (
    "Macro-F1 is higher after 100 silver labels chosen by influence are corrected than after 100 chosen at random or "
    "by uncertainty; and relabelling by influencers (A) does not lower it."
)
DATA = "film snippets of the VADER study: 300 or 600 gold, 3,000 or 2,000 silver, 500 validation, the rest test rows"
BUDGET = "100 corrected labels; the same head, rows and penalties for every arm"
ARMS = (
    "influence", "random", "uncertainty", "loss", "uncorrected", "all gold", "gold only", "A: relabelled",
    "A: silver as it is", "A: gold only",
)  # fmt: skip
PAIRS = (("influence", "random"), ("influence", "uncertainty"), ("A: relabelled", "A: silver as it is"))
SEEDS = 5
MEASURE = "macro_f1"

CORRECTED, VALIDATION = 100, 500


@lru_cache(maxsize=1)
def data() -> tuple[Array, Array, Array]:
    """(features (N, 384), gold (N,), silver (N,)) of all snippets whose mean rating is not 0."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    from ontarget.data import samples
    from ontarget.pool import load, resolve
    from ontarget.pool.features import cached_features

    table = samples.vader("movies").drop_duplicates("text")
    table = table[(table["sentiment"] != 0) & (table["text"].str.strip() != "")]
    texts = table["text"].tolist()
    rules = SentimentIntensityAnalyzer()
    silver = np.array([rules.polarity_scores(text)["compound"] > 0 for text in texts]).astype(np.int64)
    source = resolve("zoo:minilm")
    features, _, _ = cached_features(source, load(source), texts)
    return np.asarray(features, dtype=np.float64), (table["sentiment"] > 0).to_numpy().astype(np.int64), silver


def score(features: Array, labels: Array, test: Array, truth: Array) -> float:
    from ontarget.adapt.metric import metric_value
    from ontarget.adapt.tune.linear_head import linear_head

    head = linear_head(features, labels, outputs=2, kind="classification", class_weight=None)
    return metric_value(MEASURE, test @ head.weight.T + head.bias, truth)


def run(seed: int, context: Context) -> dict[str, dict[str, Any]]:
    from ontarget.select.inffeed import fit_head, harm, inffeed

    features, gold, silver = data()
    order = np.random.default_rng(seed).permutation(len(gold))
    results: dict[str, dict[str, Any]] = {}

    # B: which 100 of 3,000 silver labels should a person correct?
    base, extension, validation, test = np.split(order, np.cumsum([300, 3000, VALIDATION]))
    rows = np.concatenate([base, extension])
    labels = np.concatenate([gold[base], silver[extension]])
    held, truth = features[test], gold[test]
    head = fit_head(features[rows], labels)
    logits = features[rows] @ head.weight[:, :-1].T + head.weight[:, -1]
    gaps = np.abs(logits[:, 1] - logits[:, 0])
    losses = np.log1p(np.exp(-(2 * labels - 1) * (logits[:, 1] - logits[:, 0])))
    silver_places = np.arange(len(base), len(rows))
    keys = {
        "influence": harm(features[rows], labels, features[validation], gold[validation], l2=head.l2),
        "random": np.random.default_rng(seed + 1000).random(len(rows)),
        "uncertainty": -gaps,
        "loss": losses,
    }
    for arm, key in keys.items():
        chosen = silver_places[np.argsort(-key[silver_places], kind="stable")[:CORRECTED]]
        corrected = labels.copy()
        corrected[chosen] = gold[rows[chosen]]
        results[arm] = {
            MEASURE: score(features[rows], corrected, held, truth),
            "share truly wrong": float((labels[chosen] != gold[rows[chosen]]).mean()),
        }
    results["uncorrected"] = {MEASURE: score(features[rows], labels, held, truth)}
    results["all gold"] = {MEASURE: score(features[rows], gold[rows], held, truth)}
    results["gold only"] = {MEASURE: score(features[base], gold[base], held, truth)}

    # A: silver labels corrected by the votes of their influencers.
    base, feedback, test = np.split(order, np.cumsum([600, 2000]))
    held, truth = features[test], gold[test]
    found = inffeed(features[base], gold[base], features[feedback], silver[feedback])
    both = features[np.concatenate([base, feedback])]
    results["A: relabelled"] = {
        MEASURE: score(both, np.concatenate([gold[base], found.labels]), held, truth),
        "label accuracy": float((found.labels == gold[feedback]).mean()), "changed": len(found.changed),
        "changed by class": [int((silver[feedback][found.changed] == label).sum()) for label in (0, 1)],
        "rounds": found.rounds,
    }  # fmt: skip
    results["A: silver as it is"] = {
        MEASURE: score(both, np.concatenate([gold[base], silver[feedback]]), held, truth),
        "label accuracy": float((silver[feedback] == gold[feedback]).mean()),
    }
    results["A: gold only"] = {MEASURE: score(features[base], gold[base], held, truth)}
    return results
