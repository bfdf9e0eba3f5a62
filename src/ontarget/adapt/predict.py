"""Scores of a network for rows of a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

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
    """(N, C) or (N, 1) float32 scores in the order of ``inputs``; texts go through shortest first."""
    network = network.to(context.device).eval()
    order = np.arange(len(inputs))
    if preprocess.kind in ("tokens", "tfidf"):
        order = np.argsort([len(str(text)) for text in inputs], kind="stable")
    parts = []
    with torch.inference_mode():
        for start in range(0, len(inputs), batch_size):
            rows = order[start : start + batch_size]
            batch = inputs[rows] if isinstance(inputs, np.ndarray) else [inputs[int(row)] for row in rows]
            try:
                prepared = preprocess(batch)
            except InputError as error:
                raise error.at(rows) from error
            tensors = [torch.from_numpy(value).to(context.device) for value in prepared.values()]
            parts.append(network(*tensors).float().cpu().numpy())
    scores = np.empty((len(inputs), parts[0].shape[1]), dtype=np.float32)
    scores[order] = np.concatenate(parts)
    return scores
