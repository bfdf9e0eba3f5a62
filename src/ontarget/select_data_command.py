"""`ontarget select-data`: the documents of a large pool that are most like target examples. Thin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def select_data(
    pool: Annotated[
        Path, typer.Argument(help="Texts to choose from: .jsonl .parquet .arrow .csv .tsv .txt or a folder")
    ],
    target: Annotated[Path, typer.Option("--target", "-t", help="Examples of the target: a file of the same kinds")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the selection; a stopped one goes on")],
    count: Annotated[int | None, typer.Option(help="How many documents to select")] = None,
    megabytes: Annotated[float | None, typer.Option(help="How much text to select, MiB, instead of --count")] = None,
    method: Annotated[str, typer.Option(help="zipfit, dsir, random, random-by-length")] = "zipfit",
    mode: Annotated[str, typer.Option(help="Of zipfit: exact, or fast (estimates, and says how well)")] = "exact",
    aggregate: Annotated[
        str, typer.Option(help="Of zipfit over the examples: mean, or nearest for relatives of any")
    ] = "mean",
    compressor: Annotated[str, typer.Option(help="Of zipfit: gzip or lz4")] = "gzip",
    level: Annotated[int | None, typer.Option(help="Of the compressor; gzip 1 to 9 (6), lz4 -16 to 16 (0)")] = None,
    column: Annotated[str, typer.Option(help="Column that holds the pool's texts")] = "text",
    target_column: Annotated[str | None, typer.Option(help="Column that holds the target's texts; as --column")] = None,
    length_bands: Annotated[int, typer.Option(help="Bands of length to compare within; 1 for none", min=1)] = 8,
    near_duplicates: Annotated[bool, typer.Option("--near-duplicates", help="Keep near-duplicates")] = False,
    processes: Annotated[int | None, typer.Option(help="Worker processes; all cores", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of random controls and of what is estimated")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars")] = False,
) -> None:
    """Select the documents of POOL that are most like target examples: streamed, on all cores, resumable.

    `ontarget select-data crawl.jsonl --target examples.jsonl --count 10000 -o selection`

    Writes selected.parquet (best first), scores.parquet (every document) and selection.html (the picture).
    """
    from ontarget.progress import console_progress
    from ontarget.report.console import print_selection
    from ontarget.select.select_data import select_data as select
    from ontarget.values import Context

    with console_progress(quiet) as progress:
        found = select(
            pool, target, output=output, count=count, megabytes=megabytes, method=method, mode=mode,  # type: ignore[arg-type]
            aggregate=aggregate, compressor=compressor, level=level, column=column,  # type: ignore[arg-type]
            target_column=target_column, length_bands=length_bands, drop_near_duplicates=not near_duplicates,
            processes=processes, context=Context(seed=seed, progress=progress),
        )  # fmt: skip
    print_selection(found)
