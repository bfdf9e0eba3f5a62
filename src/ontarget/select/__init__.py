"""Select: which source to start from, by scores on frozen features; nothing is trained."""

from __future__ import annotations

from ontarget.catalogue import Method

METHODS = (
    Method(
        number=0,
        name="h_score",
        title="H-score, with shrinkage",
        room="select",
        summary="Ranks source models by how much of their features' variance lies between the target's classes.",
        needs=("features", "labels", "classification"),
        gives=("score", "ranking", "interval"),
        source="ICIP 2019; arXiv 2110.06893",
    ),
    Method(
        number=0,
        name="linear_probe",
        title="Linear probe: cross-validated ridge classifier or regression",
        room="select",
        summary="Ranks source models by the accuracy or R2 of a linear model on frozen features; for few labels.",
        needs=("features", "labels", "classification", "regression"),
        gives=("score", "ranking", "interval"),
        source="closed form: Stone, JRSS B 1974",
    ),
    Method(
        number=0,
        name="logme",
        title="LogME: Practical Assessment of Pre-trained Models for Transfer Learning",
        room="select",
        summary="Ranks source models by the evidence of a Bayesian linear model on their features; fast, no training.",
        needs=("features", "labels", "classification", "regression"),
        gives=("score", "ranking", "interval"),
        source="arXiv 2102.11005",
    ),
    Method(
        number=0,
        name="nearest_neighbours",
        title="k nearest neighbours, leave-one-out",
        room="select",
        summary="Ranks source models by how often a row's nearest neighbours in feature space share its label (kNN).",
        needs=("features", "labels", "classification", "regression"),
        gives=("score", "ranking", "interval"),
        source="Cover, Hart, IEEE Trans. Inf. Theory 1967",
    ),
    Method(
        number=20,
        name="tmi",
        title="Fast and Accurate Transferability Measurement by Evaluating Intra-class Feature Variance",
        room="select",
        summary="Ranks source models by the class-conditional entropy of their features: room left to adapt.",
        needs=("features", "labels", "classification"),
        gives=("score", "ranking", "interval"),
        source="ICCV 2023; arXiv 2308.05986",
    ),
)
