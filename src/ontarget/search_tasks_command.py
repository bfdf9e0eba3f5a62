"""The command line of a search over several image tasks. Thin, like cli.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def search_tasks(
    tasks: Annotated[str, typer.Argument(help="A TOML file with a [[tasks]] section for each task")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the search; a stopped one goes on")] = Path(
        "search"
    ),
    latency_ms: Annotated[float | None, typer.Option(help="Limit of every network: latency of one image, ms")] = None,
    steps: Annotated[int, typer.Option(help="Steps of the search", min=1)] = 1000,
    epochs: Annotated[int, typer.Option(help="Epochs of each network's training", min=1)] = 30,
    batch_size: Annotated[int, typer.Option(help="Images of a task in a step", min=2)] = 32,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the networks; all cores", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed of splits, search and training")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars")] = False,
) -> None:
    """Search a network for each of several image tasks in one run (FBNetV5), and time each on this device.

    `ontarget search-tasks tasks.toml --latency-ms 2 -o search`, with a tasks.toml such as

    ```toml
    image_size = 64

    [[tasks]]
    name = "garment"
    kind = "classification"
    data = "photos"                 # a folder for each class

    [[tasks]]
    name = "parts"
    kind = "segmentation"
    images = "scenes"               # scenes/1.jpg has the mask masks/1.png
    masks = "masks"                 # pixel value = class, 255 = ignored
    classes = ["background", "sleeve"]

    [[tasks]]
    name = "boxes"
    kind = "detection"
    images = "scenes"
    annotations = "instances.json"  # COCO
    ```

    Paths are meant from where the file is. The networks lie in search/networks/NAME.
    """
    from dataclasses import asdict

    from ontarget.plan.run_folder import to_json
    from ontarget.progress import console_progress
    from ontarget.search.search_tasks import search_tasks as search
    from ontarget.values import Context

    with console_progress(quiet) as progress:
        found = search(
            tasks, output=output, latency_ms=latency_ms, steps=steps, epochs=epochs, batch_size=batch_size,
            threads=threads, context=Context(seed=seed, progress=progress),
        )  # fmt: skip
    if as_json:
        typer.echo(to_json(asdict(found)).decode())
        return
    for row in found.networks:
        over = "" if row["within_limit"] else f" (over the limit of {latency_ms:g} ms)"
        typer.echo(
            f"{row['task']}: {row['metric']} {row['value']:.4f}, {row['measured_ms']:.3g} ms{over}, {row['folder']}"
        )
    typer.echo(f"Page: {Path(found.folder) / 'search.html'}")
