"""Which choices matter: what each changes of an objective, by ridge regression on evaluated networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ontarget.search.space import Code, ElasticNetwork, one_hot
from ontarget.values import Array


def importance(
    space: ElasticNetwork, codes: Sequence[Code], values: Array, *, ridge: float = 1.0
) -> list[dict[str, Any]]:
    """A mapping a slot, most important first: slot, effects (label -> change from the mean), spread (max - min).

    values: (N,) of the objective. ridge > 0 keeps the effects of rare choices small (choice).
    """
    features = one_hot(space, codes)
    centred = features - features.mean(axis=0)
    gram = centred.T @ centred + ridge * np.eye(features.shape[1])
    weights = np.linalg.solve(gram, centred.T @ (np.asarray(values) - np.mean(values)))
    found, start = [], 0
    for slot in space.slots:
        effects = weights[start : start + slot.choices]
        effects = effects - effects.mean()
        labels = slot.labels or tuple(map(str, range(slot.choices)))
        found.append(
            {
                "slot": slot.name,
                "effects": dict(zip(labels, effects.tolist(), strict=True)),
                "spread": float(effects.max() - effects.min()),
            }
        )
        start += slot.choices
    return sorted(found, key=lambda entry: -entry["spread"])
