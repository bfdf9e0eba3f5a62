"""DARE: entries of task vectors are dropped by a coin, the others rescaled so that the mean stays; then they are added.

Yu et al., "Language Models are Super Mario", ICML 2024, arXiv 2311.03099; as mergekit's "dare_linear" and "dare_ties".
Checked: tests/merge/test_rules.py. tau~ = m tau / density, m ~ Bernoulli(density)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ontarget.merge._contract import Range, Rule, Settings, merge_tensors
from ontarget.merge.task_arithmetic import SUM, summed
from ontarget.merge.ties import elected

if TYPE_CHECKING:
    from torch import Tensor

DENSITY = {"density": Range(0.5, 0, 1, open_low=True)}


def dare(
    base: Tensor,
    models: Sequence[Tensor],
    *,
    weights: Sequence[float],
    density: float = 0.5,
    elect_signs: bool = False,
    normalize: bool = False,
    scale: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """float32, of the tensors' shape. density: the share that is kept. elect_signs: then merge as TIES does."""
    settings = {"density": density, "normalize": normalize, "lambda": scale}
    rule = TIES_RULE if elect_signs else RULE
    return merge_tensors(rule, base, models, weights=weights, settings=settings, seed=seed)


def _dropped(settings: Settings) -> float:
    return 1 - float(settings["density"])


RULE = Rule(needs_base=True, combine=summed, drop=_dropped, of_model=DENSITY, of_all=SUM)
TIES_RULE = Rule(needs_base=True, combine=elected, drop=_dropped, of_model=DENSITY, of_all=SUM)
