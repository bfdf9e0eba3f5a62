"""Zero-shot classification by names: which class name is a text nearest to?

Yin, Hay, Roth, "Benchmarking zero-shot text classification", EMNLP 2019 (arXiv 1909.00161), in its simplest form:
encoded names, cosine similarity.
"""

from __future__ import annotations

import numpy as np

from ontarget.values import Array


def zero_shot(texts: Array, names: Array, *, temperature: float = 0.05) -> Array:
    """Scores (N, C) from features of texts (N, D) and of class names (C, D) by the same encoder.

    temperature: cosine similarities are divided by it; it does not change which class is nearest (choice).
    """
    return (_unit(texts) @ _unit(names).T / temperature).astype(np.float32)


def _unit(features: Array) -> Array:
    unit: Array = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return unit
