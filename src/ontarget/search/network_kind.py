"""What the search asks of a kind of networks: data and functions, made for one task.

There are two kinds: `image_networks` (trained from scratch) and `text_slices` (of a pretrained transformer).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ontarget.latency_table import LatencyTable
from ontarget.runtime.preprocess import Preprocess
from ontarget.search.example_rows import ExampleRows, Part
from ontarget.search.space import Code
from ontarget.values import Context, TargetData

if TYPE_CHECKING:
    from ontarget.search.elastic_transformer import ElasticTransformer
    from ontarget.search.mobile_space import MobileSpace


@dataclass(frozen=True)
class NetworkKind:
    """One kind of networks for one task. name: of the space; source: locator of what is sliced, if anything is.

    train: (table, latency_ms, epochs, checkpoint, context) -> codes that the front starts with, history; changes
        ``space``, and goes on from the checkpoint's file. epochs: of it that so many seconds allow.
    quality: of a code's network on rows of ``validation``, with the weights of ``space``. seconds_of_one: of that.
    finish: (code, folder, context, seconds) stores the code's network with weights of its own. seconds_to_finish: that
        this takes at least.
    """

    name: str
    data: TargetData
    preprocess: Preprocess
    space: MobileSpace | ElasticTransformer
    validation: ExampleRows
    train: Callable[[LatencyTable, float | None, int, Path, Context], dict[str, Any]]
    epochs: Callable[[float], int]
    quality: Callable[[Code, Part], float]
    seconds_of_one: Callable[[Part], float]
    finish: Callable[[Code, Path, Context, float], None]
    seconds_to_finish: Callable[[Code], float]
    source: str | None = None


def store_network(
    folder: Path,
    network: torch.nn.Module,
    config: Mapping[str, Any],
    *,
    data: TargetData,
    preprocess: Preprocess,
    code: Code,
    quality: float,
    **more: Any,
) -> None:
    """Write a network for ``data`` to ``folder``, as a source. more: further entries of network.json."""
    from ontarget.pool.found_networks import digests, save_found

    save_found(
        folder, network, config, preprocess, seen=digests(data.train.inputs, data.modality), code=list(code),
        quality=quality, metric=data.metric, classes=list(data.classes), fingerprint=data.fingerprint, **more,
    )  # fmt: skip
