"""S3FT: fine-tune on the model's own right answers, on the reference only where it has none.

Sonam Gupta et al. (IBM), "Selective Self-to-Supervised Fine-Tuning for Generalization in Large Language Models",
NAACL 2025 Findings, arXiv 2502.08130; no official code known. Claim: at least as good as training on references, and
less of what the model could do before is lost.
Left out: a language model as the judge (any function that says which answers are right will do). Checked in
tests/adapt/align/test_s3ft.py; claims/32_s3ft.py.

For each prompt x with reference y, the untuned model M and a judge J: M(x) where J holds it right; else M's own words
for y, asked for with y as a guide, where J holds those right; else y. Then supervised fine-tuning on x with these
answers: the guide is never in a training prompt. The variants of the paper's ablations: "sdft" (own words for all
references), "ssr" (own or reference), "sft" (references).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ontarget.adapt.answer_metric import answer_scores
from ontarget.errors import DataError, SettingError, nearest
from ontarget.values import Array

Variant = Literal["s3ft", "sdft", "ssr", "sft"]
VARIANTS = ("s3ft", "sdft", "ssr", "sft")
COPIED = 0.9  # ROUGE-L from which own words count as a copy of the reference (choice)
GUIDE = "{prompt}\n\nReference answer: {reference}\n\nUse the reference answer as a guide and write your own answer."


@dataclass(frozen=True)
class Rewritten:
    """answers: N training answers. origins: "own", "paraphrase" or "gold" of each. copied: share of the paraphrases
    that are the reference nearly word for word: they teach nothing but the reference."""

    answers: tuple[str, ...]
    origins: tuple[str, ...]
    copied: float

    def shares(self) -> dict[str, float]:
        return {name: self.origins.count(name) / len(self.origins) for name in ("own", "paraphrase", "gold")}


def s3ft(
    prompts: Sequence[str],
    references: Sequence[Sequence[str]],
    answer: Callable[[Sequence[str]], Sequence[str]],
    judge: Callable[[Sequence[int], Sequence[str]], Array],
    *,
    variant: Variant = "s3ft",
    guide: str = GUIDE,
) -> Rewritten:
    """Training answers for ``prompts``.

    references: right answers of each prompt, the first is the one to learn. answer: prompts -> the untuned model's
    answers. judge: (rows, answers) -> which are right, bool or scores of which 0.5 or more are. guide: with {prompt}
    and {reference}. Raises SettingError, DataError.
    """
    if variant not in VARIANTS:
        raise SettingError(f"'{variant}' is no variant.", allowed=", ".join(VARIANTS),
                           next_step=nearest(variant, VARIANTS))  # fmt: skip
    if "{prompt}" not in guide or "{reference}" not in guide:
        raise SettingError("The guide lacks {prompt} or {reference}.", option="guide")
    if len(prompts) != len(references) or not prompts:
        raise DataError(f"There are {len(prompts)} prompts and {len(references)} references.")
    for row, right in enumerate(references):
        if not right:
            raise DataError(f"Row {row} has no reference answer.", next_step="leave it out of the training rows")
    answers = [right[0] for right in references]
    origins = ["gold"] * len(prompts)
    left = list(range(len(prompts)))
    if variant in ("s3ft", "ssr"):
        left = _replace(left, answer([prompts[row] for row in left]), judge, answers, origins, "own")
    copied = 0.0
    if variant in ("s3ft", "sdft") and left:
        asked = [guide.format(prompt=prompts[row], reference=references[row][0]) for row in left]
        _replace(left, answer(asked), judge, answers, origins, "paraphrase")
        rows = [row for row, origin in enumerate(origins) if origin == "paraphrase"]
        if rows:
            alike = answer_scores("rouge_l", [answers[row] for row in rows], [[references[row][0]] for row in rows])
            copied = float(np.mean(alike >= COPIED))
    return Rewritten(tuple(answers), tuple(origins), copied)


def _replace(
    rows: list[int], written: Sequence[str], judge: Callable[[Sequence[int], Sequence[str]], Array],
    answers: list[str], origins: list[str], origin: str,
) -> list[int]:  # fmt: skip
    """Take what was written where it is right; returns the rows that are left."""
    if len(written) != len(rows):
        raise DataError(f"{len(rows)} prompts were asked and {len(written)} answers came.")
    right = np.asarray(judge(rows, written), dtype=np.float64) >= 0.5
    for row, text, fits in zip(rows, written, right, strict=True):
        if fits and text.strip():  # an empty answer teaches nothing, whatever the judge says
            answers[row], origins[row] = text, origin
    return [row for row in rows if origins[row] != origin]
