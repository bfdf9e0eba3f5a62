"""Distil: from teachers."""

from __future__ import annotations

from ontarget.catalogue import Method

METHODS = (
    Method(
        number=4,
        name="distill_weighted",
        title="Distilling from Similar Tasks for Transfer Learning on a Budget",
        room="adapt/distil",
        summary="Trains one small model from many source models, weighted by their similarity to the target, with few "
        "labels and many unlabelled rows.",
        needs=("images", "few labels", "unlabelled rows", "classification", "source models"),
        gives=("model", "ranking"),
        source="ICCV 2023; arXiv 2304.12314",
    ),
)
