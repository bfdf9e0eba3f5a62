"""OpenAI's HTTP API over a decoding thread: chat, completions, models, and a health that counts.

Left out, and refused where it is asked for: several choices, log probabilities, penalties, tools, images.
"""

# No postponed annotations here: FastAPI reads those of the handlers, which are defined inside `make_app`.
import asyncio
import copy
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from ontarget.errors import SettingError, require_extra
from ontarget.pool.language_models import LanguageModel
from ontarget.serve.language_model.batch_decoder import BatchDecoder, Generation
from ontarget.serve.language_model.choose_forward import choose_forward
from ontarget.serve.language_model.decoding_thread import Closed, DecodingThread, Piece, QueueFull, Ticket
from ontarget.serve.language_model.draft_decoding import DraftDecoding
from ontarget.serve.language_model.event_stream import EventStream, unless_gone
from ontarget.serve.language_model.openai_requests import (
    DEFAULT_COMPLETION_TOKENS,
    ApiError,
    Asked,
    ChatRequest,
    CompletionRequest,
    error_body,
    read_request,
)
from ontarget.serve.language_model.prompts import ChatStart, Prompts
from ontarget.serve.language_model.sampling import Sampling

READING_S = 30.0  # more than the time limit, for a client that reads slowly


@dataclass(frozen=True)
class LanguageLimits:
    """slots: requests that run at once. queue: that may wait; more are answered with 429. max_tokens: of one answer.

    timeout_s: from a request's arrival to its end. max_body_mb: of a request, 2**20 bytes.
    """

    slots: int = 4
    queue: int = 16
    max_tokens: int = 1024
    timeout_s: float = 300.0
    max_body_mb: float = 10.0

    def __post_init__(self) -> None:
        for name, least in (("slots", 1), ("queue", 0), ("max_tokens", 1)):
            if getattr(self, name) < least:
                raise SettingError(f"{name} is {getattr(self, name)}.", allowed=f"{least} or more",
                                   option=f"--{name.replace('_', '-')}")  # fmt: skip
        for name in ("timeout_s", "max_body_mb"):
            if not getattr(self, name) > 0:
                raise SettingError(f"{name} is {getattr(self, name)}.", allowed="numbers above 0",
                                   option=f"--{name.replace('_', '-')}")  # fmt: skip


@dataclass(frozen=True)
class Form:
    """How one of the two endpoints writes its answers. whole, chunk: the names of their objects."""

    prefix: str
    whole: str
    chunk: str
    choice: Callable[[str], dict[str, Any]]
    delta: Callable[[str], dict[str, Any]]
    first: dict[str, Any] | None = None
    last: dict[str, Any] | None = None


CHAT = Form(
    "chatcmpl", "chat.completion", "chat.completion.chunk",
    choice=lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    delta=lambda text: {"delta": {"content": text}},
    first={"delta": {"role": "assistant", "content": ""}}, last={"delta": {}},
)  # fmt: skip
TEXT = Form(
    "cmpl", "text_completion", "text_completion", choice=lambda text: {"text": text}, delta=lambda text: {"text": text},
    last={"text": ""},
)  # fmt: skip


def make_thread(model: LanguageModel, limits: LanguageLimits, *, draft: DraftDecoding | None = None) -> DecodingThread:
    """The running decoder of a model. Raises DataError: it cannot be decoded step by step."""
    forward = choose_forward(model.model, limits.slots)
    alone = None if draft is None else draft.alone
    decoder = BatchDecoder(forward, slots=limits.slots, end_ids=model.stop_ids, alone=alone)
    own = copy.deepcopy(model.tokenizer)  # tokenizers refuse to be used from two threads at once
    decode = partial(own.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return DecodingThread(decoder, decode, queue=limits.queue)


def make_app(
    model: LanguageModel, thread: DecodingThread, limits: LanguageLimits = LanguageLimits(), *,
    api_key: str | None = None, start: ChatStart = ChatStart(), draft: DraftDecoding | None = None,
) -> Any:  # fmt: skip
    """The FastAPI application. It closes ``thread`` when it is shut down. start: of a fitted model's chats. draft: that
    of ``thread``, for /health."""
    require_extra("fastapi", "serve", "Serving a language model")
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    from ontarget.serve.server import BodyLimit

    if api_key == "":
        raise SettingError("The API key is empty.", allowed="one character or more", option="--api-key")
    created = int(time.time())
    vocabulary = model.model.config.get_text_config().vocab_size
    prompts = Prompts(
        model.tokenizer, window=model.window, vocabulary=vocabulary, most_new=limits.max_tokens, start=start
    )
    tokenizing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        thread.close()
        tokenizing.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(title=f"OnTarget: {model.name}", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_middleware(
        BodyLimit, max_bytes=int(limits.max_body_mb * 2**20), body_of=partial(error_body, code="body_too_large")
    )
    if api_key is not None:
        app.add_middleware(KeyCheck, api_key=api_key)  # outermost: without the key no body is read

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body, status_code=error.status, headers=error.headers)

    @app.exception_handler(HTTPException)
    async def no_such_path(request: Request, error: HTTPException) -> JSONResponse:
        text = f"{request.method} {request.url.path}: {error.detail}."
        return JSONResponse(error_body(text, status=error.status_code), status_code=error.status_code)

    def card() -> dict[str, Any]:
        return {"id": model.name, "object": "model", "created": created, "owned_by": "ontarget"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card()]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        check_name(name)
        return card()

    @app.get("/health")
    async def health() -> dict[str, Any]:
        known = {"status": "ok", "model": model.name, "window": model.window, "requests": thread.counts()}
        return known if draft is None else {**known, "draft": draft.status()}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Any:
        asked: ChatRequest = read_request(await request.body(), ChatRequest)
        check_name(asked.model)
        ids = await off_loop(prompts.of_chat, asked.messages)
        name = "max_tokens" if asked.max_completion_tokens is None else "max_completion_tokens"
        return await answer(request, asked, ids, prompts.new_tokens(len(ids), asked.new_tokens(), name=name), CHAT)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Any:
        asked: CompletionRequest = read_request(await request.body(), CompletionRequest)
        check_name(asked.model)
        ids = await off_loop(prompts.of_text, asked.one_prompt())
        new = prompts.new_tokens(len(ids), asked.max_tokens, default=DEFAULT_COMPLETION_TOKENS)
        return await answer(request, asked, ids, new, TEXT)

    def check_name(name: str) -> None:
        if name != model.name:
            raise ApiError(404, f"There is no model '{name}' here; '{model.name}' is served.", param="model",
                           code="model_not_found")  # fmt: skip

    async def off_loop(function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(tokenizing, function, *arguments)

    async def answer(request: Request, asked: Asked, ids: list[int], new: int, form: Form) -> Any:
        stops = asked.stops()
        sampling = Sampling(
            1.0 if asked.temperature is None else asked.temperature, 1.0 if asked.top_p is None else asked.top_p,
            asked.top_k or 0, asked.seed,
        )  # fmt: skip
        if asked.stream_options is not None and not asked.stream:
            raise ApiError(400, "stream_options is allowed with stream alone.", param="stream_options")
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Piece]()

        def deliver(piece: Piece) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        generation = Generation(ids, sampling, new)
        try:
            ticket = thread.submit(generation, deliver, stops=stops, timeout_s=limits.timeout_s)
        except QueueFull as error:
            raise ApiError(429, f"{error.given} Try again in a moment.", code="queue_full",
                           headers={"Retry-After": "1"}) from error  # fmt: skip
        except Closed as error:
            raise ApiError(503, error.given, code="server_stopping") from error
        base = {"id": f"{form.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model.name}
        if asked.stream:
            with_usage = asked.stream_options is not None and asked.stream_options.include_usage
            events = _events(pieces, {**base, "object": form.chunk}, form, len(ids), with_usage)
            return EventStream(events, on_end=partial(thread.cancel, ticket), timeout_s=limits.timeout_s + READING_S)
        found = await _collected(request, thread, ticket, pieces)
        if found is None:
            return JSONResponse(error_body("The client has gone."), status_code=499)  # nobody reads it
        text, last = found
        if last.finish not in ("stop", "length"):
            raise failure(last)
        choice = {"index": 0, **form.choice(text), "logprobs": None, "finish_reason": last.finish}
        return JSONResponse({**base, "object": form.whole, "choices": [choice], "usage": _usage(len(ids), last.tokens)})

    return app


def failure(last: Piece) -> ApiError:
    """The error of a request that ended neither by a stop nor by its length."""
    # OpenAI's clients try again after 5xx; a text that took too long would take as long again.
    again = {"x-should-retry": "false"}
    if last.finish == "timeout":
        return ApiError(503, f"The time limit was reached after {last.tokens} tokens; ask for fewer.", code="timeout",
                        headers=again)  # fmt: skip
    if last.finish == "closed":
        return ApiError(503, "The server is stopping.", code="server_stopping")
    return ApiError(500, "The model failed on this request; the server's log says why.", code="model_failed",
                    headers=again)  # fmt: skip


class KeyCheck:
    """Answers 401 unless the header Authorization holds the key; /health is open, for those who watch the server."""

    def __init__(self, app: Any, *, api_key: str) -> None:
        self.app, self._expected = app, f"Bearer {api_key}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] == "/health":
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        if hmac.compare_digest(given, self._expected):
            await self.app(scope, receive, send)
            return
        text = "No API key was sent." if not given else "The API key is wrong."
        body = json.dumps(error_body(text, status=401, code="invalid_api_key")).encode()
        headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def _collected(
    request: Any, thread: DecodingThread, ticket: Ticket, pieces: "asyncio.Queue[Piece]"
) -> tuple[str, Piece] | None:
    """The whole text and its last piece; None if the client has gone."""

    async def collect() -> tuple[str, Piece]:
        texts: list[str] = []
        while True:
            piece = await pieces.get()
            texts.append(piece.text)
            if piece.finish is not None:
                return "".join(texts), piece

    try:
        found: tuple[str, Piece] | None = await unless_gone(collect(), request.receive)
        return found
    finally:
        thread.cancel(ticket)


async def _events(
    pieces: "asyncio.Queue[Piece]", base: dict[str, Any], form: Form, prompt: int, with_usage: bool
) -> AsyncIterator[dict[str, Any]]:
    usage: dict[str, Any] = {"usage": None} if with_usage else {}

    def chunk(part: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {**base, "choices": [{"index": 0, **part, "logprobs": None, "finish_reason": finish}], **usage}

    if form.first is not None:
        yield chunk(form.first)
    while True:
        piece = await pieces.get()
        if piece.text:
            yield chunk(form.delta(piece.text))
        if piece.finish is None:
            continue
        if piece.finish not in ("stop", "length"):
            yield failure(piece).body
            return
        yield chunk(form.last or {}, piece.finish)
        if with_usage:
            yield {**base, "choices": [], "usage": _usage(prompt, piece.tokens)}
        return


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
