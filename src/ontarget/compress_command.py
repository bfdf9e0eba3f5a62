"""`ontarget compress`: a language model in few bits, judged on the user's own texts. Thin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compress(
    model: Annotated[str, typer.Argument(help="Causal language model: folder of safetensors, zoo:name, hub:org/name")],
    texts: Annotated[
        Path, typer.Option("--texts", "-t", help="The task's own rows: .txt (one a line), .jsonl, .csv, .parquet")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder of the small model")] = Path("small"),
    column: Annotated[str, typer.Option(help="Column that holds the text")] = "text",
    bits: Annotated[str, typer.Option(help="2 to 8, or auto: the fewest whose loss stays within --tolerance")] = "3",
    group: Annotated[int, typer.Option(help="Inputs that share scale and offset, 8 or more")] = 64,
    share: Annotated[float, typer.Option(help="Of the weights that stay in 16 bits: those of largest gradient")] = 0.01,
    tolerance: Annotated[float, typer.Option(help="Rise of the loss that is allowed, nats a token")] = 0.1,
    calibration_tokens: Annotated[int, typer.Option(help="Tokens of the one backward pass, 512 to 2,048")] = 1024,
    test_tokens: Annotated[int, typer.Option(help="Held-out tokens, at most", min=256)] = 8192,
    keep: Annotated[bool, typer.Option("--keep", help="Write the folder even where it would be undone")] = False,
    latency: Annotated[bool, typer.Option(help="Measure latency against float32 and bfloat16")] = True,
    threads: Annotated[int | None, typer.Option(help="CPU threads; all cores")] = None,
    seed: Annotated[int, typer.Option(help="Of which rows calibrate and which are held out")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars")] = False,
) -> None:
    """Store a language model's weights in 2 to 8 bits, all but the 1% that its loss on your texts needs most (GWQ).

    `ontarget compress zoo:smollm2-135m -t questions.jsonl --column question --bits auto -o small/`

    `ontarget compress model/ -t notes.txt --bits 3 --tolerance 0.5 -o small/`

    Some rows calibrate, others are held out: loss before and after with a paired interval, bytes with everything
    counted, latency.
    Significantly worse than --tolerance, or not smaller than bfloat16: undone, no folder, exit code 1.
    In Python: `ontarget.compress.packed_checkpoint.load_to_answer("small")` gives a transformers model.
    """
    from ontarget.compress.compress_language_model import compress_language_model, perplexity
    from ontarget.data.stream_texts import stream_texts
    from ontarget.errors import SettingError
    from ontarget.progress import console_progress
    from ontarget.report.compression_page import write_compression_page
    from ontarget.values import Context

    if bits != "auto" and not bits.isdigit():
        raise SettingError(f"'{bits}' is no number of bits.", allowed="2 to 8, or auto", option="--bits")
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    rows = [text for batch in stream_texts(texts, column=column) for text in batch.texts]
    with console_progress(quiet) as progress:
        found = compress_language_model(
            model, rows, output, bits=None if bits == "auto" else int(bits), group=group, share=share,
            tolerance=tolerance, calibration_tokens=calibration_tokens, test_tokens=test_tokens, keep=keep,
            latency=latency, seed=seed, context=Context(seed=seed, progress=progress),
        )  # fmt: skip
    for key, count in found.rows.items():
        typer.echo(f"rows {key}: {count:,}")
    if found.memory:
        typer.echo(f"memory: about {found.memory['needed_mb']:,.0f} MiB, "
                   f"{found.memory['available_mb']:,.0f} MiB were free")  # fmt: skip
    for row in found.tried:
        typer.echo(f"{row['bits']} bits: perplexity {row['perplexity']:.3f} on rows to choose by, "
                   f"{row['perplexity_before']:.3f} before")  # fmt: skip
    typer.echo(
        f"{found.bits} bits, {found.sizes['matrix_bits']:.2f} with scales and outliers, "
        f"for {found.quantised_share:.0%} of the weights"
    )
    typer.echo(
        f"loss {found.loss_before:.4f} -> {found.loss_after:.4f}, rise {found.rise:.4f} "
        f"({found.rise_low:.4f} to {found.rise_high:.4f}, 95% over {found.units} {found.unit}s); "
        f"perplexity {perplexity(found.loss_before):.3f} -> {perplexity(found.loss_after):.3f}"
    )
    small, whole = found.sizes["weights_bytes"], found.sizes["bfloat16_bytes"]
    typer.echo(f"size {small / 2**20:,.1f} MiB, {found.sizes['bytes_per_weight']:.3f} bytes a weight; "
               f"bfloat16 {whole / 2**20:,.1f} MiB, {whole / small:.2f}x as much")  # fmt: skip
    if found.latency:
        typer.echo(f"{found.speed} ({found.threads} thread(s))")
    for reason in found.undone:
        typer.secho(("kept all the same: " if found.kept else "undone: ") + reason, fg="yellow", err=True)
    if not found.kept:
        typer.echo("No folder was written. Next: more bits, --bits auto, a higher --tolerance, or --keep", err=True)
        raise typer.Exit(1)
    write_compression_page(output / "report.html", found)
    typer.echo(f"-> {output} (report.json, report.html)")
