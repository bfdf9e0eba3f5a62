"""`ontarget draft`: a draft head for a language model. Thin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def draft(
    model: Annotated[str, typer.Argument(help="Causal language model: a folder, zoo:smollm2-135m or hub:org/name")],
    prompts: Annotated[Path, typer.Argument(help="Prompts of its use: .txt (one a line), .jsonl .csv .parquet")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the head")] = Path("head"),
    column: Annotated[str, typer.Option(help="Column of the prompts in a table")] = "text",
    kind: Annotated[str, typer.Option(help="fspad, or its parts: eagle, sampling, partial")] = "fspad",
    instruction: Annotated[str, typer.Option(help="What the model is told before every prompt")] = "",
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply, tokens")] = 128,
    epochs: Annotated[int, typer.Option(help="Passes over the replies")] = 20,
    learning_rate: Annotated[float, typer.Option(help="3e-5 for large models and data")] = 3e-4,
    batch_size: Annotated[int, typer.Option(help="Replies of one step")] = 4,
    length: Annotated[int, typer.Option(help="Tokens of prompt and reply that are learnt from, at most")] = 2048,
    temperature: Annotated[float, typer.Option(help="At which speed is measured; 0: greedy")] = 0.0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of the training")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars")] = False,
) -> None:
    """Train a small draft head, with which MODEL says the same in fewer passes, and measure whether it pays here.

    `ontarget draft zoo:smollm2-135m prompts.txt -o head/`

    `ontarget draft my-model/ questions.jsonl --column question --max-new-tokens 200 -o head/`

    The model replies to the prompts itself (kept in the folder: a killed run goes on), the head learns from the
    replies, and the last tenth of the prompts is held out to measure speed. MODEL is not changed. Use it:
    `ontarget serve MODEL --draft head/`, or in Python `load_draft_head(folder, model)` and `generate(model, head, ids)`
    of `ontarget.serve.speculative`.
    """
    from ontarget.data.stream_texts import stream_texts
    from ontarget.errors import SettingError, nearest
    from ontarget.pool.language_models import load_language_model
    from ontarget.progress import console_progress
    from ontarget.serve.speculative.draft_head import KINDS
    from ontarget.serve.speculative.make_draft import make_draft
    from ontarget.values import Context

    if kind not in KINDS:
        raise SettingError(f"'{kind}' is no kind of draft head.", allowed=", ".join(KINDS), option="--kind",
                           next_step=nearest(kind, KINDS))  # fmt: skip
    if dtype not in ("float32", "bfloat16", "float16"):
        raise SettingError(f"'{dtype}' is no type of weights.", allowed="float32, bfloat16, float16", option="--dtype")
    if max_new_tokens < 1:
        raise SettingError(f"--max-new-tokens is {max_new_tokens}.", allowed="1 or more", option="--max-new-tokens")
    texts = [text for batch in stream_texts(prompts, column=column) for text in batch.texts]
    source = load_language_model(model, dtype=dtype, device=device)
    with console_progress(quiet) as progress:
        made = make_draft(
            source, texts, output, kind=kind, instruction=instruction, max_new_tokens=max_new_tokens,
            temperature=temperature, epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, length=length,
            context=Context(seed=seed, device=device, progress=progress),
        )  # fmt: skip
    typer.echo(
        f"{output}: {kind} head of {made.parameters / 1e6:.1f} M parameters, trained on {made.trained_on} replies "
        f"({made.trained.cut} cut at {length} tokens), loss {made.trained.losses[0]:.3f} -> "
        f"{made.trained.losses[-1]:.3f}"
    )
    typer.echo(f"On {made.held_out} held-out prompts, one at a time:")
    for name, speed in {"plain": made.verdict.plain, **made.verdict.drafted}.items():
        typer.echo(f"  {speed.tokens_per_second:8.1f} tokens/s  {speed.tokens_per_pass:5.2f} tokens a pass  {name}")
    typer.echo(made.verdict.text)
