"""A tiny causal language model of words, as a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def write_word_model(folder: Path, *, tied: bool = True, **more: Any) -> Path:
    """40 words, a window of 64; inner width 40, so that groups do not fill it."""
    from ontarget.testing.tiny_llama import word_tokenizer, write_tiny_llama

    settings = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 40,
                "max_position_embeddings": 64, "initializer_range": 0.02}  # fmt: skip
    return write_tiny_llama(folder, word_tokenizer(), **{**settings, **more}, tie_word_embeddings=tied)


@pytest.fixture
def word_model() -> Callable[..., Path]:
    return write_word_model
