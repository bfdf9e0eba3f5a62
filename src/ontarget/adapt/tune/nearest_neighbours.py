"""Weighted nearest neighbours in feature space, as a network.

Zhirong Wu et al.: Unsupervised Feature Learning via Non-Parametric Instance Discrimination. arXiv 1805.01978
(section 3.4: cosine similarity, votes weighted by exp(similarity / temperature)). Official code:
github.com/zhirongw/lemniscate.pytorch. Claim here: a model that needs no training. Left out: nothing.
Features are centred at the training mean first, since pooled features share a large common direction (choice).
Checked against scikit-learn's KNeighborsClassifier in tests/adapt/test_nearest_neighbours.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ontarget.adapt.tune.held_out import check_rows, choose, make_folds
from ontarget.errors import DataError, SettingError
from ontarget.values import Array

NEIGHBOURS: tuple[int, ...] = (1, 3, 5, 10, 20, 50)  # (choice)
TEMPERATURE = 0.07  # the paper's
MAX_ROWS = 5_000  # stored rows at most: bounds size and latency (choice)
PSEUDO_COUNT = 0.05  # share of the vote that is spread over all classes, so that logits are finite (choice)


class Neighbours(torch.nn.Module):
    """Features (N, D) -> log of the voted class shares (N, C), or the weighted mean target (N, 1).

    mean (D,); rows (D, M): stored features, centred, of length 1; values (M, C): one-hot classes or targets.
    neighbours, temperature, logarithm: scalars, kept as tensors so that the state holds all there is.
    """

    mean: Tensor
    rows: Tensor
    values: Tensor
    neighbours: Tensor
    temperature: Tensor
    logarithm: Tensor

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name in ("mean", "rows", "values", "neighbours", "temperature", "logarithm"):
            self.register_buffer(name, state[name])
        # Plain numbers, so that an exported graph holds constants.
        self._count, self._scale = int(state["neighbours"]), 1 / float(state["temperature"])
        self._logarithm = bool(state["logarithm"])

    def forward(self, features: Tensor) -> Tensor:
        centred = features - self.mean
        similarity = torch.matmul(torch.nn.functional.normalize(centred, dim=1), self.rows)
        closest, at = torch.topk(similarity, self._count, dim=1)
        votes = torch.softmax(closest * self._scale, dim=1)
        mean = torch.matmul(votes.unsqueeze(1), torch.nn.functional.embedding(at, self.values)).squeeze(1)
        if not self._logarithm:
            return mean
        return torch.log(mean * (1 - PSEUDO_COUNT) + PSEUDO_COUNT / self.values.shape[1])


def head_from_state(state: Mapping[str, Tensor]) -> Neighbours:
    """The module with the tensors that `Neighbours` lists."""
    return Neighbours(state).eval()


@dataclass(frozen=True)
class NearestNeighbours:
    """network: features -> scores. neighbours: the chosen number. The rest as in `LinearHead`."""

    network: Neighbours
    scores: Array
    neighbours: int
    value: float


def nearest_neighbours(
    features: Array,
    targets: Array,
    *,
    outputs: int,
    kind: Literal["classification", "regression"],
    metric: str | None = None,
    neighbours: Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    max_rows: int = MAX_ROWS,
    folds: Array | None = None,
    validation: tuple[Array, Array] | None = None,
    seed: int = 0,
) -> NearestNeighbours:
    """Store the training rows; choose the number of neighbours on held-out rows as `linear_head` does its L2.

    features: (N, D) float. targets: (N,) classes or values. Of more than ``max_rows`` rows, a stratified sample
    drawn with ``seed`` is stored. Raises DataError, SettingError.
    """
    features, targets = check_rows(features, targets, outputs=outputs, kind=kind)
    if not neighbours or min(neighbours) < 1 or temperature <= 0:
        raise SettingError(
            f"neighbours={tuple(neighbours)}, temperature={temperature} cannot be used.", allowed="above 0"
        )
    metric = metric or ("accuracy" if kind == "classification" else "r2")
    if validation is None and (folds is None or len(folds) == 0):
        folds = make_folds(targets, kind=kind)
    if len(features) > max_rows:
        parts = -(-len(features) // max_rows)
        stored = np.flatnonzero(make_folds(targets, kind=kind, count=parts, seed=seed) == 0)
    else:
        stored = np.arange(len(features))

    def module(rows: Array, count: int) -> Neighbours:
        values = np.eye(outputs)[targets[rows]] if kind == "classification" else targets[rows, None]
        mean = features[rows].mean(axis=0)
        centred = features[rows] - mean
        centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
        state = {
            "mean": torch.from_numpy(mean).float(),
            "rows": torch.from_numpy(np.ascontiguousarray(centred.T)).float(),
            "values": torch.from_numpy(values).float(),
            "neighbours": torch.tensor(min(count, len(rows))),
            "temperature": torch.tensor(float(temperature)),
            "logarithm": torch.tensor(kind == "classification"),
        }
        return Neighbours(state).eval()

    if validation is not None:
        held, held_targets = check_rows(*validation, outputs=outputs, kind=kind)
        groups = [(np.arange(len(held)), stored)]
    else:
        assert folds is not None
        if len(folds) != len(targets) or len(np.unique(folds)) < 2:
            raise DataError("folds needs one entry a row and two folds or more.")
        held, held_targets = features, targets
        groups = [
            (np.flatnonzero(folds == fold), stored[folds[stored] != fold])
            for fold in np.unique(folds)
            if (folds[stored] != fold).any()
        ]

    def scores_of(count: int) -> Array:
        scores = np.zeros((len(held), outputs), dtype=np.float32)
        with torch.inference_mode():
            for rows, kept in groups:
                network = module(kept, count)
                for start in range(0, len(rows), 4096):
                    part = rows[start : start + 4096]
                    scores[part] = network(torch.from_numpy(held[part]).float()).numpy()
        return scores

    counts = sorted({min(int(count), len(stored)) for count in neighbours})
    nothing = np.zeros(0)
    walk = ((float(count), scores_of(count), nothing, nothing) for count in counts)
    best = choose(walk, metric, held_targets)
    return NearestNeighbours(module(stored, int(best.l2)), best.scores, int(best.l2), best.value)
