"""`ontarget predict`: new rows through a bundle, as CSV. Thin."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def predict(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder")],
    data: Annotated[str, typer.Argument(help="Table or image folder with new rows; no target needed")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="CSV file to write; standard output")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; all cores")] = None,
) -> None:
    """Predict new rows with a bundle: CSV with the prediction and its probability, or a language model's answers.

    `ontarget predict runs/reviews/bundle new.csv -o predictions.csv`
    """
    from ontarget.data import read_inputs
    from ontarget.runtime import load_bundle
    from ontarget.serve.language_bundle import is_language_bundle, load_language_bundle

    if is_language_bundle(bundle):
        import torch

        from ontarget.data.generation_data import as_prompt
        from ontarget.progress import console_progress
        from ontarget.values import Context

        if threads is not None:
            torch.set_num_threads(threads)
        language = load_language_bundle(bundle)
        inputs, _ = read_inputs(data, input_columns=tuple(language.info["input_columns"]), modality="text")
        with console_progress() as progress:
            answers = language.answer([as_prompt(row) for row in inputs], context=Context(progress=progress))
        predictions: list[dict[str, Any]] = [{"answer": answer} for answer in answers]
    else:
        loaded = load_bundle(bundle, threads=threads)
        columns = tuple(loaded.info["input_columns"])
        inputs, _ = read_inputs(data, input_columns=columns, modality=loaded.info["modality"])
        predictions = loaded.predict(inputs)
    stream = open(output, "w", newline="", encoding="utf-8") if output else sys.stdout
    try:
        shown = [name for name in predictions[0] if name != "probabilities"] if predictions else []
        writer = csv.DictWriter(stream, ["row", *shown], extrasaction="ignore")
        writer.writeheader()
        writer.writerows({"row": row, **prediction} for row, prediction in enumerate(predictions))
    finally:
        if output:
            stream.close()
            typer.echo(f"{len(predictions)} predictions in {output}", err=True)
