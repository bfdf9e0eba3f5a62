"""A plain mobile CNN from a config of JSON values: stem, inverted bottlenecks (MBConv), head.

Blocks as in MobileNetV2 (Sandler et al., CVPR 2018, arXiv 1801.04381) with kernels of 3, 5 or 7; see
`search.mobile_space` for the space that such configs come from. Nothing here knows about search.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ontarget.errors import SettingError


class MBConv(nn.Module):
    """Inverted bottleneck (N, in, H, W) -> (N, out, H / stride, W / stride); no shortcut, which the block adds.

    expansion 1 leaves the first convolution out. kernel: odd.
    """

    def __init__(self, inputs: int, outputs: int, *, kernel: int, expansion: int, stride: int = 1) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[tuple[str, nn.Module]] = []
        if expansion > 1:
            layers += [
                ("expand", nn.Conv2d(inputs, hidden, 1, bias=False)),
                ("expand_norm", nn.BatchNorm2d(hidden)),
                ("expand_activation", nn.ReLU6(inplace=True)),
            ]
        layers += [
            ("depthwise", nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False)),
            ("depthwise_norm", nn.BatchNorm2d(hidden)),
            ("depthwise_activation", nn.ReLU6(inplace=True)),
            ("project", nn.Conv2d(hidden, outputs, 1, bias=False)),
            ("project_norm", nn.BatchNorm2d(outputs)),
        ]
        self.layers = nn.Sequential(OrderedDict(layers))

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.layers(images)
        return result


class Residual(nn.Module):
    """``x + block(x)``."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = images + self.block(images)
        return result


def stem(channels: int, width: int, stride: int) -> nn.Sequential:
    """3 x 3 convolution, BatchNorm, ReLU6."""
    convolution = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU6(inplace=True))


class Head(nn.Module):
    """(N, in, H, W) -> (N, C): 1 x 1 convolution to ``width``, BatchNorm, ReLU6, mean over positions, linear."""

    def __init__(self, inputs: int, width: int, outputs: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6(inplace=True))
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, outputs)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.linear(self.dropout(self.mix(images).mean((2, 3))))
        return scores


class MobileNetwork(nn.Module):
    """pixels (N, channels, H, W) float -> scores (N, C).

    config: ``channels``, ``outputs``, ``stem`` {width, stride}, ``blocks`` [{in, out, kernel, expansion, stride,
    residual}, ...], ``head`` {width}, and ``dropout`` (0). Raises SettingError for blocks that do not fit together.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        _check(config)
        self.stem = stem(config["channels"], config["stem"]["width"], config["stem"]["stride"])
        blocks: list[nn.Module] = []
        width = config["stem"]["width"]
        for entry in config["blocks"]:
            block: nn.Module = MBConv(
                entry["in"], entry["out"], kernel=entry["kernel"], expansion=entry["expansion"], stride=entry["stride"]
            )
            blocks.append(Residual(block) if entry["residual"] else block)
            width = entry["out"]
        self.blocks = nn.Sequential(*blocks)
        self.head = Head(width, config["head"]["width"], config["outputs"], dropout=config.get("dropout", 0.0))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        self.to(memory_format=torch.channels_last)  # depthwise convolutions train about twice as fast on CPUs

    def forward(self, pixels: Tensor) -> Tensor:
        scores: Tensor = self.head(self.blocks(self.stem(pixels)))
        return scores


def _check(config: Mapping[str, Any]) -> None:
    missing = [name for name in ("channels", "outputs", "stem", "blocks", "head") if name not in config]
    if missing:
        raise SettingError(f"The network's config has no '{missing[0]}'.", option="config")
    width = config["stem"]["width"]
    for at, entry in enumerate(config["blocks"]):
        if entry["in"] != width:
            raise SettingError(f"Block {at} takes {entry['in']} channels and is given {width}.", option="config")
        if entry["residual"] and (entry["in"] != entry["out"] or entry["stride"] != 1):
            raise SettingError(f"Block {at} has a shortcut but changes the shape.", option="config")
        if entry["kernel"] % 2 == 0 or entry["expansion"] < 1 or entry["stride"] < 1:
            raise SettingError(
                f"Block {at} has kernel {entry['kernel']}, expansion {entry['expansion']}, stride {entry['stride']}.",
                allowed="an odd kernel, expansion and stride of 1 or more", option="config",
            )  # fmt: skip
        width = entry["out"]


def parameters_mb(network: torch.nn.Module) -> float:
    """Size of the weights as they are, 2**20 bytes."""
    total = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    return float(total) / 2**20
