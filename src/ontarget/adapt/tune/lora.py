"""Low-rank adapters on an encoder's linear layers and dense convolutions, through peft.

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen, "LoRA: Low-rank adaptation of large language models", ICLR 2022,
arXiv 2106.09685: W x + (alpha / r) B A x with W frozen, B zero at the start.
"""

from __future__ import annotations

import torch

from ontarget.adapt.tune.assembled import Assembled
from ontarget.errors import SettingError


def lora_targets(encoder: torch.nn.Module) -> list[str]:
    """Names of the layers that get an adapter: linear ones, and 1 x 1 convolutions that are not grouped."""
    return [
        name
        for name, module in encoder.named_modules()
        if isinstance(module, torch.nn.Linear)
        or (isinstance(module, torch.nn.Conv2d) and module.groups == 1 and module.kernel_size == (1, 1))
    ]


def add_lora(encoder: torch.nn.Module, *, rank: int = 8, alpha: int | None = None, seed: int = 0) -> torch.nn.Module:
    """The encoder with adapters of ``rank`` (alpha 2 * rank by default, choice). Raises SettingError without layers."""
    from peft import LoraConfig, inject_adapter_in_model

    targets = lora_targets(encoder)
    if not targets:
        raise SettingError(
            "This source has no linear layer that an adapter could be put on.",
            option="mode",
            next_step="use mode 'full'",
        )
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=alpha or 2 * rank, lora_dropout=0.0, target_modules=targets, bias="none")
    adapted: torch.nn.Module = inject_adapter_in_model(config, encoder)
    return adapted


def merge_lora(network: Assembled) -> Assembled:
    """The network with adapters added into the weights, and the plain layers back in place."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(network.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()  # type: ignore[operator]
            parent, _, child = name.rpartition(".")
            owner = network.get_submodule(parent) if parent else network
            setattr(owner, child, module.get_base_layer())
    return network
