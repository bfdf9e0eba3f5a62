"""What AdAutoMix mixes with: draws, the mixer that turns maps of features into masks, a classifier with two heads.

Qin et al., "Adversarial AutoMixup", ICLR 2024, arXiv 2312.11954, section 3 and the official code; the training is in
`ontarget.augment.adautomix`. S images are mixed at a time. With maps f_i (N, D, h, w) of the images:

    query_i = relu(W_q f_i), key_i = relu(W_k f_i) with d channels, value_i = W_v f_i with one; all 1 x 1 convolutions
    A_i = softmax(query_i . sum_(j != i) key_j / sqrt(d)) over positions;  masks = softmax over i of resized A_i value_i

>>> mixer = Mixer(channels=16)
>>> mixer([torch.randn(4, 16, 7, 7) for _ in range(3)], torch.tensor([0.2, 0.3, 0.5]), (28, 28)).shape
torch.Size([4, 3, 28, 28])
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ontarget.errors import SettingError


def draw_permutations(rows: int, samples: int, generator: np.random.Generator) -> Tensor:
    """(S, N) int64: which rows are mixed; each line is a permutation."""
    return torch.from_numpy(np.stack([generator.permutation(rows) for _ in range(samples)]))


def draw_ratios(samples: int, alpha: float, generator: np.random.Generator) -> Tensor:
    """(S,) float32 with sum 1: each from Beta(alpha, alpha), divided by their sum."""
    drawn = generator.beta(alpha, alpha, samples)
    return torch.from_numpy(drawn / drawn.sum()).float()


def mix(images: Tensor, permutations: Tensor, masks: Tensor) -> Tensor:
    """sum_s masks[:, s] images[permutations[s]]. images (N, C, H, W), masks (N or 1, S, H or 1, W or 1)."""
    parts = [masks[:, s, None] * images[rows] for s, rows in enumerate(permutations)]
    return torch.stack(parts).sum(0)


def classifier_masks(masks: Tensor, ratios: Tensor, margin: float = 0.03) -> Tensor:
    """The mixer's masks as constants; the ratios at every pixel where the first ratio is within margin of 0 or 1."""
    if margin > 0 and not margin < float(ratios[0]) <= 1 - margin:
        return ratios.view(1, -1, 1, 1).expand_as(masks)
    return masks.detach()


class Mixer(nn.Module):
    """Maps of S images and their ratios -> one mask an image, with sum 1 at every pixel.

    channels: of the maps. reduction: queries and keys have channels // reduction. with_ratios: each map gets its ratio
    as one more channel, as in the code's settings for large images.
    """

    def __init__(self, channels: int, *, reduction: int = 2, with_ratios: bool = False) -> None:
        super().__init__()
        self.with_ratios, self.width = with_ratios, max(channels // reduction, 1)
        inside = channels + int(with_ratios)
        self.query, self.key = nn.Conv2d(inside, self.width, 1), nn.Conv2d(inside, self.width, 1)
        self.value = nn.Conv2d(inside, 1, 1)
        for layer in (self.query, self.key, self.value):  # so that masks are even at first
            start_small(layer)

    def forward(self, maps: Sequence[Tensor], ratios: Tensor, size: tuple[int, int]) -> Tensor:
        """maps: S times (N, D, h, w). ratios: (S,). size: (H, W) of the images. Returns (N, S, H, W), sum 1 over S."""
        if self.with_ratios:
            maps = [torch.cat([one, ratio.expand(len(one), 1, *one.shape[2:])], 1) for one, ratio in zip(maps, ratios)]
        queries = [functional.relu(self.query(one)).flatten(2).transpose(1, 2) for one in maps]  # (N, hw, d)
        keys = [functional.relu(self.key(one)).flatten(2) for one in maps]  # (N, d, hw)
        every = torch.stack(keys).sum(0)
        found = []
        for one, query, key in zip(maps, queries, keys):
            attention = torch.softmax(query @ (every - key) / math.sqrt(self.width), dim=-1)
            found.append((attention @ self.value(one).flatten(2).transpose(1, 2)).transpose(1, 2))
        small = torch.cat(found, 1).reshape(len(maps[0]), len(maps), *maps[0].shape[2:])
        return functional.interpolate(small, size=size, mode="bilinear", align_corners=False).softmax(1)


class TwoHeads(nn.Module):
    """Images -> logits (N, C) of the one-hot head; the mix head is for training.

    backbone: images (N, C, H, W) -> (map of a stage (N, D, h, w), pooled features (N, F)), such as `TimmStage`.
    """

    def __init__(self, backbone: nn.Module, pooled: int, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.one_hot, self.mix = nn.Linear(pooled, classes), nn.Linear(pooled, classes)
        for head in (self.one_hot, self.mix):
            start_small(head)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.one_hot(self.backbone(images)[1])
        return logits

    def mixed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(map, logits of the mix head)."""
        stage, pooled = self.backbone(images)
        return stage, self.mix(pooled)


class TimmStage(nn.Module):
    """A timm network as a backbone: (map of a stage (N, D, h, w), pooled features (N, F)).

    stage: index as of timm's ``forward_intermediates``; ResNet's third stage, as in the paper, is 3.
    """

    def __init__(self, network: Any, stage: int) -> None:
        super().__init__()
        self.network, self.stage = network, stage

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        last, maps = self.network.forward_intermediates(images, indices=[self.stage])
        return maps[0], self.network.forward_head(last, pre_logits=True)


def backbone_widths(backbone: nn.Module, images: Tensor) -> tuple[int, int]:
    """Channels of the backbone's map and of its pooled features. Raises SettingError: it does not return these two."""
    first = next(backbone.parameters(), images)
    with torch.no_grad():
        found = backbone.eval()(images[:2].to(first.device))
    if not isinstance(found, (tuple, list)) or len(found) != 2 or found[0].ndim != 4 or found[1].ndim != 2:
        raise SettingError(
            "The backbone does not return a map and pooled features.",
            allowed="(map (N, D, h, w), pooled features (N, F))",
            option="backbone",
            next_step="wrap a timm network in TimmStage",
        )
    return int(found[0].shape[1]), int(found[1].shape[1])


@contextmanager
def statistics_kept(network: nn.Module) -> Iterator[None]:
    """Batch norm normalises by the batch and leaves its running statistics alone."""
    norms = [part for part in network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    before = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, tracked in zip(norms, before):
            norm.track_running_stats = tracked


def start_small(layer: nn.Conv2d | nn.Linear) -> None:
    """Normal with deviation 0.01 and no bias, as the code starts its mixer and its heads."""
    nn.init.normal_(layer.weight, std=0.01)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
