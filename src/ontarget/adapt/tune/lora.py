"""Low-rank adapters on an encoder's linear layers and dense convolutions, through peft.

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen, "LoRA: Low-rank adaptation of large language models", ICLR 2022,
arXiv 2106.09685: W x + (alpha / r) B A x with W frozen, B zero at the start.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ontarget.errors import SettingError, nearest


@dataclass(frozen=True)
class Adapter:
    """The adapters of a trained encoder in peft's format.

    tensors: peft's names -> weights, relative to the transformers model inside the encoder where there is one.
    config: what ``adapter_config.json`` holds.
    """

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]

    def save(self, folder: Path) -> None:
        """Write the two files that ``peft.PeftModel.from_pretrained`` reads."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(self.tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(dict(self.config), indent=1, sort_keys=True))


def lora_targets(encoder: torch.nn.Module) -> list[str]:
    """Names of the layers that can have an adapter: linear ones, and convolutions that are not grouped."""
    return [
        name
        for name, module in encoder.named_modules()
        if isinstance(module, torch.nn.Linear) or (isinstance(module, torch.nn.Conv2d) and module.groups == 1)
    ]


def add_lora(
    encoder: torch.nn.Module,
    *,
    rank: int = 8,
    alpha: float | None = None,
    dropout: float = 0.0,
    targets: Sequence[str] = (),
    seed: int = 0,
) -> torch.nn.Module:
    """The encoder with adapters in it; they change nothing until they are trained.

    rank >= 1. alpha: 2 * rank by default (choice). dropout: of the adapters' inputs, in [0, 1). targets: layers by
    name or by the last parts of it ("query"); empty: all of `lora_targets`.
    Raises SettingError: values out of range, an encoder without such layers, a target that names none.
    """
    if rank < 1 or not 0 <= dropout < 1:
        raise SettingError(
            f"rank is {rank}, dropout {dropout}.", allowed="rank from 1, dropout in [0, 1)", option="lora"
        )
    from peft import LoraConfig, inject_adapter_in_model

    known = lora_targets(encoder)
    if not known:
        raise SettingError(
            "This source has no linear layer that an adapter could be put on.",
            option="mode",
            next_step="use mode 'full'",
        )
    chosen = known if not targets else [name for name in known if _named(name, targets)]
    for target in targets:
        if not any(_named(name, (target,)) for name in known):
            ends = sorted({name.rpartition(".")[2] for name in known})
            raise SettingError(
                f"No linear layer is called '{target}'.",
                allowed=", ".join(ends),
                option="lora_targets",
                next_step=nearest(target, ends),
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(
            r=rank, lora_alpha=alpha or 2 * rank, lora_dropout=dropout, target_modules=chosen, bias="none"
        )
        adapted: torch.nn.Module = inject_adapter_in_model(config, encoder)
    return adapted


def adapter_of(encoder: torch.nn.Module) -> Adapter:
    """The adapters that are in the encoder now."""
    from peft import get_peft_model_state_dict

    config = next(iter(encoder.peft_config.values())).to_dict()  # type: ignore[operator,union-attr]
    models = (name for name, module in encoder.named_modules() if hasattr(module, "config"))  # the outermost is first
    inner = f"{outer}." if (outer := next(models, "")) else ""
    tensors = {
        "base_model.model." + name.removeprefix(inner): value.detach().cpu().contiguous().clone()
        for name, value in get_peft_model_state_dict(encoder, adapter_name="default").items()
    }
    config["target_modules"] = sorted(name.removeprefix(inner) for name in config["target_modules"])
    config["inference_mode"] = True
    plain = {key: value for key, value in config.items() if _is_plain(value)}
    return Adapter(tensors, {**plain, "peft_type": "LORA"})


def merge_lora(network: torch.nn.Module) -> list[str]:
    """Add the adapters into the weights and put the plain layers back; returns the names of the changed weights."""
    return [f"{name}.weight" for name, layer in _unwrap(network, merged=True) if layer]


def remove_lora(network: torch.nn.Module) -> None:
    """Put the plain layers back as they were."""
    list(_unwrap(network, merged=False))


def _unwrap(network: torch.nn.Module, *, merged: bool) -> Iterator[tuple[str, torch.nn.Module]]:
    from peft.tuners.lora import LoraLayer

    for name, module in list(network.named_modules()):
        if isinstance(module, LoraLayer):
            if merged:
                module.merge(safe_merge=True)  # type: ignore[operator]
            parent, _, child = name.rpartition(".")
            owner = network.get_submodule(parent) if parent else network
            setattr(owner, child, module.get_base_layer())
            yield name, module.get_base_layer()
    for module in network.modules():
        if hasattr(module, "peft_config"):
            del module.peft_config


def _named(name: str, targets: Sequence[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, list, dict))
