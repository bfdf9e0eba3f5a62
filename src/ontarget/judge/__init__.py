"""Judge: what the test rows say."""

from __future__ import annotations

from ontarget.catalogue import Method

METHODS = (
    Method(
        number=0,
        name="zero_shot",
        title="Zero-shot classification by class names",
        room="judge",
        summary="Assigns a text to the class whose name it is nearest to; a baseline that needs no labels.",
        needs=("texts", "class names"),
        gives=("scores", "baseline"),
        source="EMNLP 2019; arXiv 1909.00161",
    ),
)
