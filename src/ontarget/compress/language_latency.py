"""Latency of language models: a prompt, and each token after it, at batch 1; side by side in alternating rounds."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from ontarget.pool.language_models import cache_argument


def token_times(model: Any, ids: Any, steps: int) -> tuple[float, list[float]]:
    """Milliseconds of the prompt ``ids`` (1, T), and of each of ``steps`` tokens after it, whose keys and values are
    kept. Call it under `torch.inference_mode`."""
    from transformers import DynamicCache

    last_alone = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    kept, times, given = DynamicCache(config=model.config), [], ids
    for _ in range(steps + 1):
        started = time.perf_counter()
        scores = model(given, use_cache=True, **{cache_argument(model): kept}, **last_alone).logits
        given = scores[:, -1:].argmax(-1)
        int(given)  # waits for the device
        times.append(1e3 * (time.perf_counter() - started))
    return times[0], times[1:]


def side_by_side(
    models: Mapping[str, Any], ids: Any, *, steps: int = 8, rounds: int = 5
) -> dict[str, dict[str, float]]:
    """name -> decode_ms (median over steps and rounds), prefill_ms (median over rounds).

    ids: int64 (1, T), the prompt. A round times every model once; one round before them warms up.
    """
    import torch

    decode: dict[str, list[float]] = {name: [] for name in models}
    prefill: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for at in range(rounds + 1):
            for name, model in models.items():
                first, each = token_times(model, ids, steps)
                if at:
                    prefill[name].append(first)
                    decode[name] += each
    return {name: {"decode_ms": float(np.median(decode[name])), "prefill_ms": float(np.median(prefill[name]))}
            for name in models}  # fmt: skip
