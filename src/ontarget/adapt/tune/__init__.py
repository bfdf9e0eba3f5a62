"""Tune: from labels."""

from __future__ import annotations

from ontarget.catalogue import Method

METHODS = (
    Method(
        number=0,
        name="contrastive",
        title="Few-label contrastive tuning of a text encoder on all pairs at once",
        room="adapt/tune",
        summary="Tunes the top layers of a text encoder for few labels a class, after SetFit.",
        needs=("texts", "few labels", "classification"),
        gives=("model",),
        source="after SetFit, arXiv 2209.11055",
    ),
    Method(
        number=0,
        name="finetune",
        title="Full fine-tuning, or LoRA, from a linear probe",
        room="adapt/tune",
        summary="Trains an encoder with its head: all weights or low-rank adapters; resumable, with early stopping.",
        needs=("texts or images", "labels", "classification", "regression"),
        gives=("model", "learning curve"),
        source="arXiv 2202.10054; arXiv 2106.09685",
    ),
    Method(
        number=0,
        name="linear_head",
        title="Linear head on frozen features",
        room="adapt/tune",
        summary="Logistic or ridge regression along a path of L2 strengths, chosen on held-out rows.",
        needs=("features", "labels", "classification", "regression"),
        gives=("model",),
        source="standard",
    ),
    Method(
        number=0,
        name="majority",
        title="Majority class or mean",
        room="adapt/tune",
        summary="The constant prediction: the floor under every other model.",
        needs=("labels",),
        gives=("model", "baseline"),
        source="standard",
    ),
    Method(
        number=0,
        name="nearest_neighbours",
        title="k nearest neighbours on frozen features",
        room="adapt/tune",
        summary="Votes of the most similar training rows; needs no training.",
        needs=("features", "labels", "classification", "regression"),
        gives=("model", "baseline"),
        source="Cover, Hart, IEEE Trans. Inf. Theory 1967",
    ),
    Method(
        number=0,
        name="tfidf_linear",
        title="TF-IDF with a linear model",
        room="adapt/tune",
        summary="Words, word pairs and character n-grams with a linear model: cheap, hard to beat on long text.",
        needs=("texts", "labels", "classification", "regression"),
        gives=("model", "baseline"),
        source="standard",
    ),
    Method(
        number=0,
        name="tfidf_blend",
        title="An encoder's model and a TF-IDF model as one",
        room="adapt/tune",
        summary="Adds the scores of both with weights from held-out rows, so that rare words count too.",
        needs=("scores on held-out rows", "labels", "classification", "regression"),
        gives=("model",),
        source="Heskes, NIPS 1997; Breiman, Machine Learning 1996",
    ),
)
