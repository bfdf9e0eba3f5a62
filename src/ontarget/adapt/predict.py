"""Scores of a network for rows of a task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ontarget.errors import DataError
from ontarget.runtime.preprocess import InputError, Preprocess
from ontarget.values import Array, Context


def predict_scores(
    network: torch.nn.Module,
    preprocess: Preprocess,
    inputs: Sequence[Any] | Array,
    *,
    batch_size: int = 32,
    context: Context = Context(),
) -> Array:
    """(N, C) or (N, 1) float32 scores in the order of ``inputs``; texts go through shortest first.

    Raises InputError naming the row that cannot be read; DataError for no rows.
    """
    order = np.arange(len(inputs))
    if preprocess.takes_texts:
        order = np.argsort([len(str(text)) for text in inputs], kind="stable")

    def batches() -> Iterator[tuple[Array, list[Tensor]]]:
        for start in range(0, len(inputs), batch_size):
            rows = order[start : start + batch_size]
            batch = inputs[rows] if isinstance(inputs, np.ndarray) else [inputs[int(row)] for row in rows]
            try:
                prepared = preprocess(batch)
            except InputError as error:
                raise error.at(rows) from error
            yield rows, [torch.from_numpy(value) for value in prepared.values()]

    return scores_of_batches(network, batches(), len(inputs), context)


def scores_of_batches(
    network: torch.nn.Module, batches: Iterable[tuple[Array, list[Tensor]]], total: int, context: Context = Context()
) -> Array:
    """(total, C) float32 scores from batches (positions of the rows, the network's arguments) that cover all rows."""
    if total == 0:
        raise DataError("There are no rows to predict.")
    network = network.to(context.device).eval()
    scores: Array | None = None
    with torch.inference_mode():
        for rows, tensors in batches:
            part = network(*(value.to(context.device) for value in tensors)).float().cpu().numpy()
            scores = np.empty((total, part.shape[1]), dtype=np.float32) if scores is None else scores
            scores[rows] = part
    assert scores is not None
    return scores
