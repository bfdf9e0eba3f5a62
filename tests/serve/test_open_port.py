"""Who reads that a server answers may ask it at once: the line is said only after the port takes connections."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlparse

import pytest

from ontarget.errors import SettingError
from ontarget.serve.language_model.serve_language_model import serve_language_model
from ontarget.serve.open_port import start_answering, take_port
from ontarget.serve.server import serve_bundle


class Heard(Exception):
    """Ends the server in the moment of its line."""


def connect_at_once(line: str) -> None:
    for word in line.split():
        if word.startswith("http://"):
            found = urlparse(word)
            socket.create_connection((found.hostname, found.port), timeout=1).close()
            raise Heard


def test_a_language_model_is_reachable_when_it_says_so(language_folder: Path) -> None:
    with pytest.raises(Heard):
        serve_language_model(str(language_folder), port=0, say=connect_at_once)


def test_a_bundle_is_reachable_when_it_says_so(text_bundle: Path) -> None:
    with pytest.raises(Heard):
        serve_bundle(text_bundle, port=0, say=connect_at_once)


def test_a_taken_port_refuses_until_it_answers_and_no_second_takes_it() -> None:
    with take_port("127.0.0.1", 0) as taken:
        host, port = taken.getsockname()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, port), timeout=1)
        assert start_answering(taken) == f"http://127.0.0.1:{port}"
        socket.create_connection((host, port), timeout=1).close()
        with pytest.raises(SettingError, match=f"port {port}, cannot be used"):
            take_port(host, port)
