"""Shift: from unlabelled or shifted data."""

from __future__ import annotations

from ontarget.catalogue import Method

METHODS = (
    Method(
        number=0,
        name="self_training",
        title="Self-training of a linear head on unlabelled rows",
        room="adapt/shift",
        summary="Labels unlabelled rows with the head's own surest guesses, class by class, and fits it again.",
        needs=("features", "few labels", "unlabelled rows", "classification"),
        gives=("model",),
        source="Scudder 1965; Zou et al., arXiv 1810.07911",
    ),
)
