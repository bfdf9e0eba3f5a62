"""Serve: deployable bundles, a server, and faster decoding of language models."""

from __future__ import annotations

from ontarget.catalogue import Method

METHODS = (
    Method(
        number=63,
        name="fspad",
        title="FSPAD: Boosting Lossless Speculative Decoding via Feature Sampling and Partial Alignment Distillation",
        room="serve",
        summary="Trains a small draft head, so that a language model says the same in fewer passes.",
        needs=("language model", "prompts"),
        gives=("draft head", "faster generation"),
        source="arXiv 2408.15562",
    ),
)
