"""A tiny random Llama with a tokenizer of words, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

WORDS = 40


def write_tiny_llama(folder: Path, *, tied: bool = True, dtype: torch.dtype = torch.float32, **more: Any) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    told = {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "intermediate_size": 40, "max_position_embeddings": 64}  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**{**told, **more}, tie_word_embeddings=tied))
    model.to(dtype).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{at:02d}": at for at in range(WORDS)}, unk_token="w00"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w01").save_pretrained(folder)
    return folder


def sentences(count: int, length: int = 12, seed: int = 0) -> list[str]:
    """Texts in which a word is mostly followed by the next one."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        at, words = int(generator.integers(2, WORDS)), []
        for _ in range(length):
            words.append(f"w{at:02d}")
            at = 2 + (at - 1) % (WORDS - 2) if generator.random() < 0.7 else int(generator.integers(2, WORDS))
        found.append(" ".join(words))
    return found
