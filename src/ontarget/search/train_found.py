"""Training of a found image network from scratch, as the search did it, on rows that may be others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ontarget.errors import RunError
from ontarget.runtime.preprocess import Preprocess
from ontarget.search.example_rows import ExampleRows
from ontarget.search.rows import Rows
from ontarget.values import Context, Examples


def train_found(
    info: Mapping[str, Any], preprocess: Preprocess, examples: Examples, *, context: Context = Context()
) -> torch.nn.Module:
    """The network of a network.json (``info``), trained anew on ``examples``, in evaluation mode.

    Raises RunError for a network that was not trained from scratch: a slice of a pretrained model, tuned with others.
    """
    from ontarget.pool.found_networks import build_network

    training = info.get("training")
    if not training:
        raise RunError("a slice of a pretrained model was tuned together with the others, and is not trained alone")
    context = replace(context, seed=int(training["seed"]), deadline=None)
    torch.manual_seed(context.seed)
    network = build_network(info["config"])
    if info["config"]["network"] == "topology":
        from ontarget.search.train_task import train_task

        rows = ExampleRows(preprocess, examples)
        train_task(
            network, rows, info["kind"], epochs=int(training["epochs"]), batch_size=int(training["batch_size"]),
            what="training a found network from scratch", context=context,
        )  # fmt: skip
        return network.cpu()
    train_on_rows(network, augmented_rows(preprocess, examples, training["augment"], context), training, context)
    return network.cpu()


def augmented_rows(preprocess: Preprocess, examples: Examples, augment: str, context: Context) -> ExampleRows:
    """Rows as the training reads them; AdAutoMix mixes whole batches later."""
    plain = augment in ("none", "adautomix")
    return ExampleRows(preprocess, examples, augment="none" if plain else augment, seed=context.seed)


def train_on_rows(network: torch.nn.Module, rows: Rows, training: Mapping[str, Any], context: Context) -> None:
    """Train ``network`` (changed, left in evaluation mode). training: epochs, batch_size, augment, optimizer."""
    shared: dict[str, Any] = {"epochs": training["epochs"], "batch_size": training["batch_size"], "context": context}
    if training["augment"] == "adautomix":
        from ontarget.parts.mobile_network import MobileNetwork
        from ontarget.search.retrain_on_mixes import retrain_on_mixes

        assert isinstance(network, MobileNetwork)
        retrain_on_mixes(network, rows, **shared)
    else:
        from ontarget.search.retrain import retrain

        retrain(network, rows, optimizer=training["optimizer"], what="training a found network from scratch", **shared)
