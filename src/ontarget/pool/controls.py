"""Controls: what a source has to beat. Random weights, raw pixels, the features as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from ontarget.pool.source import Source
from ontarget.runtime.preprocess import Preprocess
from ontarget.values import Loaded

PIXELS = 16  # side of the pixel control's images (choice)


class Flat(torch.nn.Module):
    """(N, ...) -> (N, D)."""

    def forward(self, values: Tensor) -> Tensor:
        return values.flatten(1)


def load_pixels(source: Source) -> Loaded:
    """Images of 16 x 16 colour pixels on the 0..1 scale, flattened: (N, 768)."""
    size = source.image_size or PIXELS
    settings = {
        "size": size,
        "crop": 1.0,
        "interpolation": "bilinear",
        "mean": [0.0] * 3,
        "std": [1.0] * 3,
        "channels": 3,
    }
    return Loaded(source.locator, Preprocess("image", settings), Flat().eval(), 3 * size * size)


def load_array(dim: int) -> Loaded:
    """Ready-made features (N, dim), unchanged."""
    return Loaded(f"control:array-{dim}", Preprocess("array", {"dim": dim}), Flat().eval(), dim)


def load_random(source: Source, trained: Loaded, *, seed: int = 0) -> Loaded:
    """The architecture of ``trained`` with weights drawn anew, by each layer's own initialisation."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in trained.encoder.modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
                torch.nn.init.normal_(module.weight, std=0.02)
                if isinstance(getattr(module, "bias", None), Tensor):
                    torch.nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            elif isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, (torch.nn.LayerNorm, torch.nn.BatchNorm2d)):
                module.reset_parameters()
    return Loaded(source.locator, trained.preprocess, trained.encoder.eval(), trained.dim)
