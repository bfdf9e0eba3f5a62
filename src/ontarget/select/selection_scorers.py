"""What `select_data` scores documents with: picklable functions from texts to numbers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ontarget.data.stream_texts import expected_batches, stream_texts
from ontarget.errors import require_extra
from ontarget.plan.run_folder import write_atomic
from ontarget.select.document_scores import Scorer, map_batches
from ontarget.select.dsir import Dsir, bucket_counts, dsir_of_counts, dsir_weights
from ontarget.select.zipfit import Aggregate, Targets, aggregated, zipfit_pairs
from ontarget.values import Array, Context


@dataclass(frozen=True)
class ExactZipfit:
    """The definition: similarity with every target example, brought to one score."""

    targets: Targets
    aggregate: Aggregate

    def __call__(self, texts: Sequence[str]) -> Array:
        return aggregated(zipfit_pairs(texts, self.targets), self.aggregate)


@dataclass(frozen=True)
class DsirWeights:
    """Log importance weights."""

    found: Dsir

    def __call__(self, texts: Sequence[str]) -> Array:
        return dsir_weights(texts, self.found)


def no_score(texts: Sequence[str]) -> Array:
    """Nothing is known of any document: for random selections."""
    return np.zeros(len(texts))


def make_scorer(
    pool: str | Path,
    examples: Sequence[str],
    compressed: Targets | None,
    *,
    method: str,
    mode: Literal["exact", "fast"],
    aggregate: Aggregate,
    column: str,
    processes: int,
    folder: Path,
    context: Context,
) -> tuple[Scorer, float | None]:
    """The scorer of a method, and how well its scores agree with exact ones where it estimates them.

    compressed: the examples, for "zipfit". What it takes a pass over the pool to learn is kept in ``folder``.
    """
    if compressed is not None:
        if mode == "exact":
            return ExactZipfit(compressed, aggregate), None
        require_extra("numba", "select", "The fast mode")
        from ontarget.select.fast_zipfit import CALIBRATION, calibrate

        sample = sampled_texts(pool, 2 * CALIBRATION, column=column, seed=context.seed)
        model = calibrate(sample, compressed)
        return model, model.agreement
    if method == "dsir":
        return DsirWeights(_fitted_dsir(pool, examples, column, processes, folder, context)), None
    return no_score, None


def sampled_texts(pool: str | Path, count: int, *, column: str, seed: int) -> list[str]:
    """``count`` documents with text, drawn from the whole pool in one pass over it (fewer where it has fewer)."""
    random = np.random.default_rng(seed)
    kept: list[tuple[float, str]] = []
    for batch in stream_texts(pool, column=column):
        kept += [
            (key, text) for key, text in zip(random.random(len(batch.texts)), batch.texts, strict=True) if text.strip()
        ]
        kept = sorted(kept, key=lambda entry: entry[0])[:count]
    return [text for _, text in kept]


def _fitted_dsir(
    pool: str | Path, examples: Sequence[str], column: str, processes: int, folder: Path, context: Context
) -> Dsir:
    """Counts of the pool's n-grams take a pass over it: done once."""
    path = folder / "pool-counts.npy"
    if not path.exists():
        total: Any = 0
        expected = expected_batches(pool)
        for number, _, counts in map_batches(pool, bucket_counts, column=column, processes=processes):
            total = total + counts
            if context.progress:
                context.progress(number + 1, max(expected, number + 1), "counting words of the pool, batch by batch")
        stream = io.BytesIO()
        np.save(stream, np.asarray(total), allow_pickle=False)
        write_atomic(path, stream.getvalue())
    return dsir_of_counts(np.load(path, allow_pickle=False), bucket_counts(examples))
