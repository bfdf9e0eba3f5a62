"""Prompts to token ids, and how many new tokens fit behind them."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ontarget.adapt.judge_answers import with_examples
from ontarget.serve.language_bundle import INFO
from ontarget.serve.language_model.openai_requests import ApiError, Message


@dataclass(frozen=True)
class ChatStart:
    """How a fitted model was asked. instruction: for chats that bring no system message of their own. examples: solved
    prompts before that of a chat of one message."""

    instruction: str = ""
    examples: tuple[tuple[str, str], ...] = ()

    def before(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        if self.examples and [message["role"] for message in messages if message["role"] != "system"] == ["user"]:
            asked = with_examples(messages[-1]["content"], self.examples)
            messages = [*messages[:-1], {**messages[-1], "content": asked}]
        if self.instruction and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.instruction}, *messages]
        return messages


def chat_start_of(folder: Path) -> ChatStart:
    """That of a bundle of a language model; none for other folders."""
    if not (folder / INFO).is_file():
        return ChatStart()
    info = json.loads((folder / INFO).read_text(encoding="utf-8"))
    return ChatStart(str(info["instruction"]), tuple((str(asked), str(said)) for asked, said in info["examples"]))


class Prompts:
    """Of one model; from one thread at a time. most_new: of one answer."""

    def __init__(
        self, tokenizer: Any, *, window: int, vocabulary: int, most_new: int, start: ChatStart = ChatStart()
    ) -> None:
        self._start = start
        self._tokenizer, self.window, self.vocabulary, self.most_new = tokenizer, window, vocabulary, most_new
        self._special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        # A text longer than this cannot fit, so that it is refused before the work of splitting it.
        self._most_characters = window * max((len(token) for token in tokenizer.get_vocab()), default=1)

    def of_chat(self, messages: Sequence[Message]) -> list[int]:
        """Ids by the chat template. What looks like a special token in a message is read as the letters that it is made
        of, so that no message can end itself and speak for another role. Raises ApiError: there is no template, it
        refuses the roles, or the text is too long."""
        if not getattr(self._tokenizer, "chat_template", None):
            raise ApiError(400, "This model's tokenizer has no chat template; use /v1/completions with a prompt.",
                           param="messages", code="no_chat_template")  # fmt: skip
        given = self._start.before([message.for_template() for message in messages])
        self._check_characters(sum(len(message["content"]) for message in given), "messages")
        if any(token in message["content"] for message in given for token in self._special):
            return self._apart(given)
        return self._ids(self._rendered(given), special=False)

    def _rendered(self, messages: list[dict[str, str]]) -> str:
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # templates raise errors of their own
            raise ApiError(
                400, f"The model's chat template refuses these messages: {error}.", param="messages"
            ) from error

    def _apart(self, messages: list[dict[str, str]]) -> list[int]:
        """Ids of the template's text and of the messages' contents, each split into tokens by itself."""
        mark = secrets.token_hex(16)  # nobody can have written it
        marked = [{**message, "content": f"{mark}{at}{mark}"} for at, message in enumerate(messages)]
        parts = re.split(f"{mark}([0-9]+){mark}", self._rendered(marked))
        ids: list[int] = []
        for at, part in enumerate(parts):
            if at % 2:
                content = messages[int(part)]["content"]
                ids += self._tokenizer(content, add_special_tokens=False, split_special_tokens=True, verbose=False)[
                    "input_ids"
                ]
            elif part:
                ids += self._ids(part, special=False)
        return ids

    def of_text(self, prompt: str | list[int]) -> list[int]:
        """Ids, with what the tokenizer puts before a text. Raises ApiError: none, ids of no token, or too long."""
        if isinstance(prompt, str):
            self._check_characters(len(prompt), "prompt")
            ids = self._ids(prompt, special=True)
            if not ids and self._tokenizer.bos_token_id is not None:
                ids = [self._tokenizer.bos_token_id]
        else:
            ids = prompt
        if not ids:
            raise ApiError(400, "The prompt is empty.", param="prompt")
        if not all(0 <= token < self.vocabulary for token in ids):
            raise ApiError(400, f"Token ids from 0 to {self.vocabulary - 1} are allowed.", param="prompt")
        return ids

    def new_tokens(self, prompt: int, asked: int | None, *, name: str = "max_tokens", default: int = 2**31) -> int:
        """How many to make after a prompt of so many tokens. Raises ApiError with `context_length_exceeded`."""
        if asked is not None and asked > self.most_new:
            raise ApiError(400, f"{name} is {asked}; at most {self.most_new} are allowed by this server.", param=name)
        if prompt + (asked or 1) > self.window:
            raise self._too_long(
                f"the prompt has {prompt} tokens{f' and {asked} new ones were asked for' if asked else ''}", name
            )
        return asked or min(default, self.most_new, self.window - prompt)

    def _ids(self, text: str, *, special: bool) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])

    def _check_characters(self, count: int, param: str) -> None:
        if count > self._most_characters:
            raise self._too_long(f"the text has {count} characters", param)

    def _too_long(self, found: str, param: str) -> ApiError:
        return ApiError(
            400, f"This model's window is {self.window} tokens; {found}.", param=param, code="context_length_exceeded"
        )
