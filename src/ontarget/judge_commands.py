"""`ontarget judge`: audits of models that are there already. Thin."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

judge_app = typer.Typer(no_args_is_help=True, help="Audits of fine-tuned models.")


@judge_app.callback()
def _judge() -> None:
    """Audits of fine-tuned models."""


@judge_app.command()
def intruders(
    tuned: Annotated[str, typer.Argument(help="Fine-tuned model: folder, LoRA adapter, hub:org/name")],
    base: Annotated[str, typer.Option(help="The model that it was tuned from")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for page, JSON and repaired model")] = Path(
        "audit"
    ),
    epsilon: Annotated[float, typer.Option(help="A direction intrudes below this similarity")] = 0.5,
    top: Annotated[int, typer.Option(help="Singular directions of each matrix", min=1)] = 10,
    proxy: Annotated[Path | None, typer.Option(help="Texts like those of pretraining, one a line: forgetting")] = None,
    target: Annotated[Path | None, typer.Option(help="Texts of the target, one a line: the cost of a repair")] = None,
    factor: Annotated[
        float | None, typer.Option(help="Write a repaired model, intruders scaled by this, 0 to 1")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars")] = False,
) -> None:
    """Find singular directions that fine-tuning has brought in and the base does not have, and take them back.

    `ontarget judge intruders adapter/ --base model/ -o audit`

    `ontarget judge intruders adapter/ --base model/ --proxy general.txt --target task.txt` tries factors, measures
    forgetting and cost, and writes the repaired model where one helps.
    """
    from ontarget.errors import SettingError
    from ontarget.judge.audit_intruders import FACTORS, audit_intruders, choose_factor, losses, write_repaired
    from ontarget.merge.merge_models import folder_of, open_weights
    from ontarget.plan.run_folder import to_json, write_atomic
    from ontarget.progress import console_progress
    from ontarget.report.intruders_page import write_intruders_page
    from ontarget.values import Context

    if (proxy is None) != (target is None):
        raise SettingError(
            "One of --proxy and --target was given.", allowed="both, or none", option="--proxy, --target"
        )
    texts = {name: _lines(path) for name, path in (("proxy", proxy), ("target", target)) if path is not None}
    before = open_weights(base, None)
    after = open_weights(tuned, before)
    copied = folder_of(after)
    with console_progress(quiet) as progress:
        context = Context(progress=progress)
        audit = audit_intruders(before, after, top=top, epsilon=epsilon, context=context)
        output.mkdir(parents=True, exist_ok=True)
        if texts and audit.intruders:
            rows = []
            for tried in FACTORS:
                folder = output / "tried"
                write_repaired(after, audit, tried, folder, copy_from=copied, context=context)
                rows.append({"factor": tried, "proxy_loss": losses(folder, texts["proxy"]),
                             "target_loss": losses(folder, texts["target"])})  # fmt: skip
                shutil.rmtree(folder)
            at_base = {name: losses(folder_of(before), lines) for name, lines in texts.items()}
            audit = replace(audit, repairs=tuple(rows), base_losses=at_base, chosen=choose_factor(rows))
        wanted = factor if factor is not None else audit.chosen
        if wanted is not None and audit.intruders:
            write_repaired(after, audit, wanted, output / "repaired", copy_from=copied, context=context)
    write_atomic(output / "audit.json", to_json(audit.told()))
    write_intruders_page(output / "audit.html", audit, base, tuned)
    typer.echo(f"{audit.intruders} intruders in {len(audit.matrices)} matrices that changed")
    for row in audit.repairs:
        typer.echo(f"factor {row['factor']:g}: proxy loss {row['proxy_loss']:.4f}, target {row['target_loss']:.4f}")
    if audit.repairs:
        typer.echo("no factor helps" if audit.chosen is None else f"taken: {audit.chosen:g}")
    typer.echo(f"Page: {output / 'audit.html'}")


def _lines(path: Path) -> list[str]:
    from ontarget.errors import DataError

    try:
        found = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' cannot be read ({error}).", next_step="give a file of UTF-8 text") from error
    if not found:
        raise DataError(f"'{path}' has no text.", allowed="a text on each line")
    return found
