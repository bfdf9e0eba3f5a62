"""Forms of a language model's weights, measured side by side: float32, bfloat16, and on a CPU 4 bits by GWQ.

The first form is the model as it was trained. Another one is kept where it is smaller, within the limits, takes no
longer for an answer on this device (to a tenth), and is not significantly worse on the validation rows; the last kept
one is deployed. Where no form within the limits is free of cost, the best of them is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ontarget.errors import DataError
from ontarget.judge.paired_rows import compare_rows, value_of
from ontarget.plan.language_speed import measure_memory, measure_speed, over_limits
from ontarget.plan.language_trials import (
    answer_as_tried,
    longest_answer,
    save_model,
    typical_answer,
    validation_part,
)
from ontarget.pool.language_models import load_language_model
from ontarget.task import Limits
from ontarget.values import Array, Context, GenerationData

if TYPE_CHECKING:
    from ontarget.pool.language_models import LanguageModel

SLOWER = 1.1  # from this ratio of an answer's time on a form is slower (choice)
BITS = 4  # that PyTorch has a kernel for (choice)
FEW_BITS = f"{BITS} bits (GWQ)"
CALIBRATION = 1024  # tokens (choice)


def variants(
    model: Path,
    data: GenerationData,
    rows: Array,
    trial: Mapping[str, Any],
    limits: Limits,
    folder: Path,
    *,
    context: Context = Context(),
) -> list[dict[str, Any]]:
    """Each form with its measurements and whether it is the one to deploy ("kept").

    rows: the model's scores on the validation rows that trials are scored on. A form that is over a limit, or slower,
    or that cannot be made, is not scored, and tells why ("reason"). After the context's deadline forms are tried only
    as long as none is within the limits.
    """
    part = validation_part(data)
    prompts = list(part.prompts[:4])
    found: list[dict[str, Any]] = []
    untimed = replace(context, deadline=None)  # a form that was begun is judged on all rows
    forms = ["float32", "bfloat16", *([FEW_BITS] if context.device == "cpu" else [])]
    for form in forms:
        if context.progress is not None:
            context.progress(len(found), len(forms), f"measuring {form}")
        row: dict[str, Any] = {"dtype": form, "path": "", "reason": "", "costs": [], "kept": False}
        found.append(row)
        late = context.deadline is not None and time.monotonic() > context.deadline
        if late and any(one["path"] and not one["over"] for one in found):
            row["reason"] = "not tried: no time left"
            continue
        try:
            source = _in_form(form, model, folder, data, untimed)
        except DataError as error:  # an architecture that GWQ does not know
            if form != FEW_BITS:
                raise
            row["reason"] = str(error)
            continue
        longest = longest_answer(data, source)
        row |= {"path": str(source.folder), **measure_speed(
            source, prompts, instruction=data.instruction, tokens=longest, memory=limits.memory_mb is not None,
            dtype=_loaded_as(form),
        )}  # fmt: skip
        if form == FEW_BITS:
            row["size_mb"] = (source.folder / "gwq.safetensors").stat().st_size / 2**20
        row["answer_ms"] = row["first_ms"] + ((typical_answer(data, source) or longest) - 1) * row["latency_ms"]
        over = over_limits(row, limits)
        first = found[0]
        if row is not first:
            row["costs"] = _costs(row, first)
        scores = rows if row is first else None
        # Without a first form within the limits a slower one may have to do.
        if row is not first and not over and not (row["costs"] and not first["reason"]):
            scores = answer_as_tried(
                source, part, data, trial["settings"], kept=folder / f"{form.replace(' ', '-')}-answers.jsonl",
                context=untimed,
            ).rows  # fmt: skip
            compared = compare_rows("", data.metric, scores, rows, seed=context.seed)
            row["against_float32"] = {"difference": compared.difference, "low": compared.difference_low,
                                      "high": compared.difference_high}  # fmt: skip
            if compared.difference_high < 0:
                row["costs"].append(f"worse by {-compared.difference:.4f} [{-compared.difference_high:.4f}, "
                                    f"{-compared.difference_low:.4f}]")  # fmt: skip
        row["validation"] = None if scores is None else value_of(data.metric, scores)
        row["over"] = over
        row["reason"] = "; ".join([*row["costs"], *over])
        del source
    within = [row for row in found if row["path"] and not row["over"]]
    if within:
        free = [row for row in within if not row["costs"]]
        kept = free[-1] if free else max(within, key=lambda row: row["validation"])
        kept["kept"] = True
        if limits.memory_mb is None:  # a fresh process takes a while: for the deployed form alone
            kept["memory_mb"] = measure_memory(Path(kept["path"]), _loaded_as(kept["dtype"]), prompts[0])
    return found


def least_mb(source: LanguageModel, device: str) -> float:
    """About the size of the smallest form of a model that was loaded in float32, 2**20 bytes."""
    from ontarget.compress.quantise_language_model import packed_mb

    return packed_mb(source.model, BITS if device == "cpu" else 16)


def _loaded_as(form: str) -> str | None:
    return None if form == FEW_BITS else form


def _in_form(form: str, model: Path, folder: Path, data: GenerationData, context: Context) -> LanguageModel:
    """The model in a form, loaded from where its files lie."""
    if form == FEW_BITS:
        path = folder / "few-bits"
        if not path.exists():
            _quantise(model, path, data, context)
        return load_language_model(str(path), dtype=None, device=context.device)
    source = load_language_model(str(model), dtype=form, device=context.device)
    if form == "float32":
        return source
    save_model(source, folder / form)
    return load_language_model(str(folder / form), dtype=form, device=context.device)


def _quantise(model: Path, output: Path, data: GenerationData, context: Context) -> None:
    """GWQ, calibrated on prompts and answers of training rows."""
    from ontarget.compress.packed_checkpoint import write_packed
    from ontarget.compress.quantise_language_model import quantise_language_model

    source = load_language_model(str(model))
    ids: list[int] = []
    for at in np.random.default_rng(context.seed).permutation(len(data.train)):
        if len(ids) >= CALIBRATION:
            break
        right = data.train.references[at]
        ids += source.prompt_ids(data.train.prompts[at], data.instruction)
        ids += source.answer_ids(right[0]) if right else []
    text = np.array(ids[:CALIBRATION], dtype=np.int64)
    packed = quantise_language_model(source.model, text, bits=BITS, window=min(source.window, 2048), context=context)
    write_packed(packed, output, copy_from=source.folder)


def _costs(row: Mapping[str, Any], first: Mapping[str, Any]) -> list[str]:
    """What a form costs beside the first one, without its answers' quality."""
    costs = []
    if row["size_mb"] >= first["size_mb"]:
        costs.append(f"not smaller: {row['size_mb']:.1f} MiB, {first['size_mb']:.1f} in {first['dtype']}")
    if row["answer_ms"] > SLOWER * first["answer_ms"]:
        costs.append(f"slower: {row['answer_ms']:.0f} ms an answer, {first['answer_ms']:.0f} in {first['dtype']}")
    return costs
