"""Causal language models with random weights and tokenizers of their own: small enough to be made in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 .,:?+=-\n"
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def tiny_llama(seed: int = 0, **settings: Any) -> Any:
    """A Llama of 2 blocks, 32 wide, over 40 tokens, in evaluation mode; ``settings`` are of its config.

    Its weights are large enough that greedy text is not one token repeated.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    usual = {
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**{**usual, **settings})).eval()


def letter_tokenizer() -> Any:
    """A token for each of LETTERS, after <end> (0) and <unknown> (1)."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {"<end>": 0, "<unknown>": 1, **{letter: at + 2 for at, letter in enumerate(LETTERS)}}
    tokenizer: Any = Tokenizer(models.WordLevel(known, unk_token="<unknown>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Split(Regex("."), "isolated"), decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unknown>", pad_token="<end>"
    )


def word_tokenizer(count: int = 40) -> Any:
    """Words w00, w01, ... in white space; w00 is unknown, w01 ends a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer: Any = Tokenizer(models.WordLevel({f"w{at:02d}": at for at in range(count)}, unk_token="w00"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w01")


def byte_tokenizer(template: str | None = CHAT) -> Any:
    """The 256 bytes, <s> (256) and </s> (257), with a chat template or none."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {letter: at for at, letter in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "<s>", "</s>"])}
    tokenizer: Any = Tokenizer(models.BPE(known, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    made.chat_template = template
    return made


def write_tiny_llama(folder: Path, tokenizer: Any, seed: int = 0, *, dtype: str = "float32", **settings: Any) -> Path:
    """A folder of `tiny_llama` with ``tokenizer``, whose size and end it has."""
    import torch

    ends = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    tiny_llama(seed, **{**ends, **settings}).to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
