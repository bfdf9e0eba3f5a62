"""The state of a training between two epochs, in one file: a killed training goes on as if it had not been killed."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ontarget.errors import RunError


def save_state(path: Path, generator: np.random.Generator, **parts: Any) -> None:
    """Write state dicts, tensors and plain values, and the states of torch's and of ``generator``'s randomness."""
    from ontarget.plan.run_folder import write_atomic

    buffer = io.BytesIO()
    numbers = json.dumps(generator.bit_generator.state)
    torch.save({**parts, "generator": numbers, "torch_generator": torch.get_rng_state()}, buffer)
    write_atomic(path, buffer.getvalue())


def load_state(path: Path | None, generator: np.random.Generator) -> dict[str, Any] | None:
    """What `save_state` wrote, both randomnesses set to it; None where there is no file. Raises RunError if damaged."""
    if path is None or not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        generator.bit_generator.state = json.loads(state.pop("generator"))
        torch.set_rng_state(state.pop("torch_generator"))
    except Exception as error:  # pickle, zip and torch raise a dozen kinds for damaged files
        raise RunError(
            f"{path} is damaged ({type(error).__name__}).", next_step="delete it: the training starts again"
        ) from error
    return state
