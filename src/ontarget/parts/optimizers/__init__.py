"""Optimizers that several methods share."""

from __future__ import annotations

from ontarget.catalogue import Method

METHODS = (
    Method(
        number=18,
        name="lion",
        title="Symbolic Discovery of Optimization Algorithms: the Lion optimizer",
        room="parts/optimizers",
        summary="A sign-momentum optimizer with half of AdamW's state; for large batches or tight memory.",
        needs=("gradients",),
        gives=("optimizer",),
        source="NeurIPS 2023; arXiv 2302.06675",
    ),
)
