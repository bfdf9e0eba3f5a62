"""What a client may ask for, checked: OpenAI's fields, and errors in OpenAI's form.

Fields that would change the answer and are not done here are refused when they are set; fields that change nothing
(user, metadata) are passed over; unknown ones are refused, so that a misspelt option is not lost.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

MOST_STOPS = 4
LONGEST_STOP = 500  # characters
DEFAULT_COMPLETION_TOKENS = 16  # of OpenAI's /v1/completions

# Fields that are allowed with these values alone, which ask for nothing.
NOTHING = {
    "n": (None, 1), "best_of": (None, 1), "echo": (None, False), "suffix": (None, ""), "logprobs": (None, False),
    "top_logprobs": (None, 0), "presence_penalty": (None, 0), "frequency_penalty": (None, 0),
    "logit_bias": (None, {}), "tools": (None, []), "functions": (None, []), "tool_choice": (None, "none", "auto"),
    "function_call": (None, "none", "auto"), "parallel_tool_calls": (None, False, True), "audio": (None,),
    "modalities": (None, ["text"]), "response_format": (None, {"type": "text"}), "reasoning_effort": (None,),
    "prediction": (None,), "verbosity": (None,), "web_search_options": (None,),
}  # fmt: skip
PASSED_OVER = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
               "prompt_cache_retention")  # fmt: skip


class ApiError(Exception):
    """Answered with ``status`` and OpenAI's error object."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        return error_body(self.message, status=self.status, param=self.param, code=self.code)


def error_body(message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = "server_error" if status >= 500 else kinds.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    include_usage: StrictBool = False
    include_obfuscation: StrictBool | None = None  # padding of chunks; there is none


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: StrictStr


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant"]
    content: StrictStr | list[Part]
    # Clients hand an answer back as they got it.
    name: None = None
    refusal: None = None
    audio: None = None
    tool_calls: None = None
    function_call: None = None
    annotations: None = None

    def for_template(self) -> dict[str, str]:
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class Asked(BaseModel):
    """Fields of both kinds of request."""

    model_config = ConfigDict(extra="forbid")
    model: StrictStr
    max_tokens: StrictInt | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, strict=True)
    top_p: float | None = Field(None, ge=0, le=1, strict=True)
    top_k: StrictInt | None = Field(None, ge=0)
    seed: StrictInt | None = Field(None, ge=-(2**63), lt=2**63)
    stop: StrictStr | list[StrictStr] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None

    def stops(self) -> list[str]:
        """Raises ApiError."""
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(found) > MOST_STOPS or any(not 0 < len(stop) <= LONGEST_STOP for stop in found):
            raise ApiError(
                400, f"stop: at most {MOST_STOPS} strings of 1 to {LONGEST_STOP} characters are allowed.", param="stop"
            )
        return found


class ChatRequest(Asked):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: StrictInt | None = Field(None, ge=1)

    def new_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionRequest(Asked):
    prompt: StrictStr | list[StrictInt] | list[StrictStr] | list[list[StrictInt]]

    def new_tokens(self) -> int:
        return DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens

    def one_prompt(self) -> str | list[int]:
        """Text or ids. Raises ApiError: several."""
        if isinstance(self.prompt, str):
            return self.prompt
        ids = [token for token in self.prompt if isinstance(token, int)]
        several = [one for one in self.prompt if not isinstance(one, int)]
        if len(several) > 1:
            raise ApiError(400, f"{len(several)} prompts were sent; one a request is allowed.", param="prompt")
        return several[0] if several else ids


def read_request(body: bytes, kind: type[Asked]) -> Any:
    """The checked request. Raises ApiError."""
    from pydantic_core import from_json

    try:
        fields = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"The body is no JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise ApiError(400, "The body is no JSON object.")
    for name in PASSED_OVER:
        fields.pop(name, None)
    for name, allowed in NOTHING.items():
        value = fields.pop(name, None)
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed):
            raise ApiError(400, f"'{name}' is not supported by this server; leave it out.", param=name,
                           code="unsupported_parameter")  # fmt: skip
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        # Of a field with several types, the place names the type too.
        param = ".".join(str(part) for part in first["loc"] if part != "str" and not str(part).startswith("list["))
        if first["type"] == "extra_forbidden":
            raise ApiError(400, f"Unrecognized request argument: '{param}'.", param=param,
                           code="unknown_parameter") from error  # fmt: skip
        raise ApiError(400, f"{param}: {first['msg']}.", param=param or None) from error
