"""Lion: a sign-momentum optimizer with one state tensor.

Chen, Liang, Huang, Real, Wang, Liu, Pham, Dong, Luong, Hsieh, Lu, Le, "Symbolic Discovery of Optimization
Algorithms", NeurIPS 2023, arXiv 2302.06675, algorithm 2. Official code: google/automl, folder lion.
Claim: at least AdamW's quality, more so at large batches, with half of its state.
Left out: the program search that found it.
Checked: tests/parts/test_lion.py (equality with lion-pytorch step by step), claims/18_lion.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ontarget.errors import SettingError


class Lion(torch.optim.Optimizer):
    """w <- w (1 - lr wd) - lr sign(b1 m + (1 - b1) g); m <- b2 m + (1 - b2) g.

    params: parameters or groups. lr: > 0, 3 to 10 times smaller than AdamW's. betas: (b1, b2) in [0, 1); (0.95, 0.98)
    for more stability. weight_decay: >= 0, decoupled, 3 to 10 times AdamW's, so that lr * weight_decay stays.
    Raises SettingError for values out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        if not lr > 0:
            raise SettingError(f"lr is {lr}.", allowed="numbers above 0", option="lr")
        if not all(0 <= beta < 1 for beta in betas):
            raise SettingError(f"betas are {betas}.", allowed="two numbers in [0, 1)", option="betas")
        if not weight_decay >= 0:
            raise SettingError(f"weight_decay is {weight_decay}.", allowed="0 or more", option="weight_decay")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            gradients: list[Tensor] = [weight.grad for weight in weights]
            momenta = []
            for weight in weights:
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                momenta.append(state["momentum"])
            first, second = group["betas"]
            if group["weight_decay"]:
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            # The sign is taken of the interpolation before the momentum moves on.
            updates = torch._foreach_mul(momenta, first)
            torch._foreach_add_(updates, gradients, alpha=1 - first)
            torch._foreach_sign_(updates)
            torch._foreach_add_(weights, updates, alpha=-group["lr"])
            torch._foreach_mul_(momenta, second)
            torch._foreach_add_(momenta, gradients, alpha=1 - second)
        return loss


def adamw_to_lion(lr: float, weight_decay: float, *, factor: float = 5.0) -> tuple[float, float]:
    """Lion's (lr, weight_decay) for AdamW's: lr divided, decay multiplied by ``factor``, so lr * decay stays.

    factor: 3 to 10 (section 5 of the paper); 5 by default (choice). Schedules scale with lr as a whole.
    Raises SettingError for a factor outside 3..10.
    """
    if not 3 <= factor <= 10:
        raise SettingError(f"factor is {factor}.", allowed="3 to 10", option="factor")
    return lr / factor, weight_decay * factor
