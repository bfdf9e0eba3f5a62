"""Latency of language models side by side: one more token after a prompt, and a prompt; in alternating rounds."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping
from typing import Any

import numpy as np


def side_by_side(
    models: Mapping[str, Any], ids: Any, *, steps: int = 8, rounds: int = 5
) -> dict[str, dict[str, float]]:
    """name -> decode_ms (median over steps and rounds), prefill_ms (median over rounds), at batch 1.

    ids: int64 (1, T), the prompt. A round times every model once; one round before them warms up.
    """
    import torch

    decode: dict[str, list[float]] = {name: [] for name in models}
    prefill: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for at in range(rounds + 1):
            for name, model in models.items():
                first, each = _once(model, ids, steps)
                if at:
                    prefill[name].append(first)
                    decode[name] += each
    return {name: {"decode_ms": float(np.median(decode[name])), "prefill_ms": float(np.median(prefill[name]))}
            for name in models}  # fmt: skip


def _once(model: Any, ids: Any, steps: int) -> tuple[float, list[float]]:
    """Milliseconds of the prompt and of each token after it; the keys and values are kept."""
    from transformers import DynamicCache

    # transformers 5 has given the argument another name.
    argument = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    kept, times, given = DynamicCache(config=model.config), [], ids
    for _ in range(steps + 1):
        started = time.perf_counter()
        scores = model(given, use_cache=True, **{argument: kept}).logits
        times.append(1e3 * (time.perf_counter() - started))
        given = scores[:, -1:].argmax(-1)
    return times[0], times[1:]
