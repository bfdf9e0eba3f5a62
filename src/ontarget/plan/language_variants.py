"""Forms of a language model's weights, measured side by side: float32, and bfloat16 where that costs nothing.

The first form is the model as it was trained. Another one is kept where it is smaller, within the limits, not slower on
this device (to a tenth), and not significantly worse on the validation rows; the last kept one is deployed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ontarget.judge.paired_rows import compare_rows, value_of
from ontarget.plan.language_speed import measure_memory, measure_speed, over_limits
from ontarget.plan.language_trials import answer_as_tried, longest_answer, save_model, validation_part
from ontarget.pool.language_models import load_language_model
from ontarget.task import Limits
from ontarget.values import Array, Context, GenerationData

SLOWER = 1.1  # from this ratio of latencies on a form is slower (choice)


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

    rows: the model's scores on the validation rows that trials are scored on.
    """

    part = validation_part(data)
    prompts = list(part.prompts[:4])
    found: list[dict[str, Any]] = []
    for dtype in ("float32", "bfloat16"):
        if context.progress is not None:
            context.progress(len(found), 2, f"measuring {dtype}")
        source = load_language_model(str(model), dtype=dtype, device=context.device)
        path = model
        if dtype != "float32":
            path = folder / dtype
            save_model(source, path)
        measured = measure_speed(
            source, prompts, instruction=data.instruction, tokens=longest_answer(data, source),
            memory=limits.memory_mb is not None,
        )  # fmt: skip
        row: dict[str, Any] = {"dtype": dtype, "path": str(path), "reason": "", **measured, "kept": False}
        scores = rows
        if found:
            kept_answers = folder / f"{dtype}-answers.jsonl"
            scores = answer_as_tried(source, part, data, trial["settings"], kept=kept_answers, context=context).rows
            compared = compare_rows("", data.metric, scores, rows, seed=context.seed)
            row["against_float32"] = {"difference": compared.difference, "low": compared.difference_low,
                                      "high": compared.difference_high}  # fmt: skip
            if compared.difference_high < 0:
                row["reason"] = f"worse by {-compared.difference:.4f} [{-compared.difference_high:.4f}, "
                row["reason"] += f"{-compared.difference_low:.4f}]"
            elif row["latency_ms"] > SLOWER * found[0]["latency_ms"] and not found[0]["reason"]:
                row["reason"] = f"slower: {row['latency_ms']:.1f} ms a token, {found[0]['latency_ms']:.1f} in float32"
        row["validation"] = value_of(data.metric, scores)
        row["reason"] = "; ".join(filter(None, [row["reason"], *over_limits(row, limits)]))
        found.append(row)
        del source
    fitting = [row for row in found if not row["reason"]]
    if fitting:
        kept = fitting[-1]
        kept["kept"] = True
        if limits.memory_mb is None:  # a fresh process takes a while: for the deployed form alone
            kept["memory_mb"] = measure_memory(Path(kept["path"]), kept["dtype"], prompts[0])
    return found
