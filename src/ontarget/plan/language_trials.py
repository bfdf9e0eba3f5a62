"""What is tried for a generation task, and one trial of it: answers without a model, the models as they are, tuned."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ontarget.adapt.judge_answers import Answered, answer_rows, judge_answers
from ontarget.adapt.lookup_answers import answer_by_lookup
from ontarget.errors import OnTargetError, out_of_memory
from ontarget.plan.run_folder import RunFolder, to_json, write_atomic
from ontarget.values import Context, GenerationData, Prompts, Recipe

if TYPE_CHECKING:
    from ontarget.pool.language_models import LanguageModel

SHOTS = 3  # solved prompts before the one that is asked (choice)
VALIDATION_ROWS, TRAIN_ROWS = 200, 2000  # that trials are scored on, and trained on, at most (choice)
EPOCHS = 3
LEAST_ROWS = 32  # with fewer nothing is tuned (choice)
# Tokens of an answer: twice the longest reference and some room, as an untuned model uses more words; LONGEST at most
# (choice).
ROOM, LONGEST = 32, 512
MODEL = "model"  # folder of a tuned model inside its trial's


def first_recipes(data: GenerationData, sources: Sequence[str]) -> list[Recipe]:
    """What costs no training: the baselines."""
    found = []
    if any(data.train.references) and data.metric != "neg_perplexity":
        found += [Recipe("control:constant", "constant_answer"), Recipe("control:nearest", "nearest_answer")]
    for source in sources:
        found.append(Recipe(source, "as_is"))
        if any(data.train.references):
            found.append(Recipe(source, "few_shot", {"shots": SHOTS}))
    return found


def tuned_recipes(data: GenerationData, source: str, *, judged: bool) -> list[Recipe]:
    """What is trained, in the order in which time is spent. judged: whether some answers of the model are right."""
    if not any(data.train.references):
        return []
    found = [Recipe(source, "supervised_fine_tuning", {"mode": "lora"})]
    if judged:
        found.append(Recipe(source, "s3ft", {"mode": "lora"}))
    found.append(Recipe(source, "supervised_fine_tuning", {"mode": "full"}))
    return found


def fitted(recipe: Recipe, rows: int, row_s: float, fixed_s: float, left_s: float) -> Recipe | None:
    """The recipe with as many epochs, or of one epoch as many rows, as ``left_s`` seconds allow; None where too few.

    rows: of training. row_s: predicted seconds of one row in one epoch. fixed_s: of everything but training.
    """
    epochs = int((left_s - fixed_s) / max(rows * row_s, 1e-9))
    if epochs >= 1:
        return Recipe(recipe.source, recipe.method, {**recipe.settings, "epochs": min(EPOCHS, epochs), "rows": rows})
    fewer = int((left_s - fixed_s) / max(row_s, 1e-9))
    if fewer < LEAST_ROWS:
        return None
    return Recipe(recipe.source, recipe.method, {**recipe.settings, "epochs": 1, "rows": fewer})


def longest_answer(data: GenerationData, source: LanguageModel) -> int:
    """Tokens that an answer may have: as asked for, or by the longest training reference."""
    if data.max_new_tokens is not None:
        return data.max_new_tokens
    counts = [len(source.answer_ids(right[0])) for right in data.train.references if right]
    return min(LONGEST, 2 * max(counts) + ROOM) if counts else LONGEST // 2


def typical_answer(data: GenerationData, source: LanguageModel) -> int:
    """Mean tokens of the first training references; 0 where there are none."""
    counts = [len(source.answer_ids(right[0])) for right in data.train.references[:64] if right]
    return round(sum(counts) / len(counts)) if counts else 0


def examples_of(data: GenerationData, count: int, seed: int) -> list[tuple[str, str]]:
    """Solved training prompts; short ones, so that they fit: drawn from the shorter half."""
    known = data.train.answered()
    solved = [(prompt, right[0]) for prompt, right in zip(known.prompts, known.references, strict=True)]
    solved.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
    solved = solved[: max(count, len(solved) // 2)]
    return [solved[int(at)] for at in np.random.default_rng(seed).permutation(len(solved))[:count]]


def some(count: int, most: int, seed: int) -> list[int]:
    """At most ``most`` positions, drawn, in order."""
    return sorted(np.random.default_rng(seed).permutation(count)[:most].tolist())


def validation_part(data: GenerationData) -> Prompts:
    """The validation rows that trials are scored on."""
    return data.validation.take(some(len(data.validation), VALIDATION_ROWS, 0))


def answer_as_tried(
    source: LanguageModel, part: Prompts, data: GenerationData, settings: Mapping[str, Any], *,
    kept: Path | None = None, context: Context = Context(),
) -> Answered:  # fmt: skip
    """A model's answers to rows of the task, judged, with the examples that a trial's settings ask for."""
    return answer_rows(
        source, part, data, max_new_tokens=longest_answer(data, source),
        examples=examples_of(data, int(settings.get("shots", 0)), context.seed), kept=kept, context=context,
    )  # fmt: skip


def run_language_trial(
    run: RunFolder, number: int, recipe: Recipe, source: LanguageModel | None, data: GenerationData, start_s: float,
    *, context: Context,
) -> dict[str, Any]:  # fmt: skip
    """Train and score one recipe; what it made is in the trial's folder. Never raises for a bad recipe.

    source: the recipe's model, freshly loaded; it is changed by training. Returns the stored record.
    """
    began = time.monotonic()
    folder = run.trial_folder(number)
    record: dict[str, Any] = {
        "number": number, "source": recipe.source, "method": recipe.method, "settings": dict(recipe.settings),
        "start_s": start_s, "state": "complete", "reason": "",
    }  # fmt: skip
    rows = None
    try:
        found, notes = _run(folder, recipe, source, data, context)
        rows = found.rows
        record |= {"metric": float(rows.mean()), "notes": notes, "answers": list(found.answers)}
    except OnTargetError as error:
        record |= {"state": "failed", "reason": str(error)}
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        record |= {"state": "failed", "reason": f"out of memory ({error})"}
    record["seconds"] = time.monotonic() - began
    run.write_trial(record, None if rows is None else rows[:, None], {})
    shutil.rmtree(folder / "state", ignore_errors=True)
    return record


def _run(
    folder: Path, recipe: Recipe, source: LanguageModel | None, data: GenerationData, context: Context
) -> tuple[Answered, Mapping[str, Any]]:
    part = validation_part(data)
    if source is None:
        said = answer_by_lookup(recipe.method, data.train, part.prompts)
        return judge_answers(said, part, data, context=context), {}
    notes = _tune(folder, recipe, source, data, context) if "mode" in recipe.settings else {}
    kept = folder / "answers.jsonl"
    return answer_as_tried(source, part, data, recipe.settings, kept=kept, context=context), notes


def _tune(
    folder: Path, recipe: Recipe, source: LanguageModel, data: GenerationData, context: Context
) -> dict[str, Any]:
    """Tune the model and store it; a stored one is loaded instead."""
    from safetensors.torch import load_model

    from ontarget.adapt.align.supervised_fine_tuning import supervised_fine_tuning

    stored = folder / "tuned.json"
    if stored.exists():  # killed while its validation rows were answered
        load_model(source.model, folder / MODEL / "model.safetensors")
        notes: dict[str, Any] = json.loads(stored.read_text())
        return notes
    known = data.train.answered()
    train = known.take(some(len(known), recipe.settings["rows"], context.seed))
    answers = tuple(right[0] for right in train.references)
    told: dict[str, Any] = {}
    if recipe.method == "s3ft":
        answers, told = _rewritten(folder, source, train, data, context)
    tuned = supervised_fine_tuning(
        source, train.prompts, answers, instruction=data.instruction, mode=recipe.settings["mode"],
        epochs=recipe.settings["epochs"], state=folder / "state", context=context,
    )  # fmt: skip
    save_model(source, folder / MODEL)
    if tuned.adapter is not None:
        tuned.adapter.save(folder / "adapter")
    notes = {**told, "curve": list(tuned.curve), "training_tokens": tuned.tokens, "rows": len(train),
             "cut_off": tuned.cut_off}  # fmt: skip
    write_atomic(stored, to_json(notes))
    return notes


def _rewritten(
    folder: Path, source: LanguageModel, train: Prompts, data: GenerationData, context: Context
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """S3FT's training answers by the untuned model, and what is told of them: where they come from, and how likely the
    untuned model finds them and the references (mean -log p of a token)."""
    from ontarget.adapt.align.s3ft import s3ft
    from ontarget.adapt.answers import answer_losses, generate_answers

    def answer(prompts: Sequence[str]) -> list[str]:
        return generate_answers(
            source, prompts, instruction=data.instruction, max_new_tokens=longest_answer(data, source),
            kept=folder / "own.jsonl", context=context,
        )  # fmt: skip

    def judge(rows: Sequence[int], written: Sequence[str]) -> Any:
        return judge_answers(written, train.take(rows), data, context=context).rows

    def loss(answers: Sequence[str]) -> float:
        sums, counts = answer_losses(source, train.prompts, answers, instruction=data.instruction, context=context)
        return float(sums.sum() / counts.sum())

    made = s3ft(train.prompts, train.references, answer, judge)
    return made.answers, {
        "shares": made.shares(), "copied": made.copied, "untuned_loss": loss(made.answers),
        "untuned_loss_of_references": loss([right[0] for right in train.references]),
    }  # fmt: skip


def save_model(source: LanguageModel, folder: Path) -> None:
    """Write a model and its tokenizer; the folder is there when it is whole."""
    temporary = folder.with_name(folder.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    source.model.save_pretrained(temporary, safe_serialization=True, max_shard_size="1TB")
    source.tokenizer.save_pretrained(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
