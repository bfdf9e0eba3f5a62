"""A response of server-sent events that ends, and says so, as soon as its client has gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import Response

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # proxies hand events on one by one
]


async def gone(receive: Callable[[], Any]) -> None:
    """Returns when the client has closed its connection; call it after the body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(work: Any, receive: Callable[[], Any], timeout_s: float | None = None) -> Any:
    """What the coroutine ``work`` gives; None, and work is cancelled, when the client goes or time is over."""
    working, going = asyncio.ensure_future(work), asyncio.ensure_future(gone(receive))
    try:
        await asyncio.wait({working, going}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, going):
            task.cancel()
        await asyncio.gather(working, going, return_exceptions=True)


class EventStream(Response):
    """events: JSON-able values, sent as they come, then ``[DONE]``.

    on_end: called once, however it ends. timeout_s: until a client that does not read is dropped.
    """

    def __init__(self, events: AsyncIterator[Any], *, on_end: Callable[[], None], timeout_s: float) -> None:
        super().__init__()
        self._events, self._on_end, self._timeout_s = events, on_end, timeout_s

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await unless_gone(self._sent(send), receive, self._timeout_s)
        finally:
            self._on_end()

    async def _sent(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        async for event in self._events:
            text = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
            await send({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
