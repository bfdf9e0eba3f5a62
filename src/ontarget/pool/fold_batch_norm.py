"""BatchNorm folded into the convolution before it: the same outputs from fewer passes over memory.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018
(arXiv 1712.05877), section 3.2: w' = w gamma / sigma, b' = beta + (b - mu) gamma / sigma, through PyTorch's own fusion.
"""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

TOLERANCE = 1e-3  # of the largest output, between the network and its folded copy (choice)


def fold_batch_norm(network: nn.Module, sample: tuple[Tensor, ...]) -> nn.Module:
    """A copy of ``network`` for inference with its BatchNorms folded, or ``network`` itself where it cannot be folded.

    network: in evaluation mode; unchanged. A BatchNorm is taken to follow the convolution that is registered before it
    in the same module; outputs for ``sample``, a few rows, decide whether that was right.
    """
    if network.training or not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return network
    folded = copy.deepcopy(network)
    try:
        _fold(folded)
    except (ValueError, RuntimeError):  # shapes that do not fit: not a pair
        return network
    folded = folded.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected, found = network(*sample), folded(*sample)
    bound = TOLERANCE * float(expected.abs().max())
    return folded if float((found - expected).abs().max()) <= bound else network


def _fold(module: nn.Module) -> None:
    children = list(module.named_children())
    for (conv_name, conv), (norm_name, norm) in pairwise(children):
        if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
            continue
        # timm's BatchNormAct2d holds what follows it: dropout (nothing in evaluation mode) and an activation.
        rest = [getattr(norm, name) for name in ("drop", "act") if isinstance(getattr(norm, name, None), nn.Module)]
        setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
        setattr(module, norm_name, nn.Sequential(*rest) if rest else nn.Identity())
    for _, child in children:
        _fold(child)
