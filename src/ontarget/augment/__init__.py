"""Augment: more or other training data."""

from __future__ import annotations

from ontarget.catalogue import Method

METHODS = (
    Method(
        number=36,
        name="adautomix",
        title="AdAutoMix: Adversarial AutoMixup",
        room="augment",
        summary="Trains an image classifier on images mixed by a learned, adversarial mixer; for long training.",
        needs=("images", "labels", "backbone"),
        gives=("trained network",),
        source="ICLR 2024; arXiv 2312.11954",
    ),
    Method(
        number=27,
        name="randaugment",
        title="RandAugment: Practical automated data augmentation with a reduced search space",
        room="augment",
        summary="Image augmentation with two knobs, tuned on the target itself: operations an image and one magnitude.",
        needs=("images", "labels"),
        gives=("augmented images",),
        source="NeurIPS 2020; arXiv 1909.13719",
    ),
)
