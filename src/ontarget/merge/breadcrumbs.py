"""Model Breadcrumbs: task vectors without their outliers and without their tiny entries, added to the base.

Davari, Belilovsky, "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks", ECCV 2024, arXiv
2312.06795; official code rezazzr/breadcrumbs.
Claim: above task arithmetic for many tasks, with settings found on few. Left out: masks by row (an option there).
Checked: tests/merge/test_rules.py, claims/05_breadcrumbs.py.

theta = theta_0 + alpha sum_t m_t tau_t; m_t keeps the magnitudes of rank (gamma, gamma + beta], from the largest, of a
tensor. No division by the number of models, survivors are not rescaled. alpha is the models' weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ontarget.merge._contract import Range, Rule, Settings, merge_tensors
from ontarget.merge.task_arithmetic import SUM, summed
from ontarget.merge.ties import elected

if TYPE_CHECKING:
    from torch import Tensor


def breadcrumbs(
    base: Tensor,
    models: Sequence[Tensor],
    *,
    weights: Sequence[float],
    density: float = 0.15,
    gamma: float = 0.006,
    normalize: bool = False,
    scale: float = 1.0,
) -> Tensor:
    """float32, of the tensors' shape. density: beta, the share that is kept. gamma: the share of outliers."""
    settings = {"density": density, "gamma": gamma, "normalize": normalize, "lambda": scale}
    return merge_tensors(RULE, base, models, weights=weights, settings=settings)


def window(count: int, settings: Settings) -> tuple[int, int] | None:
    """Ascending ranks that are kept. A tensor without one entry to keep is left whole (choice)."""
    kept, outliers = int(float(settings["density"]) * count), int(float(settings["gamma"]) * count)
    if kept == 0 or settings["density"] >= 1:
        return None
    outliers = min(outliers, count - kept)  # fewer outliers rather than fewer kept, as mergekit has it
    return count - outliers - kept, count - outliers


OF_MODEL = {"density": Range(0.15, 0, 1, open_low=True), "gamma": Range(0.006, 0, 1)}
RULE = Rule(needs_base=True, combine=summed, window=window, of_all=SUM, of_model=OF_MODEL)
TIES_RULE = Rule(needs_base=True, combine=elected, window=window, of_all=SUM, of_model=OF_MODEL)
