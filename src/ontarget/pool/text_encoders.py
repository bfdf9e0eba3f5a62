"""Transformers as text encoders: mean of the last hidden states over the tokens that are no padding."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ontarget.errors import SettingError
from ontarget.pool.source import Source
from ontarget.runtime.preprocess import Preprocess
from ontarget.values import Loaded


class MeanPooled(torch.nn.Module):
    """input_ids, attention_mask int64 (N, T) -> (N, D) float32: masked mean, scaled to length 1 if ``normalise``."""

    def __init__(self, model: torch.nn.Module, *, normalise: bool) -> None:
        super().__init__()
        self.model = model
        self.normalise = normalise

    def extra_repr(self) -> str:
        return f"normalise={self.normalise}"  # part of the features' cache key

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled: Tensor = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)
        return torch.nn.functional.normalize(pooled, dim=1) if self.normalise else pooled


def package_folder(module: str) -> Path:
    """Folder of an installed package, without importing it."""
    found = importlib.util.find_spec(module)
    assert found is not None and found.origin is not None
    return Path(found.origin).parent


def load_minilm(source: Source, max_length: int) -> Loaded:
    """all-MiniLM-L6-v2, pooled and scaled as its authors do (sentence-transformers, modules.json)."""
    folder = package_folder(source.package) / "model"
    return load_transformer(source.locator, str(folder), max_length, local=True, normalise=True)


def load_transformer(locator: str, name: str, max_length: int, *, local: bool, normalise: bool | None = None) -> Loaded:
    """A transformers model by folder or hub name: safetensors alone, no remote code.

    normalise: whether features are scaled to length 1; None reads it from sentence-transformers' modules.json.
    """
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local, trust_remote_code=False)
        model, info = AutoModel.from_pretrained(
            name,
            local_files_only=local,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError) as error:
        raise SettingError(
            f"'{locator}' cannot be loaded: {str(error).splitlines()[0]}",
            allowed="models with config.json, model.safetensors and tokenizer.json",
            option="--pool",
            next_step="check the name and the network, or download the model and use file:PATH",
        ) from error
    limit = int(getattr(model.config, "max_position_embeddings", max_length) or max_length)
    # Poolers are not used here, and many checkpoints lack them; anything else would run on random weights.
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if missing:
        raise SettingError(
            f"The weights of '{locator}' lack {len(missing)} tensors of its architecture, e.g. {missing[0]}.",
            option="--pool",
            next_step="choose a checkpoint of the whole encoder",
        )
    if normalise is None:
        normalise = _normalises(name, local=local)
    encoder = MeanPooled(model, normalise=normalise).eval()
    preprocess = tokens_preprocess(tokenizer, min(max_length, limit))
    return Loaded(locator, preprocess, encoder, int(model.config.hidden_size))


def _normalises(name: str, *, local: bool) -> bool:
    """Whether sentence-transformers' modules.json beside the model ends in scaling to length 1."""
    from transformers.utils import cached_file

    try:
        path = cached_file(name, "modules.json", local_files_only=local, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):
        return False
    return path is not None and any("Normalize" in module["type"] for module in json.loads(Path(path).read_text()))


def tokens_preprocess(tokenizer: Any, max_length: int) -> Preprocess:
    """Preprocessing by a fast tokenizer of transformers."""
    if not getattr(tokenizer, "is_fast", False):
        raise SettingError(
            f"The tokenizer {type(tokenizer).__name__} has no fast version.",
            next_step="choose a source with a tokenizer.json",
        )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0)
    content = tokenizer.backend_tokenizer.to_str().encode()
    return Preprocess("tokens", {"max_length": max_length, "pad_id": int(pad)}, {"tokenizer.json": content})


def load_smollm2(source: Source, max_length: int) -> Loaded:
    """SmolLM2-135M as an encoder: mean of its last hidden states."""
    folder = smollm2_folder(source)
    return load_transformer(source.locator, str(folder), max_length, local=True, normalise=False)


def smollm2_folder(source: Source) -> Path:
    """Folder of SmolLM2-135M as a causal language model; the package's GGUF file is converted once."""
    from ontarget.pool.cache import cache_folder

    folder = cache_folder() / "converted" / f"{source.requirement.replace('==', '-')}-causal"
    if not (folder / "model.safetensors").exists():
        _convert_gguf(package_folder(source.package), "SmolLM2-135M-Instruct.Q4_1.gguf", folder)
    return folder


def _unpacked() -> dict[str, Any]:
    """Newer versions of transformers keep GGUF weights packed unless told otherwise; older ones always unpack them."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def _convert_gguf(package: Path, name: str, folder: Path) -> None:
    """Weights as float16 safetensors (they were 4-bit) and the tokenizer; whole or not at all."""
    import os
    import shutil
    import tempfile

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ontarget.errors import require_extra

    require_extra("gguf", "zoo", "Reading SmolLM2's weights")
    require_extra("accelerate", "zoo", "Reading SmolLM2's weights")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        model = AutoModelForCausalLM.from_pretrained(str(package), gguf_file=name, dtype=torch.float32, **_unpacked())
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.half().save_pretrained(partial)
        AutoTokenizer.from_pretrained(str(package), gguf_file=name).save_pretrained(partial)
        try:
            os.rename(partial, folder)
        except OSError:
            if not (folder / "model.safetensors").exists():  # else another process was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
