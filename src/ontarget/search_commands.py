"""The command line of searching: device profile, search, discover-optimizer. Thin, like cli.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

device_app = typer.Typer(help="What this device is, and what operators cost on it.", no_args_is_help=True)

Runtime = Annotated[str, typer.Option(help="onnxruntime or pytorch")]
Precision = Annotated[str, typer.Option(help="float32; bfloat16 with pytorch; int8 with onnxruntime (dynamic)")]
Threads = Annotated[int | None, typer.Option(help="CPU threads of the deployed network; all cores", min=1)]
BatchSize = Annotated[int, typer.Option(help="Rows of one call", min=1)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars")]


@device_app.command()
def profile(
    space: Annotated[str, typer.Option(help="mobile (for images), or a BERT to slice such as zoo:minilm")] = "mobile",
    image_size: Annotated[int, typer.Option(help="Side of the images, pixels (mobile)", min=16, max=512)] = 64,
    channels: Annotated[int, typer.Option(help="1 for grey, 3 for colour images (mobile)")] = 3,
    length: Annotated[int, typer.Option(help="Tokens of a text (BERT)", min=4, max=512)] = 64,
    runtime: Runtime = "onnxruntime",
    precision: Precision = "float32",
    threads: Threads = None,
    batch_size: BatchSize = 1,
    checked: Annotated[
        int, typer.Option(help="Whole networks, not used for the table, that it is checked on", min=0)
    ] = 12,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the table goes")] = Path("latency_table.json"),
    quiet: Quiet = False,
) -> None:
    """Measure how long each operator of a space of networks takes on this device; the latency table for `search`.

    `ontarget device profile --image-size 64 --threads 1 -o laptop.json`

    The table is JSON, holds the device and the versions that it is of, and can be shared: `ontarget search --table`.
    """
    import os

    import torch

    from ontarget.errors import RunError, SettingError
    from ontarget.latency_table import Setting, check_output
    from ontarget.latency_table import profile as make_table
    from ontarget.progress import console_progress
    from ontarget.report.console import print_latency_table
    from ontarget.values import Context

    setting = Setting(runtime, threads or os.cpu_count() or 1, batch_size, precision)  # type: ignore[arg-type]
    check_output(output)
    torch.set_num_threads(setting.threads)
    found: Any
    if space == "mobile":
        from ontarget.search.mobile_space import MobileSpace, stages_for

        if channels not in (1, 3):
            raise SettingError(f"channels is {channels}.", allowed="1, 3", option="--channels")
        found = MobileSpace(image_size=image_size, channels=channels, outputs=10, **stages_for(image_size)).eval()
    else:
        from ontarget.pool import load, resolve
        from ontarget.search.slice_pretrained import slice_pretrained

        try:
            encoder = load(resolve(space), max_length=length).encoder
            model = getattr(encoder, "model", encoder)
            found = slice_pretrained(model, outputs=10, length=length, option="--space").eval()
        except (SettingError, RunError) as error:
            raise SettingError(
                error.given, allowed="mobile, zoo:minilm, hub:org/name or file:path of a BertModel or LlamaModel",
                option="--space", next_step="ontarget device profile --space zoo:minilm, or mobile for images",
            ) from error  # fmt: skip
    with console_progress(quiet) as progress:
        table = make_table(found, setting, checked=checked, context=Context(progress=progress))
    table.save(output)
    print_latency_table(table, output)


def search(
    data: Annotated[str, typer.Argument(help="Table or image folder, hub:org/name, or a task .toml")],
    input: Annotated[list[str] | None, typer.Option("--input", "-i", help="Input column")] = None,
    target: Annotated[str, typer.Option("--target", "-t", help="Column to predict")] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the search; a stopped one goes on")] = Path(
        "search"
    ),
    latency_ms: Annotated[float | None, typer.Option(help="Limit: latency of one call of the network, ms")] = None,
    budget: Annotated[str, typer.Option(help="Wall-clock time: 5m, 1h")] = "10m",
    source: Annotated[str | None, typer.Option(help="Texts: the BERT or Llama to slice; zoo:minilm")] = None,
    image_size: Annotated[int | None, typer.Option(help="Images: side in pixels; their own, 64 at most")] = None,
    table: Annotated[Path | None, typer.Option(help="Latency table of this device; made if left out")] = None,
    any_device: Annotated[bool, typer.Option("--any-device", help="Accept a table of another device")] = False,
    warm_start: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of an earlier search (other device, runtime, threads) to take over from; repeat"),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="Population store: a folder that searches of this task share; read and written")
    ] = None,
    whole_space: Annotated[
        bool, typer.Option("--whole-space", help="Only start from earlier searches; drop no choice of the space")
    ] = False,
    augment: Annotated[
        str, typer.Option(help="Of image networks: flip, crop, randaugment-N-M joined by +; or adautomix")
    ] = "none",
    optimizer: Annotated[
        str, typer.Option(help="Of image networks: sgd, adamw, lion, or a program.json of discover-optimizer")
    ] = "sgd",
    runtime: Runtime = "onnxruntime",
    precision: Precision = "float32",
    threads: Threads = None,
    device: Annotated[str, typer.Option(help="Where training runs: cpu, cuda; latency is the CPU's")] = "cpu",
    batch_size: BatchSize = 1,
    max_length: Annotated[int | None, typer.Option(help="Longest input, tokens")] = None,
    metric: Annotated[str | None, typer.Option(help="accuracy, balanced_accuracy, macro_f1")] = None,
    split: Annotated[str | None, typer.Option(help="Column with the values train, validation, test")] = None,
    group: Annotated[str | None, typer.Option(help="Column whose groups splits must not tear apart")] = None,
    seed: Annotated[int, typer.Option(help="Seed of splits, training and search")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
    quiet: Quiet = False,
) -> None:
    """Search networks for DATA on this device: the front of quality against measured latency.

    `ontarget search photos/ --latency-ms 1 --budget 20m -o search`

    `ontarget search reviews.csv -i text -t label --latency-ms 8` (slices of a pretrained encoder)

    `ontarget search photos/ --threads 1 --store visited -o one`, then with `--threads 4 --store visited -o four`: the
    second search starts from the first one's front, in a space without the choices that it hardly made.

    The networks found are sources: `ontarget fit photos/ --pool file:search/found/1`
    """
    from ontarget.cli import _given, seconds
    from ontarget.progress import console_progress
    from ontarget.search.search_networks import search_networks
    from ontarget.values import Context

    fields = _given(input=input, target=target, batch_size=batch_size, max_length=max_length, metric=metric,
                    split=split, group=group, seed=seed)  # fmt: skip
    with console_progress(quiet) as progress:
        found = search_networks(
            data, output=output, source=source, latency_ms=latency_ms, budget_s=seconds(budget),
            image_size=image_size, table=table, any_device=any_device, runtime=runtime, precision=precision,  # type: ignore[arg-type]
            threads=threads, augment=augment, optimizer=optimizer,
            warm_start=warm_start or (), store=store, whole_space=whole_space,
            context=Context(seed=seed, device=device, progress=progress), **fields,
        )  # fmt: skip
    if as_json:
        from dataclasses import asdict

        from ontarget.plan.run_folder import to_json

        typer.echo(json.dumps(json.loads(to_json(asdict(found)))))
    else:
        from ontarget.report.console import print_search

        print_search(found)


def discover_optimizer(
    data: Annotated[str, typer.Argument(help="Table, image folder, hub:org/name, or a task .toml")],
    input: Annotated[list[str] | None, typer.Option("--input", "-i", help="Input column; more for features")] = None,
    target: Annotated[str, typer.Option("--target", "-t", help="Column to predict")] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; a stopped search goes on there")] = Path(
        "optimizer"
    ),
    programs: Annotated[int, typer.Option(help="Update rules to try", min=10)] = 300,
    source: Annotated[str | None, typer.Option(help="Source whose features stand for texts or images")] = None,
    modality: Annotated[str | None, typer.Option(help="text, image or features; inferred")] = None,
    seed: Annotated[int, typer.Option(help="Seed of splits and search")] = 0,
    quiet: Quiet = False,
) -> None:
    """Evolve an update rule on small proxies of DATA, test it on larger ones, and write it as readable Python.

    `ontarget discover-optimizer table.csv -t label -o optimizer` writes optimizer/optimizer.py and report.html.

    Where nothing beats tuned AdamW on the largest proxy, it says so.
    """
    from ontarget.cli import _given
    from ontarget.progress import console_progress
    from ontarget.report.console import print_discovery
    from ontarget.search.discover_optimizer import discover_on_task
    from ontarget.values import Context

    fields = _given(input=input, target=target, modality=modality, seed=seed)
    with console_progress(quiet) as progress:
        found = discover_on_task(
            data, output, source=source, programs=programs, context=Context(seed=seed, progress=progress), **fields
        )
    print_discovery(found, output)
