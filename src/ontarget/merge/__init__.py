"""Merge: several models of one base become one, without training."""

from __future__ import annotations

from ontarget.catalogue import Method

METHODS = (
    Method(
        number=0,
        name="average",
        title="Model soup: the weighted mean of checkpoints",
        room="merge",
        summary="Averages fine-tuned models of one base, where they were tuned on like tasks.",
        needs=("checkpoints of one architecture",),
        gives=("checkpoint",),
        source="ICML 2022; arXiv 2203.05482",
    ),
    Method(
        number=5,
        name="breadcrumbs",
        title="Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks",
        room="merge",
        summary="Adds task vectors without outliers and tiny entries, for many models with settings found on few.",
        needs=("base checkpoint", "fine-tuned checkpoints"),
        gives=("checkpoint",),
        source="ECCV 2024; arXiv 2312.06795",
    ),
    Method(
        number=0,
        name="dare",
        title="DARE: Language Models are Super Mario",
        room="merge",
        summary="Drops entries of task vectors at random and rescales the others before they are added.",
        needs=("base checkpoint", "fine-tuned checkpoints"),
        gives=("checkpoint",),
        source="ICML 2024; arXiv 2311.03099",
    ),
    Method(
        number=39,
        name="layer_swapping",
        title="Layer Swapping for Zero-Shot Cross-Lingual Transfer in Large Language Models",
        room="merge",
        summary="Joins a task expert's middle layers with a language expert's outer ones, without data of both.",
        needs=("task expert", "language expert"),
        gives=("checkpoint",),
        source="ICLR 2025; arXiv 2410.01335",
    ),
    Method(
        number=0,
        name="task_arithmetic",
        title="Task arithmetic: Editing Models with Task Arithmetic",
        room="merge",
        summary="Adds weighted differences of fine-tuned models to their base.",
        needs=("base checkpoint", "fine-tuned checkpoints"),
        gives=("checkpoint",),
        source="ICLR 2023; arXiv 2212.04089",
    ),
    Method(
        number=0,
        name="ties",
        title="TIES-Merging: Resolving Interference When Merging Models",
        room="merge",
        summary="Trims task vectors, elects a sign for each parameter, and averages what agrees with it.",
        needs=("base checkpoint", "fine-tuned checkpoints"),
        gives=("checkpoint",),
        source="NeurIPS 2023; arXiv 2306.01708",
    ),
)
