"""Align: from preferred answers, references and constraints."""

from __future__ import annotations

from ontarget.catalogue import Method

METHODS = (
    Method(
        number=32,
        name="s3ft",
        title="Selective Self-to-Supervised Fine-Tuning for Generalization in Large Language Models",
        room="adapt/align",
        summary="Rewrites the training answers of a language model: its own answer where that is right, else its own "
        "words for the reference, else the reference; the specialist forgets less.",
        needs=("prompts", "references", "language model", "judge"),
        gives=("training answers",),
        source="NAACL 2025 Findings; arXiv 2502.08130",
    ),
    Method(
        number=0,
        name="supervised_fine_tuning",
        title="Supervised fine-tuning of a language model, all weights or LoRA",
        room="adapt/align",
        summary="Trains a language model to write given answers to prompts: the baseline of every other way.",
        needs=("prompts", "answers", "language model"),
        gives=("language model",),
        source="LoRA: arXiv 2106.09685",
    ),
)
