"""From a language model and prompts of its use to a draft head in a folder, with what it brings here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ontarget.adapt.answers import check_room, generate_ids
from ontarget.errors import DataError
from ontarget.pool.language_models import LanguageModel
from ontarget.serve.fused_decoder import fused_decoder
from ontarget.serve.packed_linear import packed_linears
from ontarget.serve.speculative.draft_head import load_draft_head, save_draft_head
from ontarget.serve.speculative.target import check_target
from ontarget.serve.speculative.train_draft import STATE, TrainedDraft, train_draft
from ontarget.serve.speculative.worth_it import Verdict, worth_it
from ontarget.values import Context

REPLIES = "replies.jsonl"
HELD_OUT = 0.1
MEASURED = 16  # held-out prompts that speed is measured on, at most (choice)
DRAFTED = 8192  # tokens that drafts are made of, where the model knows at least twice as many (choice)


@dataclass(frozen=True)
class MadeDraft:
    """trained_on, held_out: prompts. parameters: of the head."""

    trained: TrainedDraft
    verdict: Verdict
    trained_on: int
    held_out: int
    parameters: int


def make_draft(
    source: LanguageModel, prompts: Sequence[str], folder: Path, *, kind: str = "fspad", instruction: str = "",
    max_new_tokens: int = 128, temperature: float = 0.0, context: Context = Context(), **settings: Any,
) -> MadeDraft:  # fmt: skip
    """Let the model reply, train a head on the replies, save it, measure it on the last tenth of the prompts.

    settings: of `train_draft`. What is in ``folder`` of a run that was killed is not done again. Raises SettingError;
    DataError: no or empty prompts, one that leaves no room for a reply, a model that cannot have a draft head.
    """
    empty = [row for row, prompt in enumerate(prompts) if not prompt.strip()]
    if empty:
        raise DataError(f"Prompt {empty[0]} is empty, one of {len(empty)}.", allowed="rows with text (from 0)",
                        next_step="take the empty rows out")  # fmt: skip
    different = list(dict.fromkeys(prompts))  # what is held out must not be trained on
    if len(different) < 2:
        raise DataError(f"There are {len(different)} different prompts.", allowed="2 or more, better hundreds",
                        option="PROMPTS")  # fmt: skip
    check_target(source.model)
    ids = [source.prompt_ids(prompt, instruction) for prompt in different]
    check_room(source, ids, max_new_tokens)
    first = len(ids) - max(1, int(HELD_OUT * len(ids)))
    replies = generate_ids(source, ids[:first], max_new_tokens=max_new_tokens, kept=folder / REPLIES, context=context)
    trained = train_draft(
        source.model, [[*asked, *said] for asked, said in zip(ids[:first], replies, strict=True)], kind=kind,
        starts=[len(asked) for asked in ids[:first]], folder=folder, context=context, **settings,
    )  # fmt: skip
    if trained.head.vocabulary >= 2 * DRAFTED:
        trained.head.restrict(frequent_tokens([*ids[:first], *replies], trained.head.vocabulary))
    save_draft_head(trained.head, source.model, folder, trained_on=first, losses=trained.losses)
    fast = load_draft_head(folder, source.model)  # measured as it is used
    fast.pack()
    with fused_decoder(source.model), packed_linears(source.model):
        verdict = worth_it(
            source.model, fast, ids[first : first + MEASURED], max_new_tokens=max_new_tokens,
            stop_ids=source.stop_ids, temperature=temperature, seed=context.seed, context=context,
        )  # fmt: skip
    parameters = sum(one.numel() for one in trained.head.parameters())
    save_draft_head(
        trained.head, source.model, folder, trained_on=first, losses=trained.losses, verdict=verdict.text,
        held_out=ids[first : first + MEASURED],  # for a server that measures again where it runs
        shape=asdict(verdict.shape) if verdict.shape else None,
        speed={name: asdict(speed) for name, speed in {"plain": verdict.plain, **verdict.drafted}.items()},
    )  # fmt: skip
    (folder / STATE).unlink(missing_ok=True)
    return MadeDraft(trained, verdict, first, len(ids) - first, parameters)


def frequent_tokens(texts: Sequence[Sequence[int]], vocabulary: int, count: int = DRAFTED) -> list[int]:
    """The ``count`` most frequent tokens, in rising order; behind those that occur, the first of the vocabulary, as
    tokenizers give frequent pieces their first numbers."""
    found = Counter(token for ids in texts for token in ids)
    return sorted(sorted(range(vocabulary), key=lambda token: (-found[token], token))[:count])
