"""Causal language models of the pool: where they lie, how they are loaded, how a prompt becomes tokens.

Weights are read from safetensors alone; a model's own Python code is not run.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ontarget.errors import DataError, OnTargetError, SettingError, out_of_memory

DEFAULT = "zoo:smollm2-135m"
DTYPES = ("float32", "bfloat16", "float16")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt")
UNBOUNDED = 10**9  # tokenizers without a limit name a huge one
NO_WINDOW = 2048  # of models without a limit of their own, as those with ALiBi (choice)


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model in memory, in evaluation mode.

    stop_ids: tokens that end an answer. window: tokens of prompt and answer together, at most.
    """

    locator: str
    folder: Path
    model: Any
    tokenizer: Any
    stop_ids: tuple[int, ...]
    window: int

    @property
    def name(self) -> str:
        """The last part of the locator."""
        if self.locator.startswith(("zoo:", "hub:")):
            return self.locator[4:]
        return Path(self.locator.removeprefix("file:")).resolve().name

    def prompt_ids(self, prompt: str, instruction: str = "") -> list[int]:
        """Tokens of a prompt, up to where the answer begins: by the model's chat template, where it has one.

        Raises DataError: a prompt that fills the window.
        """
        if getattr(self.tokenizer, "chat_template", None):
            ids = self.tokenizer(self._chat(prompt, instruction), add_special_tokens=False).input_ids
        else:
            text = f"{instruction}\n\n{prompt}\n" if instruction else f"{prompt}\n"
            ids = self.tokenizer(text).input_ids
            if len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id:
                ids = ids[:-1]
        if len(ids) >= self.window:
            raise DataError(f"The prompt '{prompt[:60]}...' has {len(ids):,} tokens.",
                            allowed=f"fewer than the model's window of {self.window:,}", option="--input",
                            next_step="shorten the prompts, or take a model with a longer window")  # fmt: skip
        return list(ids)

    def answer_ids(self, answer: str) -> list[int]:
        """Tokens of an answer and of its end."""
        return [*self.tokenizer(answer, add_special_tokens=False).input_ids, self.stop_ids[0]]

    def text(self, ids: Sequence[int]) -> str:
        """The answer that tokens write, up to its end."""
        end = next((at for at, token in enumerate(ids) if token in self.stop_ids), len(ids))
        return str(self.tokenizer.decode(list(ids[:end]), skip_special_tokens=True)).strip()

    def _chat(self, prompt: str, instruction: str) -> str:
        said = [{"role": "user", "content": prompt}]
        if instruction:
            said.insert(0, {"role": "system", "content": instruction})
        try:
            return str(self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # templates raise what they like
            if not instruction:
                raise DataError(f"The chat template of {self.locator} fails: {error}") from error
            # Some know no system message.
            said = [{"role": "user", "content": f"{instruction}\n\n{prompt}"}]
            return str(self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True))


def local_folder(locator: str) -> Path:
    """Folder or file of a model; ``hub:`` is fetched, safetensors, config and tokenizer alone."""
    if locator.startswith("hub:"):
        from huggingface_hub import snapshot_download

        wanted = ["*.safetensors", "*.json", "tokenizer*", "vocab*", "merges.txt", "*.jinja"]
        return Path(snapshot_download(locator.removeprefix("hub:"), allow_patterns=wanted))
    if locator == DEFAULT:
        from ontarget.pool import resolve
        from ontarget.pool.text_encoders import smollm2_folder

        return smollm2_folder(resolve(locator))
    folder = Path(locator.removeprefix("file:"))
    if not folder.exists():
        raise DataError(f"There is no '{folder}'.", next_step="check the path, or write hub:org/name")
    return folder


def is_language_model(locator: str) -> bool:
    """Whether ``locator`` names a model and no bundle of another kind: a locator, or a folder with config.json."""
    folder = Path(locator.removeprefix("file:"))
    if (folder / "bundle.json").exists():
        return False
    return locator.startswith(("zoo:", "hub:", "file:")) or (folder / "config.json").exists()


def load_language_model(
    locator: str, *, dtype: str | None = "float32", device: str = "cpu", window: int | None = None
) -> LanguageModel:
    """A causal language model from ``zoo:smollm2-135m``, ``hub:org/name`` or a folder; everything is checked first.

    dtype: float32, bfloat16, float16; None: as stored. A folder of `ontarget compress` stays in its few bits with None
    on a CPU that has a kernel for them, for answering alone; a type writes its weights out. window: tokens, at most the
    model's own, which None takes.
    Raises DataError: no model there, pickled weights alone, a damaged file, an architecture that transformers does not
    know or that does not write text, weights that are missing, no tokenizer; SettingError for the options.
    """
    from transformers.utils import logging

    from ontarget.compress.packed_checkpoint import is_packed
    from ontarget.device import check_device

    if dtype is not None and dtype not in DTYPES:
        raise SettingError(f"'{dtype}' is no type of weights.", allowed=", ".join(DTYPES), option="--dtype")
    check_device(device)
    logging.disable_progress_bar()
    folder = fetched_folder(locator)
    config = _config(folder, locator)
    if not any(folder.glob("*.safetensors")):
        pickled = any(path for pattern in PICKLES for path in folder.glob(pattern))
        what = "pickled weights alone, which can run code and are not read" if pickled else "0 safetensors files"
        raise DataError(f"'{locator}' has {what}.", allowed="safetensors",
                        next_step="save the model again with safe_serialization")  # fmt: skip
    tokenizer = _tokenizer(folder, locator)
    try:
        model = _packed(folder, dtype, device) if is_packed(folder) else _whole(folder, config, locator, dtype)
        model = model.to(device).eval()
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise SettingError(f"'{locator}' does not fit into memory.", option="--dtype",
                           next_step="try bfloat16, or a smaller model") from error  # fmt: skip
    if model.get_input_embeddings().weight.shape[0] < len(tokenizer):
        raise DataError(f"The tokenizer of '{locator}' knows {len(tokenizer):,} tokens, more than the model.",
                        next_step="bring the tokenizer that belongs to the model")  # fmt: skip
    longest = min(_window(config), int(getattr(tokenizer, "model_max_length", None) or UNBOUNDED))
    if window is not None and not 2 <= window <= longest:
        raise SettingError(f"window is {window}.", allowed=f"2 to {longest}, the model's own", option="--window")
    return LanguageModel(locator, folder, model, tokenizer, _stop_ids(model, tokenizer), window or longest)


def _packed(folder: Path, dtype: str | None, device: str) -> Any:
    from ontarget.compress.packed_checkpoint import load_dequantized, load_to_answer
    from ontarget.device import return_memory

    if dtype is None and device == "cpu":
        model = load_to_answer(folder)
    else:
        model = load_dequantized(folder, dtype=dtype or "bfloat16")  # few bits have no kernel elsewhere
    return_memory()  # of what was read
    return model


def _whole(folder: Path, config: Any, locator: str, dtype: str | None) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model, told = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=getattr(torch, dtype) if dtype else "auto", use_safetensors=True,
            trust_remote_code=False, local_files_only=True, output_loading_info=True,
        )  # fmt: skip
    except Exception as error:  # safetensors and transformers raise many kinds
        if out_of_memory(error):
            raise
        raise DataError(f"'{locator}' cannot be loaded from model.safetensors ({type(error).__name__}: {error}).",
                        next_step="check that its files are whole") from error  # fmt: skip
    wrong = sorted([*told.get("missing_keys", ()), *map(str, told.get("mismatched_keys", ()))])
    if wrong:
        raise DataError(
            f"'{locator}' is no causal language model that is whole: it lacks {len(wrong)} weights of a "
            f"{type(model).__name__}, '{wrong[0]}' first.",
            next_step="check that it is one: encoders have no head for text",
        )
    return model


def cache_argument(module: Any) -> str:
    """What a module of transformers calls the argument for keys and values; version 5 has given it another name."""
    return "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"


def fetched_folder(locator: str) -> Path:
    """`local_folder`; raises DataError also where the hub cannot be reached or knows no such model."""
    try:
        return local_folder(locator)
    except OnTargetError:
        raise
    except Exception as error:  # the hub's client raises many kinds
        raise DataError(
            f"'{locator}' cannot be fetched: {error}", next_step="check its name and the network"
        ) from error


def _config(folder: Path, locator: str) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    path = folder / "config.json"
    if not path.is_file():
        adapter = (folder / "adapter_config.json").exists()
        raise DataError(
            f"'{locator}' is {'an adapter' if adapter else 'no folder of a model'}: it has no config.json.",
            allowed="a folder with config.json, safetensors and tokenizer",
            next_step="merge it into its base: ontarget merge BASE+ADAPTER -o merged" if adapter else "check the path",
        )  # fmt: skip
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        kind = str(told.get("model_type"))
    except (ValueError, AttributeError) as error:
        raise DataError(f"'{path}' is no JSON object ({error}).", next_step="fetch the model again") from error
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or told.get("is_encoder_decoder"):
        code = " It brings its own code, which is not run." if told.get("auto_map") else ""
        raise DataError(
            f"'{locator}' is of the architecture '{kind}', which is no causal language model of transformers.{code}",
            allowed="llama, qwen2, gpt2, mistral and other decoders", next_step="take one, such as zoo:smollm2-135m",
        )  # fmt: skip
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # configs of any kind
        raise DataError(f"'{path}' cannot be used: {error}", next_step="fetch the model again") from error


def _tokenizer(folder: Path, locator: str) -> Any:
    from transformers import AutoTokenizer

    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise DataError(f"'{locator}' has no tokenizer.", allowed=", ".join(TOKENIZER_FILES),
                        next_step="save it beside the model")  # fmt: skip
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise DataError(f"The tokenizer of '{locator}' cannot be loaded: {error}", next_step="save it again") from error


def _stop_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """First the one that ends an answer in the model's chat, then the others."""
    known = getattr(model.generation_config, "eos_token_id", None)
    found = [tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])]
    found = [token for token in dict.fromkeys(found) if token is not None]
    if getattr(tokenizer, "chat_template", None):
        said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            text = str(tokenizer.apply_chat_template(said, tokenize=False))
            after = tokenizer(text.rpartition("b")[2], add_special_tokens=False).input_ids
            found = list(dict.fromkeys([*[token for token in after if token in found][:1], *found]))
        except Exception:  # a template that takes no assistant's words
            pass
    if not found:
        raise DataError("The tokenizer has no token that ends an answer.", next_step="set its eos_token")
    return tuple(int(token) for token in found)


def _window(config: Any) -> int:
    config = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        if isinstance(found := getattr(config, name, None), int) and found > 1:
            return found
    return NO_WINDOW
