"""Which weights are trained, at which rate and decay, and how the rate goes over the steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch

from ontarget.errors import SettingError
from ontarget.parts.optimizers.lion import Lion, adamw_to_lion

Mode = Literal["full", "lora", "last"]
WARM_UP_SHARE = 0.1  # of all steps (choice)
EMBEDDING_ROWS = 2048  # larger tables are word embeddings


def trainable(network: torch.nn.Module, mode: str, *, last_blocks: int = 2) -> dict[str, torch.nn.Parameter]:
    """The parameters to train, by name; all others are frozen. ``network`` has the parts ``encoder`` and ``head``.

    "full": all but word embeddings, unless there is nothing else. (choice: in MiniLM they are half of the weights;
    training them costs 141 MiB for gradient and moments, 45 MiB a stored model.)
    "lora": adapters and head. "last": the ``last_blocks`` last blocks, what comes after them, and the head.
    """
    named = dict(network.named_parameters())
    encoder = [name for name in named if name.startswith("encoder.")]
    if mode == "lora":
        chosen = {name for name in encoder if ".lora_" in name}
    else:
        tables = {
            id(module.weight)
            for module in network.modules()
            if isinstance(module, torch.nn.Embedding) and module.num_embeddings > EMBEDDING_ROWS
        }
        chosen = {name for name in encoder if id(named[name]) not in tables} or set(encoder)
        if mode == "last":
            start = _first_parameter(network, encoder, last_blocks)
            chosen &= set(encoder[start:])
    chosen |= {name for name in named if name.startswith("head.")}
    for name, parameter in named.items():
        parameter.requires_grad_(name in chosen)
    return {name: parameter for name, parameter in named.items() if name in chosen}


def blocks_of(encoder: torch.nn.Module) -> list[torch.nn.Module]:
    """The encoder's stack of blocks: of its lists of modules the one with the most weights; empty without any."""
    stacks = [
        list(module)
        for module in encoder.modules()
        if isinstance(module, (torch.nn.ModuleList, torch.nn.Sequential)) and len(module) > 1
    ]
    return max(stacks, key=lambda stack: sum(_size(block) for block in stack), default=[])


def _size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _first_parameter(network: torch.nn.Module, names: list[str], last_blocks: int) -> int:
    """Position of the first parameter of the trained blocks: modules are registered in the order of their use."""
    blocks = blocks_of(network.get_submodule("encoder"))
    if not blocks:
        raise SettingError(
            "This source has no stack of blocks of which the last could be trained.",
            option="mode",
            next_step="use mode 'full'",
        )
    if last_blocks < 1:
        raise SettingError(f"last_blocks is {last_blocks}.", allowed="1 or more", option="last_blocks")
    trained = [id(parameter) for block in blocks[-last_blocks:] for parameter in block.parameters()]
    identity = {name: id(parameter) for name, parameter in network.named_parameters()}
    return min(at for at, name in enumerate(names) if identity[name] in set(trained))


def make_optimizer(
    trained: Mapping[str, torch.nn.Parameter],
    name: str,
    *,
    learning_rate: float,
    weight_decay: float,
    head_factor: float = 1.0,
) -> torch.optim.Optimizer:
    """AdamW or Lion over four groups: encoder and head, with and without decay.

    Vectors (biases, norms) are not decayed, under either optimizer. learning_rate and weight_decay are AdamW's; for
    Lion they are converted. The head's rate is ``head_factor`` times as high.
    """
    if name not in ("adamw", "lion"):
        raise SettingError(f"optimizer is '{name}'.", allowed="adamw, lion", option="optimizer")
    if name == "lion":
        learning_rate, weight_decay = adamw_to_lion(learning_rate, weight_decay)
    groups = []
    for is_head in (False, True):
        for decayed in (True, False):
            chosen = [
                parameter
                for key, parameter in trained.items()
                if key.startswith("head.") == is_head and (parameter.ndim > 1) == decayed
            ]
            if chosen:
                rate = learning_rate * (head_factor if is_head else 1.0)
                groups.append({"params": chosen, "lr": rate, "weight_decay": weight_decay if decayed else 0.0})
    # The fused step takes a quarter of the time of the foreach one on CPUs (21 against 90 ms for MiniLM).
    return Lion(groups) if name == "lion" else torch.optim.AdamW(groups, fused=True)


def warm_up_cosine(steps: int) -> Callable[[int], float]:
    """Factor of the learning rate at a step: linear up over the first tenth, then half a cosine down to 0."""
    warm_up = max(1, round(WARM_UP_SHARE * steps))

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1, steps - warm_up))))

    return factor
