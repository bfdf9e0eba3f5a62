"""`ontarget serve`: a bundle, or a causal language model with OpenAI's API. Thin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

BUNDLE_TIMEOUT_S, LANGUAGE_TIMEOUT_S = 30.0, 300.0


def serve(
    model: Annotated[
        str, typer.Argument(help="Bundle folder; or language model: folder, zoo:smollm2-135m, hub:org/name")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one", min=0, max=65535)] = 8000,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the served model; all cores")] = None,
    max_body_mb: Annotated[float, typer.Option(help="Largest request body, MiB")] = 10.0,
    timeout_s: Annotated[
        float | None,
        typer.Option(help="Longest time for one request, seconds: 30 for a bundle, 300 for a language model"),
    ] = None,
    max_rows: Annotated[int | None, typer.Option(help="Bundle: most rows of one request (256)")] = None,
    slots: Annotated[int | None, typer.Option(help="Language model: requests that run at once (4)")] = None,
    queue: Annotated[int | None, typer.Option(help="Language model: requests that may wait; then 429 (16)")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Language model: most new tokens of one answer (1024)")] = None,
    window: Annotated[
        int | None, typer.Option(help="Language model: most tokens of prompt and answer; the model's own")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="ONTARGET_API_KEY", help="Language model: key that clients must send; others see options "
                     "of a command, so prefer the variable", show_envvar=True),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Language model: cpu, cuda; the CPU if left out")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Language model: float32, bfloat16, float16; left out: on a CPU the type that "
                          "a bundle's fit has chosen, the few bits of a folder of `ontarget compress`, else float32; "
                          "elsewhere as stored")
    ] = None,
    draft: Annotated[
        Path | None, typer.Option(help="Language model: folder of its draft head (`ontarget draft`); it speeds up a "
                                  "request that runs alone, and is switched off where it is not faster here")
    ] = None,
    draft_always: Annotated[
        bool, typer.Option("--draft-always", help="Language model: the draft head is used without being measured")
    ] = False,
) -> None:  # fmt: skip
    """Serve a bundle, or a causal language model with OpenAI's API, over HTTP.

    **A bundle**: /predict, /health, /self-test, /docs, and a page to try it on.

    `ontarget serve runs/reviews/bundle --port 8000`

    **A language model**: /v1/chat/completions, /v1/completions, /v1/models, /health. Several requests share each step.

    `ontarget serve zoo:smollm2-135m --slots 4`

    `ontarget serve zoo:smollm2-135m --draft head/`

    `ontarget serve small`  (a folder of `ontarget compress`, in its few bits)

    `curl localhost:8000/v1/chat/completions -H 'content-type: application/json' -d '{"model": "smollm2-135m",
    "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 20}'`

    From Python (pip install openai):

    `client = openai.OpenAI(base_url="http://localhost:8000/v1", api_key="none")`

    `client.chat.completions.create(model="smollm2-135m", messages=[{"role": "user", "content": "Hello!"}])`

    For others on the network: `ONTARGET_API_KEY=... ontarget serve my-model/ --host 0.0.0.0`
    """
    from ontarget.cli import _given
    from ontarget.errors import SettingError
    from ontarget.pool.language_models import is_language_model

    of_language = _given(slots=slots, queue=queue, max_tokens=max_tokens)
    others = {"window": window, "api_key": api_key, "device": device, "dtype": dtype, "draft": draft,
              "draft_always": draft_always or None}  # fmt: skip
    if is_language_model(model):
        if max_rows is not None:
            raise SettingError("A language model has no rows.", option="--max-rows", next_step="leave it out")
        if draft_always and draft is None:
            raise SettingError(
                "There is no draft head to use.", option="--draft-always", next_step="add --draft FOLDER"
            )
        from ontarget.serve.language_model.openai_api import LanguageLimits
        from ontarget.serve.language_model.serve_language_model import serve_language_model

        seconds = LANGUAGE_TIMEOUT_S if timeout_s is None else timeout_s
        serve_language_model(
            model, host=host, port=port, device=device or "cpu", dtype=dtype, window=window, threads=threads,
            limits=LanguageLimits(max_body_mb=max_body_mb, timeout_s=seconds, **of_language),
            api_key=api_key, draft=draft, draft_always=draft_always, say=lambda text: typer.echo(text, err=True),
        )  # fmt: skip
        return
    from ontarget.serve.server import serve_bundle

    wrong = [name for name, value in {**of_language, **others}.items() if value is not None]
    if wrong:
        raise SettingError(
            f"'{model}' is no language model, and a bundle has no {wrong[0].replace('_', ' ')}.",
            option=f"--{wrong[0].replace('_', '-')}{' or ONTARGET_API_KEY' if wrong[0] == 'api_key' else ''}",
            next_step="leave it out, or name a folder with config.json",
        )  # fmt: skip
    serve_bundle(
        Path(model.removeprefix("file:")), host=host, port=port, threads=threads, max_body_mb=max_body_mb,
        max_rows=256 if max_rows is None else max_rows,
        timeout_s=BUNDLE_TIMEOUT_S if timeout_s is None else timeout_s, say=lambda text: typer.echo(text, err=True),
    )  # fmt: skip
