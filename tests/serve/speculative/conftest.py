"""Tiny random targets and heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch


def make_tiny_llama(seed: int = 0, **changed: Any) -> Any:
    """A Llama of two layers over 40 tokens, its weights large enough that greedy text is not one token repeated."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    settings = {
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3,
    } | changed  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**settings)).eval()


@pytest.fixture
def tiny_llama() -> Callable[..., Any]:
    return make_tiny_llama
