"""Rank sources by scores on their features, each with an interval; say where two are too close to call.

Left out: loading sources and extracting features (ontarget.pool), ensembles of sources.
Checked in tests/select/test_ranking.py; what all scores cost is measured by benchmarks/score_cost.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ontarget.errors import DataError, SettingError, nearest
from ontarget.select._contract import RowScores, check_features, check_targets
from ontarget.select._symmetric import blas_threads
from ontarget.select.h_score import h_score_rows
from ontarget.select.intervals import bootstrap_counts, difference_interval, interval
from ontarget.select.linear_probe import linear_probe_rows
from ontarget.select.logme import logme_rows
from ontarget.select.nearest_neighbours import nearest_neighbours_rows
from ontarget.select.nleep import nleep_rows
from ontarget.select.parc import parc_rows
from ontarget.select.tmi import find_neighbours, tmi_rows, tmi_scaled_rows
from ontarget.select.transrate import transrate_rows
from ontarget.values import Array, Context, Ranked, Ranking, Score

SCORES = ("linear_probe", "logme", "h_score", "knn", "tmi", "tmi_scaled", "parc", "transrate")
ON_REQUEST = ("nleep",)  # a mixture is fitted for it, which takes seconds for each source
# Of those that were measured the one that ranks sources best by their fine-tuned accuracy, on other targets than those
# that it is reported on: benchmarks/score_agreement.py, score_agreement_texts.py. Regression: not measured (choice).
DECIDES = {"classification": "parc", "regression": "linear_probe"}
CLASSIFICATION_ONLY = ("h_score", "tmi", "tmi_scaled", "parc", "transrate", "nleep")
NEIGHBOURS = 3  # of TMI
MAX_ROWS = 2000  # more rows narrow the intervals, but cost more than the features they rank (choice)


def rank_features(
    features: Mapping[str, Array],
    targets: Array,
    *,
    kind: Literal["classification", "regression"] = "classification",
    scores: Sequence[str] = SCORES,
    decided_by: str | None = None,
    features_s: Mapping[str, float] | None = None,
    max_rows: int = MAX_ROWS,
    context: Context = Context(),
) -> Ranking:
    """Sources from best to worst by ``decided_by``; `DECIDES` of the kind by default.

    features: source -> (N, D) float, D may differ; the same N rows in the same order. targets: (N,) int class
    indices, or (N,) float. scores: which of `SCORES` and `ON_REQUEST`; those that do not apply (most to regression, tmi
    to classes of 3 rows or fewer) are left out with a note. features_s: source -> seconds that its features took.
    max_rows: rows that are scored, stratified, the same for every source.
    ``too_close``: the interval of the difference from the best source, paired by rows, contains 0. ``h_score`` is the
    one with shrinkage; ``logme`` the paper's equation, which differs from the published code where N < D.
    After ``context.deadline`` only the deciding score is computed for what is left.
    Raises DataError (with the source's name): NaN features, row counts that differ, a single class; SettingError: an
    unknown score, or a deciding score that does not apply.
    """
    if not features:
        raise DataError("There is no source to rank.", allowed="one source or more", option="features")
    decided_by = decided_by or DECIDES[kind]
    wanted = _wanted(scores, decided_by)
    targets = check_targets(targets, len(np.asarray(targets)), kind)
    if kind == "classification":
        targets = np.unique(targets, return_inverse=True)[1].astype(np.int64)
    for source, array in features.items():
        if len(array) != len(targets):
            raise DataError(f"{source}: features have {len(array)} rows, targets {len(targets)}.")
    rows = _sample(targets, kind, max_rows, context.seed)
    notes: list[str] = []
    if len(rows) < len(targets):
        notes.append(f"scored on {len(rows)} of {len(targets)} rows")
        targets = targets[rows]
    names, left_out = _applicable(wanted, targets, kind)
    notes += left_out
    if decided_by not in names:
        raise SettingError(
            f"'{decided_by}' cannot decide here: {left_out[0] if left_out else 'it does not apply'}.",
            allowed=", ".join(names),
            option="decided_by",
        )

    counts = bootstrap_counts(len(rows), seed=context.seed)
    deciding: dict[str, RowScores] = {}
    found: dict[str, dict[str, Score]] = {source: {} for source in features}
    remarks: dict[str, list[str]] = {source: list(notes) for source in features}
    dims: dict[str, int] = {}
    for done, (source, array) in enumerate(features.items()):
        if context.progress:
            context.progress(done, len(features), f"scoring {source}")
        sampled = check_features(np.asarray(array)[rows] if len(rows) < len(array) else array, source)
        dims[source] = sampled.shape[1]
        for name, (score, row_scores) in _score(sampled, targets, kind, names, counts, context).items():
            found[source][name] = score
            remarks[source] += row_scores.notes
            if name == decided_by:
                deciding[source] = row_scores
        if len(found[source]) < len(names):
            remarks[source].append("out of time for: " + ", ".join(name for name in names if name not in found[source]))
    if context.progress:
        context.progress(len(features), len(features), "scored")

    order = sorted(features, key=lambda source: -deciding[source].value)
    best = order[0]
    return Ranking(
        decided_by,
        tuple(
            Ranked(
                source,
                found[source],
                dims[source],
                (features_s or {}).get(source, 0.0),
                source != best and difference_interval(deciding[best], deciding[source], counts)[0] <= 0,
                tuple(remarks[source]),
            )
            for source in order
        ),
    )


def _score(
    features: Array, targets: Array, kind: str, names: Sequence[str], counts: Array, context: Context
) -> dict[str, tuple[Score, RowScores]]:
    """Every named score of one source with its interval; the first one always, the others while time is left."""
    results: dict[str, tuple[Score, RowScores]] = {}
    neighbours: dict[str, Any] = {}
    for name in names:
        if results and context.deadline is not None and time.monotonic() > context.deadline:
            break
        start = time.perf_counter()
        if name in ("tmi", "tmi_scaled") and not neighbours:  # both use the same; the first one pays
            neighbours["found"] = find_neighbours(features, targets, neighbours=NEIGHBOURS)
        functions: dict[str, Callable[[], RowScores]] = {
            "linear_probe": lambda: linear_probe_rows(features, targets, kind=kind, seed=context.seed),  # type: ignore[arg-type]
            "logme": lambda: logme_rows(features, targets, kind=kind),  # type: ignore[arg-type]
            "h_score": lambda: h_score_rows(features, targets),
            "knn": lambda: nearest_neighbours_rows(features, targets, kind=kind),  # type: ignore[arg-type]
            "tmi": lambda: tmi_rows(features, targets, **neighbours),
            "tmi_scaled": lambda: tmi_scaled_rows(features, targets, **neighbours),
            "parc": lambda: parc_rows(features, targets, seed=context.seed),
            "transrate": lambda: transrate_rows(features, targets),
            "nleep": lambda: nleep_rows(features, targets, seed=context.seed),
        }
        with blas_threads():
            rows = functions[name]()
            low, high = interval(rows, counts)
        results[name] = Score(rows.value, low, high, time.perf_counter() - start), rows
    return results


def _wanted(scores: Sequence[str], decided_by: str) -> list[str]:
    """The scores without repeats, the deciding one first."""
    for name in (*scores, decided_by):
        known = (*SCORES, *ON_REQUEST)
        if name not in known:
            raise SettingError(
                f"There is no score '{name}'.",
                allowed=", ".join(known),
                option="decided_by" if name == decided_by else "scores",
                next_step=nearest(name, known),
            )
    return list(dict.fromkeys((decided_by, *scores)))


def _applicable(names: list[str], targets: Array, kind: str) -> tuple[list[str], list[str]]:
    left_out: dict[str, str] = {}
    if kind == "regression":
        left_out = {name: f"{name} is left out: it needs classes" for name in names if name in CLASSIFICATION_ONLY}
    elif (smallest := int(np.bincount(targets).min())) <= NEIGHBOURS:
        reason = f"it needs {NEIGHBOURS + 1} rows a class, the smallest has {smallest}"
        left_out = {name: f"{name} is left out: {reason}" for name in names if name.startswith("tmi")}
    return [name for name in names if name not in left_out], list(left_out.values())


def _sample(targets: Array, kind: str, max_rows: int, seed: int) -> Array:
    """Sorted positions of at most ``max_rows`` rows; classes keep their shares, but a rare one keeps 4 rows."""
    if len(targets) <= max_rows:
        return np.arange(len(targets))
    shuffled = np.random.default_rng(seed).permutation(len(targets))
    if kind == "regression":
        return np.sort(shuffled[:max_rows])
    sizes = np.bincount(targets)
    kept = np.minimum(sizes, NEIGHBOURS + 1)
    if kept.sum() > max_rows:
        raise SettingError(
            f"{len(sizes)} classes do not fit into {max_rows} rows.",
            allowed=f"at least {kept.sum()}",
            option="max_rows",
        )
    ideal = kept + (sizes - kept) * ((max_rows - kept.sum()) / max((sizes - kept).sum(), 1))
    kept = np.floor(ideal).astype(np.int64)
    kept[np.argsort(kept - ideal, kind="stable")[: max_rows - kept.sum()]] += 1
    ordered = shuffled[np.argsort(targets[shuffled], kind="stable")]
    place = np.arange(len(ordered)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(ordered[place < kept[targets[ordered]]])
