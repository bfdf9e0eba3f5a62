"""Which way of stepping is right for a model: decided by its config and proven on it before it is served."""

from __future__ import annotations

from typing import Any

import torch

from ontarget.errors import DataError
from ontarget.serve.language_model.forward import BatchedForward, Forward, SteppedForward

PROMPTS = ((3, 1, 4, 1, 5, 9, 2), (2, 7, 1))
STEPS = 3
TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}  # of the logits' spread
ROTATIONS = (None, "default", "linear", "llama3", "yarn")  # others turn all rows by the longest one's length


def choose_forward(model: Any, slots: int) -> Forward:
    """Batched where the model attends to everything before and gives what it gives alone; else stepped in turn.

    Raises DataError: the model does not continue from its cache as it reads a whole text.
    """
    if slots > 1 and attends_to_all(model.config):
        try:
            if error_of(model, BatchedForward(model, len(PROMPTS))) is None:
                return BatchedForward(model, slots)
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
            pass  # a model of another make; it is tried in turn
    name = type(model).__name__
    try:
        wrong = error_of(model, SteppedForward(model, len(PROMPTS)))
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DataError(
            f"{name} cannot generate from a cache here ({error}).", next_step="serve another model"
        ) from error
    if wrong is not None:
        raise DataError(
            f"{name} is no causal language model here: {wrong}.", allowed="models that read from left to right",
            next_step="serve another model",
        )  # fmt: skip
    return SteppedForward(model, slots)


def attends_to_all(config: Any) -> bool:
    """No sliding windows, chunks, or rotations that depend on the longest row."""
    config = config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    rotation = rope.get("rope_type", rope.get("type")) if isinstance(rope, dict) else None
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    chunked = getattr(config, "attention_chunk_size", None)
    return set(kinds) == {"full_attention"} and not windowed and not chunked and rotation in ROTATIONS


@torch.inference_mode()
def error_of(model: Any, forward: Forward) -> str | None:
    """What differs between stepping two texts of different lengths and reading each as a whole, or None."""
    vocabulary = model.config.get_text_config().vocab_size
    texts = [[token % vocabulary for token in prompt] for prompt in PROMPTS]
    for row, text in enumerate(texts):
        logits = forward.fill(row, text[:2], 0)
        logits = forward.fill(row, text[2:], 2)
    for step in range(STEPS):
        tokens = [(step + 2 * row) % vocabulary for row in range(len(texts))]
        logits = forward.decode(tokens, [len(text) for text in texts])
        for row, text in enumerate(texts):
            text.append(tokens[row])
            ids = torch.tensor([text], device=model.device)
            expected = model(input_ids=ids, use_cache=False).logits[0, -1].float()
            if not expected.isfinite().all():
                return "its logits are not finite"
            difference = float((logits[row] - expected).abs().max() / (expected.max() - expected.min()).clamp(min=1e-6))
            if not difference <= TOLERANCE.get(model.dtype, 1e-3):
                return f"its logits differ by {difference:.2g} of their spread when it goes on from its cache"
    return None
