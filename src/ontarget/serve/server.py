"""A bundle over HTTP: prediction, health, self-test, OpenAPI and a page to try it on, within stated limits.

What a client sends is never trusted: the body is counted while it arrives, rows, types and image pixels are
checked before any work, and a request that takes too long is answered with 503 while its work runs out.
"""

# No postponed annotations here: FastAPI reads those of the handlers, which are defined inside `make_app`.
import asyncio
import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ontarget.errors import SettingError, require_extra
from ontarget.serve.open_port import answer_until_interrupted, start_answering, take_port

MAX_TEXT_CHARACTERS = 100_000
MAX_REQUEST_PIXELS = 25_000_000


@dataclass(frozen=True)
class ServerLimits:
    """max_body_mb: of a request, 2**20 bytes. max_rows: of one request. timeout_s: until the answer 503.

    max_waiting: requests that may wait for the model; more are answered with 503 at once.
    """

    max_body_mb: float = 10.0
    max_rows: int = 256
    timeout_s: float = 30.0
    max_waiting: int = 64
    max_characters: int = MAX_TEXT_CHARACTERS
    max_pixels: int = MAX_REQUEST_PIXELS

    def __post_init__(self) -> None:
        for name in ("max_body_mb", "max_rows", "timeout_s", "max_waiting", "max_characters", "max_pixels"):
            if getattr(self, name) <= 0:
                raise SettingError(f"{name} is {getattr(self, name)}.", allowed="numbers above 0", option=f"--{name}")


class Refused(Exception):
    """A request that is answered with ``status`` and a sentence that says what is allowed."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


def make_app(bundle: Any, limits: ServerLimits = ServerLimits()) -> Any:
    """The FastAPI application that serves ``bundle`` (see runtime.load_bundle)."""
    require_extra("fastapi", "serve", "Serving a bundle")
    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse, JSONResponse
    from pydantic import BaseModel, ConfigDict, Field

    info = bundle.info
    modality = info["modality"]
    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
    waiting = asyncio.Semaphore(limits.max_waiting)

    class Rows(BaseModel):
        model_config = ConfigDict(
            extra="forbid", json_schema_extra={"examples": [{"rows": [_example(modality, info)]}]}
        )
        rows: list[Any] = Field(description=_row_description(modality, info), min_length=1, max_length=limits.max_rows)

    class Prediction(BaseModel):
        predictions: list[dict[str, Any]]

    app = FastAPI(
        title=f"OnTarget: {info.get('name', 'model')}",
        version=str(info.get("created") or "1"),
        description=f"{info['kind']} of {modality}. At most {limits.max_rows} rows and {limits.max_body_mb:g} MiB a "
        f"request, {limits.timeout_s:g} s.",
        docs_url="/docs",
        redoc_url=None,
    )
    app.add_middleware(BodyLimit, max_bytes=int(limits.max_body_mb * 2**20))

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        headers = {"Retry-After": "1"} if error.status == 503 else None
        return JSONResponse({"detail": error.detail}, status_code=error.status, headers=headers)

    async def in_worker(function: Any, *arguments: Any) -> Any:
        if waiting.locked():
            raise Refused(503, f"{limits.max_waiting} requests are waiting already; try again in a moment.")
        async with waiting:
            future = asyncio.get_running_loop().run_in_executor(worker, function, *arguments)
            try:
                # The work cannot be interrupted; shielded, it ends in its thread and the client is not kept.
                return await asyncio.wait_for(asyncio.shield(future), limits.timeout_s)
            except TimeoutError as error:
                raise Refused(503, f"No answer within {limits.timeout_s:g} s; send fewer rows.") from error

    def predicted(rows: list[Any]) -> list[dict[str, Any]]:
        from ontarget.runtime.preprocess import InputError

        try:
            predictions: list[dict[str, Any]] = bundle.predict(rows)
        except InputError as error:
            raise Refused(422, str(error)) from error
        return predictions

    @app.post("/predict", response_model=Prediction, summary="Predict rows")
    async def predict(body: Rows) -> dict[str, Any]:
        rows = _checked_rows(body.rows, modality, info, limits)
        return {"predictions": await in_worker(predicted, rows)}

    if modality == "image":
        from fastapi import File, UploadFile

        @app.post("/predict/images", response_model=Prediction, summary="Predict uploaded images")
        async def predict_images(files: list[UploadFile] = File(...)) -> dict[str, Any]:
            if len(files) > limits.max_rows:
                raise Refused(422, f"{len(files)} images were sent; at most {limits.max_rows} are allowed.")
            contents = [await file.read() for file in files]
            images = [_checked_image(content, row, limits) for row, content in enumerate(contents)]
            return {"predictions": await in_worker(predicted, images)}

    @app.get("/health", summary="Is the model loaded?")
    async def health() -> dict[str, Any]:
        return {
            "status": "ok",
            "name": info.get("name"),
            "modality": modality,
            "kind": info["kind"],
            "classes": info.get("classes", []),
            "form": info.get("form"),
            "limits": {
                "max_rows": limits.max_rows,
                "max_body_mb": limits.max_body_mb,
                "timeout_s": limits.timeout_s,
            },
        }

    @app.get("/self-test", summary="Run the bundle's self-test here")
    async def self_test() -> JSONResponse:
        result = await in_worker(bundle.self_test)
        return JSONResponse(result, status_code=200 if result["passed"] else 500)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> str:
        from ontarget.serve.page import try_page

        return try_page(info, max_rows=limits.max_rows, max_body_mb=limits.max_body_mb)

    return app


def serve_bundle(
    path: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    threads: int | None = None,
    max_body_mb: float = 10.0,
    max_rows: int = 256,
    timeout_s: float = 30.0,
    say: Callable[[str], None] = print,
) -> None:
    """Load the bundle, check that its self-test passes, and serve it until interrupted. say: gets one line when the
    server answers.

    Raises DataError, RunError, SettingError before the port answers.
    """
    require_extra("fastapi", "serve", "Serving a bundle")
    require_extra("uvicorn", "serve", "Serving a bundle")
    from ontarget.errors import RunError
    from ontarget.runtime import load_bundle

    limits = ServerLimits(max_body_mb=max_body_mb, max_rows=max_rows, timeout_s=timeout_s)
    taken = take_port(host, port)
    try:
        bundle = load_bundle(path, threads=threads)
        result = bundle.self_test()
        wrong = [check for check in result["checks"] if not check["passed"] and check["name"] != "latency"]
        if wrong:
            details = "; ".join(f"{check['name']}: {check['detail']}" for check in wrong)
            raise RunError(f"The bundle {path} fails its self-test ({details}).", next_step=f"ontarget doctor {path}")
        app = make_app(bundle, limits)
        say(f"{path.name}: {start_answering(taken)} (page to try it; POST /predict); Ctrl+C stops")
        answer_until_interrupted(app, taken)
    finally:
        taken.close()


class BodyLimit:
    """Answers 413 as soon as a body is known or found to be larger than allowed, without holding it in memory.

    body_of: the answer's JSON from its sentence; ``{"detail": sentence}`` by default.
    """

    def __init__(self, app: Any, *, max_bytes: int, body_of: Callable[[str], Any] = lambda text: {"detail": text}):
        self.app, self.max_bytes, self.body_of = app, max_bytes, body_of

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self.max_bytes:
            await self._refuse(send)
            return
        # The body is taken in here, up to the limit, and handed on whole.
        parts: list[bytes] = []
        received, more = 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client has gone
            parts.append(message.get("body", b""))
            received, more = received + len(parts[-1]), bool(message.get("more_body"))
            if received > self.max_bytes:
                await self._refuse(send)
                return
        replayed = False

        async def replay() -> Any:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": b"".join(parts), "more_body": False}

        await self.app(scope, replay, send)

    async def _refuse(self, send: Any) -> None:
        text = json.dumps(self.body_of(f"The body is too large; at most {self.max_bytes} bytes are allowed.")).encode()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": text})


def _example(modality: str, info: dict[str, Any]) -> Any:
    if modality == "text":
        return "Some text" if len(info["input_columns"]) < 2 else ["First text", "Second text"]
    if modality == "features":
        return [0.0] * int(info.get("features", 4))
    return "<base64 of a PNG or JPEG file>"


def _row_description(modality: str, info: dict[str, Any]) -> str:
    if modality == "text":
        return "Texts." if len(info["input_columns"]) < 2 else "Pairs of texts."
    if modality == "features":
        return f"Lists of {info.get('features', 'D')} numbers."
    return "Images: PNG or JPEG files in base64. Files can also be uploaded to /predict/images."


def _checked_rows(rows: list[Any], modality: str, info: dict[str, Any], limits: ServerLimits) -> list[Any]:
    if modality == "image":
        return [_checked_image(_decoded(row, at), at, limits) for at, row in enumerate(rows)]
    if modality == "features":
        for at, row in enumerate(rows):
            if not isinstance(row, list) or not all(
                isinstance(value, (int, float)) and not isinstance(value, bool) for value in row
            ):
                raise Refused(422, f"Row {at}: a list of numbers is allowed.")
        return rows
    pairs = len(info["input_columns"]) == 2
    checked = []
    for at, row in enumerate(rows):
        parts = row if pairs and isinstance(row, list) and len(row) == 2 else [row]
        if len(parts) != (2 if pairs else 1) or not all(isinstance(part, str) for part in parts):
            raise Refused(422, f"Row {at}: {'a list of two texts' if pairs else 'a text'} is allowed.")
        if sum(len(part) for part in parts) > limits.max_characters:
            raise Refused(422, f"Row {at}: at most {limits.max_characters} characters are allowed.")
        checked.append(tuple(parts) if pairs else parts[0])
    return checked


def _decoded(row: Any, at: int) -> bytes:
    import base64
    import binascii

    if not isinstance(row, str):
        raise Refused(422, f"Row {at}: the base64 of an image file is allowed.")
    try:
        return base64.b64decode(row.removeprefix("data:").split("base64,")[-1], validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(422, f"Row {at}: this is no base64; the base64 of an image file is allowed.") from error


def _checked_image(content: bytes, at: int, limits: ServerLimits) -> bytes:
    """The file as it is, if its header says that it is an image of an allowed size: nothing is decoded for that."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "WEBP", "BMP", "GIF")) as image:
            width, height = image.size
    except Exception as error:  # Pillow raises many kinds for what is no image
        raise Refused(422, f"Row {at}: this is no PNG, JPEG, WEBP, BMP or GIF image.") from error
    if width * height > limits.max_pixels:
        raise Refused(422, f"Row {at}: {width} x {height} pixels; at most {limits.max_pixels:,} pixels are allowed.")
    return content
