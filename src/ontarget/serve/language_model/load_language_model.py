"""A causal language model from a folder or locator, checked whole before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ontarget.errors import DataError, OnTargetError, SettingError, out_of_memory
from ontarget.merge.checkpoint import TOKENIZER_FILES, Checkpoint, read_json
from ontarget.pool.language_models import local_folder

LOCATORS = ("zoo:", "hub:", "file:")
DTYPES = ("float32", "bfloat16", "float16")
UNBOUNDED = 10**9  # tokenizers without a limit name a huge one


@dataclass(frozen=True)
class LanguageModel:
    """window: most tokens of prompt and answer together. tokenizer: of transformers, not shared between threads."""

    name: str
    model: Any
    tokenizer: Any
    window: int


def is_language_model(locator: str) -> bool:
    """Whether ``locator`` names a model and no bundle: a locator, or a folder with config.json."""
    if locator.startswith(LOCATORS):
        return not (Path(locator.removeprefix("file:")) / "bundle.json").exists()
    folder = Path(locator)
    return (folder / "config.json").exists() and not (folder / "bundle.json").exists()


def load_language_model(
    locator: str, *, device: str = "cpu", dtype: str | None = None, window: int | None = None
) -> LanguageModel:
    """dtype: of the weights; float32 on a CPU, what is stored elsewhere. window: the model's own at most.

    Raises DataError: no model there, pickled weights alone, a damaged file, an architecture that transformers cannot
    build or that is no causal language model, weights that are missing, no tokenizer; SettingError for the options.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if dtype is not None and dtype not in DTYPES:
        raise SettingError(f"'{dtype}' is no type of weights.", allowed=", ".join(DTYPES), option="--dtype")
    where = checked_device(device)
    folder = _fetched(locator)
    config = checked_config(folder, locator)
    Checkpoint(folder, locator)  # pickled weights alone, or a damaged file
    tokenizer = _tokenizer(folder, locator)
    stored = "auto" if dtype is None and where.type != "cpu" else getattr(torch, dtype or "float32")
    try:
        model, told = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=stored, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        model = model.to(where).eval()
    except Exception as error:  # transformers raises many kinds for weights that do not fit their config
        if out_of_memory(error):
            raise SettingError(f"'{locator}' does not fit into memory.", option="--dtype",
                               next_step="try bfloat16, or a smaller model") from error  # fmt: skip
        raise DataError(f"'{locator}' cannot be loaded: {error}", next_step="check its files") from error
    wrong = sorted([*told.get("missing_keys", ()), *map(str, told.get("mismatched_keys", ()))])
    if wrong:
        raise DataError(
            f"'{locator}' lacks {len(wrong)} weights of a {type(model).__name__}, '{wrong[0]}' first.",
            allowed="a whole causal language model", next_step="check that it is one: encoders have no head for text",
        )  # fmt: skip
    longest = min(_window(config), int(getattr(tokenizer, "model_max_length", None) or UNBOUNDED))
    if window is not None and not 2 <= window <= longest:
        raise SettingError(f"window is {window}.", allowed=f"2 to {longest}, the model's own", option="--window")
    return LanguageModel(_name(locator), model, tokenizer, window or longest)


def checked_config(folder: Path, locator: str) -> Any:
    """Raises DataError."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if not folder.is_dir() or not (folder / "config.json").exists():
        adapter = folder.is_dir() and (folder / "adapter_config.json").exists()
        raise DataError(
            f"'{locator}' is {'an adapter' if adapter else 'no folder of a model'}: it has no config.json.",
            allowed="a folder with config.json, safetensors and tokenizer",
            next_step="merge it into its base: ontarget merge BASE+ADAPTER -o merged" if adapter else "check the path",
        )  # fmt: skip
    told = read_json(folder / "config.json")
    kind = str(told.get("model_type"))
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or told.get("is_encoder_decoder"):
        code = " It brings its own code, which is not run." if told.get("auto_map") else ""
        raise DataError(
            f"'{locator}' is of the architecture '{kind}', which is no causal language model of transformers.{code}",
            allowed="llama, qwen2, gpt2, mistral and other decoders", next_step="serve another model",
        )  # fmt: skip
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise DataError(f"'{folder / 'config.json'}' cannot be used: {error}", next_step="fetch it again") from error


def checked_device(device: str) -> Any:
    """Raises SettingError: no such device here."""
    import torch

    try:
        where = torch.device(device)
        torch.zeros(1, device=where)
    except (RuntimeError, AssertionError) as error:
        allowed = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        raise SettingError(f"'{device}' cannot be used here.", allowed=allowed, option="--device") from error
    return where


def _fetched(locator: str) -> Path:
    try:
        return local_folder(locator)
    except OnTargetError:
        raise
    except Exception as error:  # the hub's client raises many kinds
        raise DataError(
            f"'{locator}' cannot be fetched: {error}", next_step="check its name and the network"
        ) from error


def _tokenizer(folder: Path, locator: str) -> Any:
    from transformers import AutoTokenizer

    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise DataError(f"'{locator}' has no tokenizer.", allowed=", ".join(TOKENIZER_FILES),
                        next_step="save it beside the model")  # fmt: skip
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise DataError(f"The tokenizer of '{locator}' cannot be loaded: {error}", next_step="save it again") from error


def _window(config: Any) -> int:
    config = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        if isinstance(found := getattr(config, name, None), int) and found > 1:
            return found
    return 2048  # no limit of its own (ALiBi)


def _name(locator: str) -> str:
    if locator.startswith(("zoo:", "hub:")):
        return locator[4:]
    return Path(locator.removeprefix("file:")).resolve().name
