"""A port that is taken before a model is loaded, so that a wrong one costs nothing."""

from __future__ import annotations

import socket
from typing import Any

from ontarget.errors import SettingError

QUEUED = 2048  # connections that may wait until the server takes them, as uvicorn's own default


def take_port(host: str, port: int) -> socket.socket:
    """A socket that holds the port and does not answer yet; 0 takes a free one. Raises SettingError."""
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise SettingError(
            f"{host}, port {port}, cannot be used ({error.strerror}).", option="--host, --port",
            next_step="choose another port; 0 takes a free one",
        ) from error  # fmt: skip
    return made


def start_answering(taken: socket.socket) -> str:
    """Let clients connect from here on, before the server's loop runs: they wait and are not refused. Gives the
    address."""
    taken.listen(QUEUED)
    host, port = taken.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def answer_until_interrupted(app: Any, taken: socket.socket, **settings: Any) -> None:
    """Run an ASGI application on the port until Ctrl+C or SIGTERM. settings: more of `uvicorn.Config`."""
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", access_log=False, **settings)
    try:
        uvicorn.Server(config).run(sockets=[taken])
    except KeyboardInterrupt:  # raised again by uvicorn when all has ended
        pass
