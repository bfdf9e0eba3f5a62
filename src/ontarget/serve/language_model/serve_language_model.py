"""Serves a language model until interrupted: everything is checked before the port answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ontarget.errors import SettingError, require_extra
from ontarget.serve.language_model.openai_api import LanguageLimits, make_app, make_thread
from ontarget.serve.open_port import answer_until_interrupted, start_answering, take_port

DRAIN_S = 30  # for running requests, when the server is told to stop
LOCAL = ("127.0.0.1", "localhost", "::1")


def serve_language_model(
    locator: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "cpu",
    dtype: str | None = None,
    window: int | None = None,
    threads: int | None = None,
    limits: LanguageLimits = LanguageLimits(),
    api_key: str | None = None,
    draft: Path | None = None,
    draft_always: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """draft: folder of a draft head, used where it is faster here; draft_always: without measuring that. say: gets one
    line when the server answers, what was found about the draft head, and a warning if it is open to others without a
    key.

    Raises DataError, SettingError before the port answers.
    """
    require_extra("fastapi", "serve", "Serving a language model")
    require_extra("uvicorn", "serve", "Serving a language model")
    import torch

    from ontarget.pool.language_models import load_language_model
    from ontarget.serve.language_model.draft_decoding import open_draft
    from ontarget.serve.language_model.prompts import chat_start_of
    from ontarget.serve.lay_out_to_answer import lay_out_to_answer

    if api_key == "":
        raise SettingError("The API key is empty.", allowed="one character or more", option="--api-key")
    listening = take_port(host, port)
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        model = load_language_model(locator, device=device, dtype=dtype or served_type(locator, device), window=window)
        lay_out_to_answer(model.model)
        drafting = None if draft is None else open_draft(model, draft, always=draft_always, say=say)
        thread = make_thread(model, limits, draft=drafting)
        start = chat_start_of(Path(locator.removeprefix("file:")))  # a bundle knows how its prompts are asked
        app = make_app(model, thread, limits, api_key=api_key, start=start, draft=drafting)
        if host not in LOCAL and api_key is None:
            say(f"Warning: anyone who can reach {host} can use this server; set ONTARGET_API_KEY or --api-key.")
        at = start_answering(listening)
        say(f"{model.name}: {at}/v1 ({limits.slots} slots, window {model.window} tokens); Ctrl+C stops")
        try:
            answer_until_interrupted(app, listening, timeout_graceful_shutdown=DRAIN_S, server_header=False)
        finally:
            thread.close()
    finally:
        listening.close()


def served_type(locator: str, device: str) -> str | None:
    """What a model is loaded as where nobody says: None is as stored."""
    from ontarget.compress.packed_checkpoint import is_packed
    from ontarget.pool.language_models import fetched_folder
    from ontarget.serve.language_bundle import bundled_type

    folder = fetched_folder(locator)
    if device != "cpu" or is_packed(folder):  # few bits have layers of their own for a CPU
        return None
    return bundled_type(folder) or "float32"  # 16-bit types are slow on many CPUs; a fit has measured them
