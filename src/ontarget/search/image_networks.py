"""Networks for images: a space of mobile CNNs, searched by ProxylessNAS; what is chosen is trained from scratch.

One of the kinds that `search_networks` looks for.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ontarget.adapt.metric import metric_value
from ontarget.errors import SettingError
from ontarget.latency_table import LatencyTable
from ontarget.pool.found_networks import build_network
from ontarget.runtime.preprocess import Preprocess, open_image
from ontarget.search.example_rows import ExampleRows, Part, first_rows, image_preprocess
from ontarget.search.mobile_space import MobileSpace, stages_for
from ontarget.search.network_kind import NetworkKind, store_network
from ontarget.search.network_latency import extremes
from ontarget.search.retrain import make_optimizer, recalibrate, scores
from ontarget.search.rows import Rows, batches
from ontarget.search.space import Code, draw
from ontarget.search.train_found import augmented_rows, train_on_rows
from ontarget.values import Context, TargetData

ARCHITECTURE_SHARE = 0.25  # of the training rows, from which ProxylessNAS learns the architecture (choice)
RECALIBRATION_ROWS = 512  # training rows that BatchNorm statistics are taken from (choice)
LEAST_EPOCHS, MOST_EPOCHS = 10, 60  # of a network that is trained from scratch (choice)
DEFAULT_SIZE = 64  # pixels of images in which larger ones are searched, for want of another wish (choice)


@dataclass(frozen=True)
class _Images:
    """The task as the functions here share it. search_batch, batch: rows of a step of the search, of a training."""

    data: TargetData
    context: Context
    preprocess: Preprocess
    space: MobileSpace
    weight_rows: Part
    architecture_rows: Part
    calibration: Part
    final_rows: ExampleRows
    validation: ExampleRows
    search_batch: int
    batch: int
    augment: str
    optimizer: str


def image_networks(
    data: TargetData, image_size: int | None, augment: str, optimizer: str, context: Context
) -> NetworkKind:
    """Mobile CNNs for the task's images. Arguments as of `search_networks`; raises SettingError for wrong ones."""
    size = image_size or min(DEFAULT_SIZE, max(16, max(open_image(data.train.inputs[0]).size)))
    if not 16 <= size <= 512:
        raise SettingError(f"image_size is {size}.", allowed="16 to 512", option="--image-size")
    preprocess = image_preprocess(data.train, size)
    torch.manual_seed(context.seed)
    space = MobileSpace(
        image_size=size, channels=preprocess.settings["channels"], outputs=data.outputs, **stages_for(size)
    )
    rows = ExampleRows(preprocess, data.train)
    make_optimizer([torch.nn.Parameter(torch.zeros(1))], optimizer, None, None)  # a wrong name is told at once
    plain = augment in ("none", "adautomix")
    order = np.random.default_rng(context.seed).permutation(len(data.train))
    split = int(len(order) * (1 - ARCHITECTURE_SHARE))
    images = _Images(
        data, context, preprocess, space,
        weight_rows=Part(rows, order[:split]), architecture_rows=Part(rows, order[split:]),
        calibration=Part(rows, order[:RECALIBRATION_ROWS]),
        final_rows=rows if plain else augmented_rows(preprocess, data.train, augment, context),
        validation=ExampleRows(preprocess, data.validation),
        search_batch=int(np.clip(split // 30, 16, 128)), batch=int(np.clip(len(rows) // 30, 16, 64)),
        augment=augment, optimizer=optimizer,
    )  # fmt: skip
    return NetworkKind(
        "mobile", data, preprocess, space, images.validation, train=partial(_train, images),
        epochs=partial(_epochs, images), quality=partial(_quality, images),
        seconds_of_one=partial(_seconds_of_one, images), finish=partial(_finish, images),
        seconds_to_finish=partial(_seconds_to_finish, images),
    )  # fmt: skip


def _train(
    images: _Images, table: LatencyTable, latency_ms: float | None, epochs: int, checkpoint: Path, context: Context
) -> dict[str, Any]:
    from ontarget.search.proxyless import Costs, proxyless

    space = images.space
    costs = Costs(space, table)
    fast, slow = costs.of(costs.fastest()), table.predict(space.operators(extremes(space, table)[1]))
    target = latency_ms if latency_ms is not None else (fast * slow) ** 0.5
    warm = max(1, epochs // 3)
    result = proxyless(
        space, images.weight_rows, images.architecture_rows, table=table, latency_ms=target,
        epochs=max(2, epochs - warm), warm_up_epochs=warm, batch_size=images.search_batch,
        architecture_rate=6e-3, strength=(1.0, 0.6), checkpoint=checkpoint, context=context,
    )  # fmt: skip
    space.cpu()
    return {"codes": [result.code], "history": result.history, "probabilities": result.probabilities}


def _epochs(images: _Images, seconds: float) -> int:
    """Epochs of the search that the seconds allow, from the time of a few steps with weights alone."""
    space, generator, device = images.space, np.random.default_rng(0), images.context.device
    steps = max(1, len(images.weight_rows) // images.search_batch)
    space.to(device)
    begun, done = time.monotonic(), 0
    for inputs, labels in batches(images.weight_rows, images.search_batch, seed=0, epoch=0):
        found = space(inputs.to(device), draw(space, generator))
        loss = torch.nn.functional.cross_entropy(found, labels.to(device))
        (gradient,) = torch.autograd.grad(loss, [space.head.linear.weight])
        gradient.sum().item()  # an accelerator has done its work when the clock is read
        done += 1
        if done >= 8:
            break
    epoch_s = (time.monotonic() - begun) / done * steps
    space.cpu()
    # A search step costs about as much as all candidates of a path together, every fifth step.
    return int(np.clip(seconds / (2.5 * epoch_s), 3, 160))


def _quality(images: _Images, code: Code, sample: Part) -> float:
    device = images.context.device
    network = images.space.slice(code).to(device)
    recalibrate(network, images.calibration, device=device)
    targets = images.data.validation.targets[sample.positions.numpy()]
    return metric_value(images.data.metric, scores(network, sample, device=device), targets)


def _seconds_of_one(images: _Images, sample: Part) -> float:
    begun = time.monotonic()
    _quality(images, draw(images.space, np.random.default_rng(0)), sample)
    return time.monotonic() - begun


def _finish(images: _Images, code: Code, folder: Path, context: Context, seconds: float) -> None:
    """Train from scratch, for the seconds but `LEAST_EPOCHS` at least, and store."""
    epochs = int(np.clip(LEAST_EPOCHS * seconds / _seconds_to_finish(images, code), LEAST_EPOCHS, MOST_EPOCHS))
    torch.manual_seed(context.seed)
    config = images.space.config(code)
    network = build_network(config)
    begun = time.monotonic()
    training = _train_from_scratch(images, network, images.final_rows, epochs, replace(context, deadline=None))
    training |= {"seconds": time.monotonic() - begun, "seed": context.seed}
    found = scores(network.cpu(), images.validation)
    store_network(
        folder, network, config, data=images.data, preprocess=images.preprocess, code=code,
        quality=metric_value(images.data.metric, found, images.data.validation.targets), training=training,
    )  # fmt: skip


def _seconds_to_finish(images: _Images, code: Code) -> float:
    """Of the fewest epochs that a network is trained for."""
    network, few = build_network(images.space.config(code)), first_rows(images.final_rows, 8 * images.batch)
    plain = Context(device=images.context.device)
    _train_from_scratch(images, network, first_rows(images.final_rows, 2 * images.batch), 1, plain)  # warm-up
    begun = time.monotonic()
    _train_from_scratch(images, network, few, 1, plain)
    return LEAST_EPOCHS * (time.monotonic() - begun) * len(images.final_rows) / len(few)


def _train_from_scratch(
    images: _Images, network: torch.nn.Module, rows: Rows, epochs: int, context: Context
) -> dict[str, Any]:
    """Train; how, for network.json."""
    training = {
        "epochs": epochs, "batch_size": images.batch, "augment": images.augment, "optimizer": images.optimizer
    }  # fmt: skip
    train_on_rows(network, rows, training, context)
    return training
