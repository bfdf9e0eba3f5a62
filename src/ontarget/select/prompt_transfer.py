"""How alike are two tasks, by what their trained prompts do to a frozen model? The source score of PANDA.

Qihuang Zhong, Liang Ding, Juhua Liu, Bo Du, Dacheng Tao, "PANDA: Prompt Transfer Meets Knowledge Distillation for
Efficient Model Adaptation", TKDE 2024, arXiv 2208.10160. Official code: github.com/WHU-ZQH/PANDA (without the metric:
the first function below is this project's reading, a choice). The other two are published baselines: Vu et al., "SPoT",
ACL 2022, arXiv 2110.07904 (prompts); Su et al., "On Transferability of Prompt Tuning", NAACL 2022, arXiv 2111.06719
(neurons).
Claim: the metric predicts which source prompt helps a target better than the prompts' own similarity.
Left out: training prompts, and PANDA's transfer itself (adapt/tune/panda, with which its claim runs).
Checked in tests/select/test_prompt_transfer.py (hand-worked values, invariances).

With h(prompt, x) the model's representation of the target input x, averaged over layers, and h(none, x) without prompt:

    similarity = mean over x of cos(h(prompt_s, x) - h(none, x), h(prompt_t, x) - h(none, x)), cut off at 0

>>> import numpy as np
>>> prompt_transfer(np.array([[1.0, 1.0]]), np.array([[1.0, 0.0]]), np.array([[0.0, 0.0]]))
0.707...
"""

from __future__ import annotations

import numpy as np

from ontarget.errors import DataError, SettingError
from ontarget.values import Array


def prompt_transfer(with_source: Array, with_target: Array, without: Array) -> float:
    """0 to 1: how much the source's prompt moves the target's inputs the way the target's own prompt does.

    with_source, with_target, without: (N, D) float representations of the same N target inputs under the source's
    prompt, the target's, and none; average a model's layers first. Inputs that a prompt does not move count 0.
    Raises DataError: shapes that differ, NaN, no row.
    """
    parts = [_finite(part, name) for part, name in ((with_source, "with_source"), (with_target, "with_target"))]
    plain = _finite(without, "without")
    if {part.shape for part in (*parts, plain)} != {plain.shape}:
        raise DataError(f"Shapes differ: {parts[0].shape}, {parts[1].shape}, {plain.shape}.", allowed="(N, D) each")
    return max(0.0, float(np.mean(_cosines(parts[0] - plain, parts[1] - plain))))


def prompt_cosine(source: Array, target: Array) -> float:
    """-1 to 1: cosine of the mean embeddings of two prompts (P, D), (Q, D). Source: arXiv 2110.07904, section 4."""
    first, second = _finite(source, "source"), _finite(target, "target")
    if first.shape[1] != second.shape[1]:
        raise DataError(f"Prompts of width {first.shape[1]} and {second.shape[1]}.", allowed="the same width")
    return float(_cosines(first.mean(axis=0)[None], second.mean(axis=0)[None])[0])


def neuron_overlap(source: Array, target: Array, *, share: float | None = None) -> float:
    """0 to 1: overlap of the feed-forward neurons that two prompts activate.

    source, target: (L, F) or (F,) activations before or after the ReLU, averaged over inputs or not averaged. A neuron
    counts as active above 0, or, with ``share``, among that share of the largest. Returns the cosine of the two 0/1
    vectors. Source: arXiv 2111.06719, section 5 ("ON").
    """
    first, second = np.asarray(source, dtype=np.float64).ravel(), np.asarray(target, dtype=np.float64).ravel()
    if first.shape != second.shape or not len(first):
        raise DataError(f"{len(first)} and {len(second)} neurons.", allowed="the same neurons for both")
    if share is None:
        active = [first > 0, second > 0]
    else:
        if not 0 < share <= 1:
            raise SettingError(f"share is {share}.", allowed="above 0, at most 1", option="share")
        count = max(1, round(share * len(first)))
        active = [np.isin(np.arange(len(part)), np.argsort(-part, kind="stable")[:count]) for part in (first, second)]
    norm = np.sqrt(float(active[0].sum()) * float(active[1].sum()))
    return float((active[0] & active[1]).sum() / norm) if norm else 0.0


def _cosines(first: Array, second: Array) -> Array:
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = np.einsum("nd,nd->n", first, second)
    found: Array = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
    return found


def _finite(values: Array, name: str) -> Array:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 2 or not found.size or not np.isfinite(found).all():
        raise DataError(f"{name} has shape {found.shape} or holds NaN.", allowed="(N, D) finite numbers")
    return found
