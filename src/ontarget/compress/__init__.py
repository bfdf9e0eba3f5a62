"""Compress: smaller and faster forms of a trained model, undone where they hurt."""

from __future__ import annotations

from ontarget.catalogue import Method

METHODS = (
    Method(
        number=55,
        name="gwq",
        title="GWQ: Gradient-Aware Weight Quantization for Large Language Models",
        room="compress",
        summary="Stores a language model's weights in 2 to 8 bits, but for those with the largest gradient.",
        needs=("language model", "calibration text"),
        gives=("quantised weights", "bits per weight"),
        source="arXiv 2411.00850",
    ),
)
