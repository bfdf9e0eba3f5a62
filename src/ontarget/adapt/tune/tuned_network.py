"""The network that is fine-tuned: before training, and rebuilt from what training has stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ontarget.adapt.tune.assembled import Assembled
from ontarget.adapt.tune.linear_head import LinearHead, linear_head
from ontarget.adapt.tune.lora import add_lora
from ontarget.errors import DataError, RunError, SettingError
from ontarget.values import Array, Context, Examples, Loaded

PROBE_LOGIT = 2.0  # spread of the logits that a probe may start with (choice)


class Scaled(torch.nn.Module):
    """A linear head that learns standardised targets and gives them in their own units: (N, D) -> (N, C)."""

    def __init__(self, dim: int, outputs: int, *, mean: float = 0.0, spread: float = 1.0) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(dim, outputs)
        self.register_buffer("mean", torch.tensor(float(mean)))
        self.register_buffer("spread", torch.tensor(float(spread)))

    def forward(self, features: Tensor) -> Tensor:
        scores: Tensor = self.linear(features) * self.spread + self.mean
        return scores


def build(
    loaded: Loaded,
    train: Examples,
    *,
    outputs: int,
    kind: str,
    mode: str,
    lora_rank: int = 8,
    lora_alpha: float | None = None,
    lora_dropout: float = 0.0,
    lora_targets: Sequence[str] = (),
    probe: bool = True,
    head_init: LinearHead | None = None,
    class_weight: str = "none",
    context: Context = Context(),
) -> Assembled:
    """Encoder and head before training; ``loaded.encoder`` gets adapters in mode "lora".

    The head is ``head_init``, or a linear probe on frozen features with ``probe``, or random.
    """
    mean, spread = 0.0, 1.0
    if kind == "regression":
        mean, spread = float(train.targets.mean()), float(train.targets.std()) or 1.0
    head = Scaled(loaded.dim, outputs, mean=mean, spread=spread)
    if head_init is not None or probe:
        needed = head_init is None or kind == "classification"
        features = np.asarray(_features(loaded, train, context)) if needed else None
        found = head_init or _probe(features, train, outputs=outputs, kind=kind, class_weight=class_weight)
        if found.weight.shape != (outputs, loaded.dim):
            raise DataError(f"The head's weights are {found.weight.shape}, not ({outputs}, {loaded.dim}).")
        _start_from(head, found, features if kind == "classification" else None)
    encoder = loaded.encoder
    if mode == "lora":
        encoder = add_lora(
            encoder, rank=lora_rank, alpha=lora_alpha, dropout=lora_dropout, targets=lora_targets, seed=context.seed
        )
    return Assembled(encoder, head)


def network_from_state(loaded: Loaded, state: Mapping[str, Tensor], *, outputs: int, **_: Any) -> Assembled:
    """The trained network from its source and the tensors that `finetune` gave as ``state``."""
    network = Assembled(loaded.encoder, Scaled(loaded.dim, outputs))
    expected = network.state_dict()
    for name, value in state.items():
        if name not in expected or expected[name].shape != value.shape:
            raise RunError(f"The trained tensor '{name}' does not fit {loaded.locator}.")
    if not {"head.linear.weight", "head.linear.bias"} <= set(state):
        raise RunError(f"The trained tensors for {loaded.locator} lack the head.")
    network.load_state_dict(dict(state), strict=False)
    return network.eval()


def _features(loaded: Loaded, train: Examples, context: Context) -> Array:
    from ontarget.pool.features import cached_features, extract
    from ontarget.pool.source import resolve

    try:
        source = resolve(loaded.locator)
    except SettingError:  # a network of the caller's own
        return extract(loaded, train.inputs, context=context)
    return cached_features(source, loaded, train.inputs, context=context)[0]


def _probe(features: Any, train: Examples, *, outputs: int, kind: Any, class_weight: str) -> LinearHead:
    balanced = "balanced" if class_weight == "balanced" else None
    return linear_head(features, train.targets, outputs=outputs, kind=kind, class_weight=balanced)  # type: ignore[arg-type]


def _start_from(head: Scaled, found: LinearHead, features: Array | None) -> None:
    """A probe that separates its rows has logits without bound, and gradients as large: the head starts tamer."""
    tame = 1.0
    if features is not None:
        tame = min(1.0, PROBE_LOGIT / max(1e-12, float(np.std(features @ found.weight.T))))
    mean, spread = float(head.mean), float(head.spread)  # type: ignore[arg-type]
    with torch.no_grad():
        head.linear.weight.copy_(torch.from_numpy(tame * found.weight / spread))
        head.linear.bias.copy_(torch.from_numpy(tame * (found.bias - mean) / spread))
