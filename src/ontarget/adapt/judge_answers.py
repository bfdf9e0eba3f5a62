"""A model's answers to the rows of a generation task, and how good each is by the task's metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ontarget.adapt.answer_checker import check_answers
from ontarget.adapt.answer_metric import answer_scores
from ontarget.adapt.answers import answer_losses, generate_answers
from ontarget.values import Array, Context, GenerationData, Prompts

if TYPE_CHECKING:
    from ontarget.pool.language_models import LanguageModel


@dataclass(frozen=True)
class Answered:
    """answers: N texts; none (a metric that reads references alone) where empty. rows: (N,) float64 scores."""

    answers: tuple[str, ...]
    rows: Array
    reasons: tuple[str, ...] = ()


def with_examples(prompt: str, examples: Sequence[tuple[str, str]]) -> str:
    """The prompt after some solved ones."""
    return "\n\n".join([*(f"{asked}\n{answer}" for asked, answer in examples), prompt])


def answer_rows(
    source: LanguageModel,
    part: Prompts,
    data: GenerationData,
    *,
    max_new_tokens: int,
    examples: Sequence[tuple[str, str]] = (),
    kept: Path | None = None,
    context: Context = Context(),
) -> Answered:
    """Let a model answer all rows and judge them. kept: see `generate_answers`."""
    prompts = [with_examples(prompt, examples) for prompt in part.prompts]
    if data.metric == "neg_perplexity":
        wanted = [right[0] for right in part.references]
        losses, counts = answer_losses(source, prompts, wanted, instruction=data.instruction, context=context)
        return Answered((), -losses / counts)
    answers = generate_answers(
        source, prompts, instruction=data.instruction, max_new_tokens=max_new_tokens, kept=kept, context=context
    )
    return judge_answers(answers, part, data, context=context)


def judge_answers(
    answers: Sequence[str], part: Prompts, data: GenerationData, *, context: Context = Context()
) -> Answered:
    """Score given answers. Raises DataError: a checker that cannot be used."""
    if data.metric == "checker":
        found = check_answers(data.checker, part.prompts, answers, part.references, context=context)
        return Answered(tuple(answers), found.scores, found.reasons)
    if data.metric == "neg_perplexity":  # only a model has one; anything else is as bad as can be
        return Answered(tuple(answers), np.full(len(part), -np.log(1e5)))
    return Answered(tuple(answers), answer_scores(data.metric, answers, part.references))
