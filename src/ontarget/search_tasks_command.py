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
    latency_ms: Annotated[
        float | None, typer.Option(help="Limit: latency of one image, ms, of tasks without latency_ms of their own")
    ] = None,
    budget: Annotated[str, typer.Option(help="Wall-clock time for everything: 5m, 1h")] = "10m",
    steps: Annotated[int | None, typer.Option(help="Steps of the search; by the budget", min=1)] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of each network's training; by the budget", min=1)] = None,
    batch_size: Annotated[int, typer.Option(help="Images of a task in a step", min=2)] = 32,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the networks; all cores", min=1)] = None,
    device: Annotated[str, typer.Option(help="Where training runs: cpu, cuda; latency is the CPU's")] = "cpu",
    cache_mb: Annotated[
        float, typer.Option(help="Memory for images, MiB; what is beyond is read again each time", min=0)
    ] = 1024,
    seed: Annotated[int, typer.Option(help="Seed of splits, search and training")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars")] = False,
) -> None:
    """Search a network for each of several image tasks in one run (FBNetV5), and time each on this device.

    `ontarget search-tasks tasks.toml --latency-ms 2 --budget 20m -o search`, with a tasks.toml such as

    ```toml
    image_size = 64

    [[tasks]]
    name = "garment"
    kind = "classification"
    data = "photos"                 # a folder for each class
    latency_ms = 1                  # optional: of this task's network, instead of --latency-ms

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
    split = "splits.csv"            # optional: columns image and split (train, validation, test)
    ```

    For classification split names a column of the table; folders train, validation and test need none. Without it, 15%
    of a task's images are for validation, 15% for the test.

    Paths are meant from where the file is. The networks lie in search/networks/NAME.
    """
    from dataclasses import asdict

    from ontarget.cli import seconds
    from ontarget.plan.run_folder import to_json
    from ontarget.progress import console_progress
    from ontarget.search.search_tasks import search_tasks as search
    from ontarget.values import Context

    with console_progress(quiet) as progress:
        found = search(
            tasks, output=output, latency_ms=latency_ms, budget_s=seconds(budget), steps=steps, epochs=epochs,
            batch_size=batch_size, threads=threads, cache_mb=cache_mb,
            context=Context(seed=seed, device=device, progress=progress),
        )  # fmt: skip
    if as_json:
        typer.echo(to_json(asdict(found)).decode())
        return
    for row in found.networks:
        limit = "" if row["limit_ms"] is None else f" (limit {row['limit_ms']:g} ms)"
        test = row["test"]
        typer.echo(
            f"{row['task']}: {row['metric']} {row['validation']['value']:.4f} in validation, {test['value']:.4f} in "
            f"the test ({test['low']:.4f} to {test['high']:.4f}), {row['measured_ms']:.3g} ms{limit}, {row['folder']}"
        )
    typer.echo(f"Page: {Path(found.folder) / 'search.html'}")
