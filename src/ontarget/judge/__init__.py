"""Judge: what the test rows say."""

from __future__ import annotations

from ontarget.catalogue import Method

METHODS = (
    Method(
        number=40,
        name="intruder_dimensions",
        title="LoRA vs Full Fine-tuning: An Illusion of Equivalence",
        room="judge",
        summary="Tells which singular directions fine-tuning has brought in that the base lacks, and scales them down.",
        needs=("base checkpoint", "fine-tuned checkpoint"),
        gives=("audit", "repaired checkpoint"),
        source="arXiv 2410.21228",
    ),
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
