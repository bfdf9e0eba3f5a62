"""Causal language models of the pool: where they lie, how they are loaded, how a prompt becomes tokens.

Weights are read from safetensors alone; a model's own Python code is not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ontarget.errors import DataError

DEFAULT = "zoo:smollm2-135m"


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


def load_language_model(locator: str, *, dtype: str = "float32", device: str = "cpu") -> LanguageModel:
    """A causal language model from ``zoo:smollm2-135m``, ``hub:org/name`` or a folder.

    dtype: float32, bfloat16, float16. Raises DataError: no model there, pickled weights alone, a damaged file, an
    architecture that transformers does not know or that does not write text, no tokenizer.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = local_folder(locator)
    if not (folder / "config.json").is_file():
        raise DataError(f"'{folder}' is no model: it has no config.json.", next_step="give a model's folder")
    if not any(folder.glob("*.safetensors")):
        found = ", ".join(sorted(path.name for path in folder.glob("*.bin"))) or "no weights"
        raise DataError(f"'{folder}' has no safetensors file ({found}).", allowed="safetensors: pickles are not read",
                        next_step="save the model again with safe_serialization")  # fmt: skip
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise DataError(f"The model in '{folder}' is of no kind that is known: {error}") from error
    if type(config) not in AutoModelForCausalLM._model_mapping or getattr(config, "is_encoder_decoder", False):
        raise DataError(f"The model in '{folder}' ({config.model_type}) is no causal language model.",
                        next_step="take one, such as zoo:smollm2-135m")  # fmt: skip
    try:
        model, told = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # safetensors, tokenizers and transformers raise many kinds
        raise DataError(f"The model in '{folder}' cannot be loaded ({type(error).__name__}: {error}).",
                        next_step="check that its files are whole") from error  # fmt: skip
    if missing := sorted(told.get("missing_keys", ())):
        raise DataError(
            f"The model in '{folder}' is no causal language model that is whole: it lacks {len(missing)} weights of a "
            f"{type(model).__name__}, '{missing[0]}' first.",
            next_step="check that it is one: encoders have no head for text",
        )
    if model.get_input_embeddings().weight.shape[0] < len(tokenizer):
        raise DataError(f"The tokenizer in '{folder}' knows {len(tokenizer):,} tokens, more than the model.",
                        next_step="bring the tokenizer that belongs to the model")  # fmt: skip
    return LanguageModel(
        locator, folder, model.eval().to(device), tokenizer, _stop_ids(model, tokenizer), _window(config)
    )


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
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1 << 20)
