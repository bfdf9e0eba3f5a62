"""`ontarget merge`: several models of one base become one. Thin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

METHODS = ("linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties",
           "layer_swapping")  # fmt: skip


def merge(
    models: Annotated[
        list[str],
        typer.Argument(help="Folders, .safetensors files, hub:org/name, LoRA adapters; or one plan in mergekit's YAML"),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder of the merged model")] = Path("merged"),
    method: Annotated[str | None, typer.Option("--method", "-m", help=", ".join(METHODS))] = None,
    base: Annotated[str | None, typer.Option(help="The model that the others were tuned from")] = None,
    weight: Annotated[
        list[float] | None, typer.Option("--weight", "-w", help="One for each model; 1 / number of models each")
    ] = None,
    density: Annotated[float | None, typer.Option(help="Share of a task vector that is kept")] = None,
    gamma: Annotated[float | None, typer.Option(help="breadcrumbs: share of largest entries that are left out")] = None,
    scale: Annotated[float | None, typer.Option(help="lambda: factor of all task vectors together")] = None,
    bottom: Annotated[int | None, typer.Option(help="layer_swapping: first layers of the language expert")] = None,
    top: Annotated[int | None, typer.Option(help="layer_swapping: last layers of the language expert")] = None,
    transition: Annotated[int | None, typer.Option(help="layer_swapping: layers averaged on each side")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16; the models' own")] = None,
    as_adapter: Annotated[
        bool, typer.Option("--as-adapter", help="LoRA adapters: write their weighted sum as one adapter")
    ] = False,
    tune_on: Annotated[
        Path | None,
        typer.Option("--tune-on", help="Table of prompts and answers whose metric chooses the weights"),
    ] = None,
    input: Annotated[str | None, typer.Option("--input", "-i", help="Of --tune-on: column of prompts")] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help="Of --tune-on: column of answers")] = None,
    metric: Annotated[
        str | None, typer.Option(help="Of --tune-on: exact_match, last_number, token_f1, rouge_l, neg_perplexity")
    ] = None,
    checker: Annotated[Path | None, typer.Option(help="Of --tune-on: Python file that judges answers")] = None,
    trials: Annotated[int, typer.Option(help="Of --tune-on: merges that are tried at most", min=1)] = 12,
    budget: Annotated[str | None, typer.Option(help="Of --tune-on: time for all merges: 90s, 10m, 1.5h")] = None,
    device: Annotated[str, typer.Option(help="Of --tune-on: where models answer: cpu, cuda")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of dare's coin, of proposed weights and of made splits")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars")] = False,
) -> None:
    """Merge models that were tuned from one base, without training, tensor by tensor in little memory.

    `ontarget merge one/ two/ --base base/ --method ties --density 0.3 -o merged`

    `ontarget merge math/ german/ --method layer_swapping -o german-math` (task expert first, then language expert)

    `ontarget merge plan.yml -o merged` (mergekit's YAML; each merged folder holds the plan that made it)

    `ontarget merge adapter-1/ adapter-2/ --as-adapter -w 0.7 -w 0.3 -o joined`

    `ontarget merge one/ two/ --base base/ --tune-on task.jsonl -i question -t answer -o merged` (weights that are
    best on the task's validation rows; nothing is written where no merge is better than the best model)

    One model at weight 1 is returned as it is, bit for bit. Pickled weights are not read.
    """
    from ontarget.cli import _given, seconds
    from ontarget.errors import SettingError, nearest
    from ontarget.merge.layer_names import layer_count
    from ontarget.merge.merge_models import merge_models, open_weights, swap_plan
    from ontarget.merge.mergekit_config import DTYPES, plan_of, read_plan
    from ontarget.pool.language_models import local_folder
    from ontarget.progress import console_progress
    from ontarget.values import Context

    planned = len(models) == 1 and models[0].endswith((".yml", ".yaml"))
    if method is not None and method not in METHODS:
        raise SettingError(f"'{method}' is no method.", allowed=", ".join(METHODS), option="--method",
                           next_step=nearest(method, METHODS))  # fmt: skip
    if dtype is not None and dtype not in DTYPES:
        raise SettingError(f"'{dtype}' is no type of weights.", allowed=", ".join(DTYPES), option="--dtype")
    if tune_on is not None:
        given = {"--weight": weight, "--density": density, "--gamma": gamma, "--scale": scale, "--dtype": dtype,
                 "--as-adapter": as_adapter}  # fmt: skip
        if planned or any(given.values()):
            named = ", ".join(name for name, value in given.items() if value) or "a plan"
            raise SettingError("Weights that are tuned are not given.", option=f"{named}, --tune-on",
                               next_step="leave one of them out")  # fmt: skip
        fields = _given(input=input, target=target, metric=metric, checker=checker, seed=seed)
        _tuned(
            models, base, method, tune_on, fields, output, trials, seconds(budget) if budget else None, device, quiet
        )
        return
    weights = weight or [1 / len(models)] * len(models)
    if len(weights) != len(models):
        raise SettingError(f"{len(models)} models and {len(weights)} weights.", allowed="one weight for each model",
                           option="--weight")  # fmt: skip
    with console_progress(quiet) as progress:
        context = Context(seed=seed, progress=progress)
        if as_adapter:
            from ontarget.merge.lora_adapter import LoraAdapter, merge_adapters

            if planned or method not in (None, "task_arithmetic"):
                raise SettingError("Adapters are joined by a weighted sum.", option="--as-adapter",
                                   next_step="leave --method out, or give --base for a whole model")  # fmt: skip
            made = merge_adapters([LoraAdapter(local_folder(model)) for model in models], weights, output)
        else:
            if planned:
                plan = read_plan(Path(models[0]))
            elif method == "layer_swapping":
                if len(models) != 2:
                    raise SettingError(f"{len(models)} models.", allowed="the task expert and the language expert",
                                       option="layer_swapping")  # fmt: skip
                layers = layer_count(open_weights(models[0], None).entries)
                plan = swap_plan(models[0], models[1], layers, bottom=bottom, top=top, transition=transition)
            else:
                own = _given(density=density, gamma=gamma) | ({} if scale is None else {"lambda": scale})
                plan = plan_of(method or ("ties" if base else "linear"), models, weights, base=base, **own)
            if dtype is not None:
                plan = type(plan).model_validate({**plan.model_dump(exclude_defaults=True), "dtype": dtype})
            made = merge_models(plan, output, seed=seed, context=context)
    size = sum(path.stat().st_size for path in made.glob("*.safetensors")) / 2**20
    typer.echo(f"{made}: {len(list(made.glob('*.safetensors')))} file(s), {size:,.1f} MiB")


def _tuned(
    models: list[str], base: str | None, method: str | None, data: Path, fields: dict[str, Any], output: Path,
    trials: int, budget_s: float | None, device: str, quiet: bool,
) -> None:  # fmt: skip
    import time

    from ontarget.data.generation_data import load_generation
    from ontarget.device import check_device
    from ontarget.plan.merge_on_task import merge_on_task
    from ontarget.progress import console_progress
    from ontarget.task import load_task
    from ontarget.values import Context

    check_device(device)
    task = load_task(str(data), {"kind": "generation", **fields}).task
    rows = load_generation(task)
    with console_progress(quiet) as progress:
        deadline = time.monotonic() + budget_s if budget_s else None
        found = merge_on_task(
            models, base, rows, output, method=method or ("task_arithmetic" if base else "linear"), trials=trials,
            context=Context(task.seed, device, progress, deadline),
        )  # fmt: skip
    for name, value in found.parents.items():
        typer.echo(f"{name}: {rows.metric} {value:.4f}")
    typer.echo(f"{output}: {found.says}")
