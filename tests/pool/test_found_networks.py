"""Networks that a search found, as sources: features, damaged folders, and rows that their weights have seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ontarget.errors import RunError
from ontarget.parts.mobile_network import MobileNetwork
from ontarget.pool import load, resolve
from ontarget.pool.found_networks import digests, load_network, read_info, refused, save_found
from ontarget.runtime.preprocess import Preprocess
from ontarget.values import Examples, TargetData

CONFIG = {
    "network": "mobile", "image_size": 16, "channels": 1, "outputs": 3, "stem": {"width": 4, "stride": 2},
    "blocks": [
        {"in": 4, "out": 4, "kernel": 3, "expansion": 1, "stride": 1, "residual": False},
        {"in": 4, "out": 6, "kernel": 5, "expansion": 3, "stride": 2, "residual": False},
        {"in": 6, "out": 6, "kernel": 3, "expansion": 6, "stride": 1, "residual": True},
    ],
    "head": {"width": 10},
}  # fmt: skip
PREPROCESS = Preprocess(
    "image", {"size": 16, "crop": 1, "interpolation": "bilinear", "channels": 1, "mean": [0.3], "std": [0.2]}
)


def images(count: int, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, 16, 16), dtype=np.uint8))


def found(folder: Path, seen: list[str] | None = None) -> tuple[Path, MobileNetwork]:
    torch.manual_seed(0)
    network = MobileNetwork(CONFIG).eval()
    return save_found(folder, network, CONFIG, PREPROCESS, seen=seen or [], quality=0.5), network


def test_a_found_network_is_a_source_without_its_last_layer(tmp_path: Path) -> None:
    folder, network = found(tmp_path / "found")
    source = resolve(f"file:{folder}")
    assert source.modality == "image"
    loaded = load(source)
    assert loaded.dim == 10
    pixels = torch.from_numpy(loaded.preprocess(images(4))["pixels"])
    with torch.inference_mode():
        features = loaded.encoder(pixels)
        assert features.shape == (4, 10)
        assert torch.allclose(network.head.linear(features), network(pixels), atol=1e-5)
    again, preprocess, info = load_network(folder)
    assert info["quality"] == 0.5 and preprocess == PREPROCESS
    with torch.inference_mode():
        assert torch.equal(again(pixels), network(pixels))


def test_damaged_folders_are_named(tmp_path: Path) -> None:
    folder, _ = found(tmp_path / "found")
    (folder / "network.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RunError, match="is damaged"):
        load_network(folder)
    info = json.loads((folder / "network.json").read_text())
    info["config"]["network"] = "unheard"
    (folder / "network.json").write_text(json.dumps(info))
    with pytest.raises(RunError, match="'unheard' is no kind of network"):
        load_network(folder)
    (folder / "network.json").write_text("{")
    with pytest.raises(RunError, match="holds no network"):
        read_info(folder)


def task(test: list[np.ndarray], folds: bool = False) -> TargetData:
    def rows(inputs: list[np.ndarray]) -> Examples:
        return Examples(inputs, np.zeros(len(inputs), dtype=np.int64), np.arange(len(inputs)))

    return TargetData(
        "image", "classification", "accuracy", ("a", "b"), rows(images(4, 1)), rows(images(3, 2)), rows(test),
        rows([]), "f", np.zeros(4, dtype=np.int64) if folds else np.zeros(0, dtype=np.int64),
    )  # fmt: skip


def test_a_network_that_has_seen_rows_to_be_scored_takes_no_part(tmp_path: Path) -> None:
    train = images(4, 1)
    folder, _ = found(tmp_path / "found", digests(train, "image"))
    assert refused(folder, task(images(5, 3))) == ""
    assert "seen 1 of the 6 test rows" in refused(folder, task([*images(5, 3), train[2]]))
    assert "few labels" in refused(folder, task(images(5, 3), folds=True))
    # The same picture from a file is the same picture.
    Image.fromarray(train[0]).save(tmp_path / "a.png")
    assert digests([str(tmp_path / "a.png")], "image") == digests(train[:1], "image")
    assert digests(["Some  text"], "text") == digests(["some text"], "text")
    assert digests([("a", "b")], "text") != digests(["a b"], "text")
