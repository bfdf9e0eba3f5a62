"""Networks that `ontarget search` found, as sources: a folder with network.json, network.safetensors, preprocess/.

The network is a plain one (`parts.mobile_network`, `slim_bert`, `slim_llama`, `resolution_network`); as a source it
gives its features, and gets a head of the task's own like any other; where it was trained on the task's own rows, it
takes part with its own head. Its weights have seen rows, of which digests are kept: it cannot take part where one of
them is to be scored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ontarget.errors import RunError
from ontarget.runtime.preprocess import Preprocess
from ontarget.values import Array, Loaded, TargetData

FILE = "network.json"
VERSION = 1
MODALITIES = {"mobile": "image", "bert": "text", "llama": "text"}
TOPOLOGY = "topology"  # of `ontarget search-tasks`; a source of `fit` where its task is classification


def build_network(config: Mapping[str, Any]) -> torch.nn.Module:
    """The plain network of a config, with fresh weights. Raises RunError for a kind that is not known."""
    if config.get("network") == "mobile":
        from ontarget.parts.mobile_network import MobileNetwork

        return MobileNetwork(config)
    if config.get("network") == "bert":
        from ontarget.parts.slim_bert import SlimBert

        return SlimBert(config)
    if config.get("network") == "llama":
        from ontarget.parts.slim_llama import SlimLlama

        return SlimLlama(config)
    if config.get("network") == TOPOLOGY:
        from ontarget.parts.resolution_network import TaskNetwork

        return TaskNetwork(config)
    raise RunError(
        f"'{config.get('network')}' is no kind of network.", allowed=", ".join(sorted((*MODALITIES, TOPOLOGY)))
    )


def save_found(
    folder: Path,
    network: torch.nn.Module,
    config: Mapping[str, Any],
    preprocess: Preprocess,
    *,
    seen: Sequence[str],
    **info: Any,
) -> Path:
    """Write a network so that it is a source. seen: digests of the rows that its weights were trained on."""
    from ontarget.plan.run_folder import write_atomic

    # network.json is last: its presence means that the rest is whole.
    whole = {"version": VERSION, **info, "config": dict(config), "seen": list(seen)}
    for name, content in network_bytes(network, preprocess, whole).items():
        write_atomic(folder / name, content)
    return folder


def network_bytes(network: torch.nn.Module, preprocess: Preprocess, info: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a found network by their names, as `load_network` reads them; network.json last."""
    import tempfile

    from safetensors.torch import save

    from ontarget.plan.run_folder import to_json

    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        preprocess.save(Path(folder))
        files = {f"preprocess/{path.name}": path.read_bytes() for path in Path(folder).iterdir()}
    return {**files, "network.safetensors": save(state), FILE: to_json(info)}


def read_info(folder: Path) -> dict[str, Any]:
    """What network.json holds. Raises RunError where it is missing, damaged or of another version."""
    try:
        info: dict[str, Any] = json.loads((folder / FILE).read_text())
    except (OSError, ValueError) as error:
        raise RunError(
            f"{folder} holds no network that was found ({error}).", next_step="make one with ontarget search"
        ) from error
    if not isinstance(info, dict) or info.get("version") != VERSION or not isinstance(info.get("config"), dict):
        raise RunError(f"{folder / FILE} is of another version, or damaged.", next_step="search again")
    return info


def load_network(folder: Path) -> tuple[torch.nn.Module, Preprocess, dict[str, Any]]:
    """The network with its weights, in evaluation mode; its preprocessing; what network.json says. Raises RunError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    info = read_info(folder)
    try:
        network = build_network(info["config"])
        network.load_state_dict(load_file(folder / "network.safetensors"))
        return network.eval(), Preprocess.load(folder / "preprocess"), info
    except (OSError, KeyError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"The network in {folder} is damaged: {first}", next_step="search again") from error


def load_found(locator: str, folder: Path, *, max_length: int | None) -> Loaded:
    """The network without its last layer as a source: tensors of its preprocessing -> features (N, dim)."""
    from dataclasses import replace

    network, preprocess, info = load_network(folder)
    if info["config"]["network"] == TOPOLOGY:
        return _load_topology(locator, network, preprocess)
    head: Any = network.head
    dim = int(head.linear.in_features)
    head.linear = torch.nn.Identity()
    if preprocess.kind == "tokens" and max_length is not None:
        length = min(max_length, int(preprocess.settings["max_length"]))
        preprocess = replace(preprocess, settings={**preprocess.settings, "max_length": length})
    return Loaded(locator, preprocess, network, dim)


def _load_topology(locator: str, network: Any, preprocess: Preprocess) -> Loaded:
    """A classifier's pooled branches as features. Raises RunError for networks of other tasks."""
    if network.kind != "classification":
        task = network.kind.replace("heat_map", "detection")
        raise RunError(
            f"The network in {locator.removeprefix('file:')} is one for {task}, which is no source of fit.",
            allowed="networks for classification", option="--pool",
            next_step="leave it out; load it with ontarget.pool.found_networks.load_network",
        )  # fmt: skip
    encoder = _Features(network).eval()
    size = int(preprocess.settings["size"])
    with torch.inference_mode():
        dim = encoder(torch.zeros(1, int(preprocess.settings["channels"]), size, size)).shape[1]
    return Loaded(locator, preprocess, encoder, int(dim))


class _Features(torch.nn.Module):
    """A `TaskNetwork` without its head."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        network.topology.heads = torch.nn.ModuleDict()  # not to be counted among the weights

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.network.features(pixels)
        return found


def digests(inputs: Sequence[Any] | Array, modality: str) -> list[str]:
    """16 hex digits of the content of each text or image, equal where the leak checks find contents equal."""
    import hashlib

    from ontarget.data.check import normalised
    from ontarget.runtime.preprocess import open_image

    if modality == "text":
        return [hashlib.sha256(normalised(text).encode()).hexdigest()[:16] for text in inputs]
    found = []
    for row, image in enumerate(inputs):
        picture = open_image(image, row).convert("RGB")
        found.append(hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()[:16])
    return found


def trained_on(folder: Path, data: TargetData) -> bool:
    """Whether a found network was trained for the task's classes on some of its training rows."""
    info = read_info(folder)
    if info.get("classes") != list(data.classes):
        return False
    return not set(info.get("seen", ())).isdisjoint(digests(data.train.inputs, data.modality))


def refused(folder: Path, data: TargetData) -> str:
    """Why a found network cannot take part: rows to be scored that its weights have seen; or ""."""
    seen = set(read_info(folder).get("seen", ()))
    if not seen:
        return ""
    if len(data.folds):
        return "its weights have seen rows of this task, and with few labels every row is to be scored"
    for name, examples in (("validation", data.validation), ("test", data.test)):
        count = sum(digest in seen for digest in digests(examples.inputs, data.modality))
        if count:
            return (
                f"its weights have seen {count} of the {len(examples)} {name} rows: search and fit with the same "
                "seed and splits"
            )
    return ""
