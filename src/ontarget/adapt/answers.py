"""Answers of a language model to prompts, and how likely it finds given answers. Greedy, in batches of like length."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ontarget.errors import DataError
from ontarget.values import Array, Context

if TYPE_CHECKING:
    from ontarget.pool.language_models import LanguageModel

BATCH_TOKENS, BATCH_ROWS = 8192, 64  # of prompts and answers that are in memory at once (choice)


def generate_answers(
    source: LanguageModel,
    prompts: Sequence[str],
    *,
    instruction: str = "",
    max_new_tokens: int = 256,
    kept: Path | None = None,
    context: Context = Context(),
) -> list[str]:
    """The model's greedy answers, N texts; see `generate_ids`."""
    encoded = [source.prompt_ids(prompt, instruction) for prompt in prompts]
    check_room(source, encoded, max_new_tokens)
    made = generate_ids(source, encoded, max_new_tokens=max_new_tokens, kept=kept, context=context)
    return [source.text(ids) for ids in made]


def check_room(
    source: LanguageModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, *, rows: Sequence[int] | Array = ()
) -> None:
    """Raises DataError: a prompt that leaves no room for its answer in the model's window. rows: their numbers."""
    for row, ids in zip(rows if len(rows) else range(len(prompts)), prompts, strict=True):
        if len(ids) + max_new_tokens > source.window:
            raise DataError(
                f"Prompt {row} has {len(ids):,} tokens, and its answer may have {max_new_tokens:,}.",
                allowed=f"{source.window:,} tokens together, the model's window", option="--max-new-tokens",
                next_step="shorten the prompts or the answers, or take a model with a longer window",
            )  # fmt: skip


def generate_ids(
    source: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    kept: Path | None = None,
    context: Context = Context(),
) -> list[list[int]]:
    """Greedy answers to prompts of token ids, N lists of ids, each up to its end, that token included, or
    ``max_new_tokens`` long; equal prompts are asked once.

    kept: a file that finished batches are appended to; what it holds is not generated again. See `check_room`.
    """
    import torch

    keys = [_key(ids, max_new_tokens) for ids in prompts]
    known = _known(kept)
    left = list({key: at for at, key in enumerate(keys) if key not in known}.values())
    left.sort(key=lambda at: -len(prompts[at]))  # the batch that needs most memory comes first
    total = len(left)
    while left:
        if context.progress is not None:
            context.progress(total - len(left), total, "writing answers")
        rows = max(1, min(BATCH_ROWS, BATCH_TOKENS // (len(prompts[left[0]]) + max_new_tokens)))
        batch, left = left[:rows], left[rows:]
        width = len(prompts[batch[0]])
        ids = torch.full((len(batch), width), source.stop_ids[0])
        mask = torch.zeros_like(ids)
        for row, at in enumerate(batch):
            ids[row, width - len(prompts[at]) :] = torch.tensor(list(prompts[at]))
            mask[row, width - len(prompts[at]) :] = 1
        device = next(source.model.parameters()).device
        with torch.inference_mode():
            made = source.model.generate(
                ids.to(device), attention_mask=mask.to(device), max_new_tokens=max_new_tokens, do_sample=False,
                temperature=None, top_p=None, top_k=None, eos_token_id=list(source.stop_ids),
                pad_token_id=source.stop_ids[0],
            )[:, width:].tolist()  # fmt: skip
        new = {keys[at]: _ended(said, source.stop_ids) for at, said in zip(batch, made, strict=True)}
        _keep(kept, new)
        known.update(new)
    return [known[key] for key in keys]


def answer_losses(
    source: LanguageModel,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    instruction: str = "",
    context: Context = Context(),
) -> tuple[Array, Array]:
    """Sum of -log p over each answer's tokens (nats, its end counts), and how many they are: (N,), (N,)."""
    import torch

    pairs = [source.prompt_ids(prompt, instruction) for prompt in prompts]
    given = [source.answer_ids(answer) for answer in answers]
    order = sorted(range(len(pairs)), key=lambda at: len(pairs[at]) + len(given[at]))
    sums = np.zeros(len(pairs))
    device = next(source.model.parameters()).device
    at = 0
    while at < len(order):
        if context.progress is not None:
            context.progress(at, len(order), "reading answers")
        longest = len(pairs[order[at]]) + len(given[order[at]])
        batch = order[at : at + max(1, min(BATCH_ROWS, BATCH_TOKENS // (2 * longest)))]
        at += len(batch)
        width = max(len(pairs[row]) + len(given[row]) for row in batch)
        if width > source.window:
            raise DataError(f"A prompt and its answer have {width:,} tokens together.",
                            allowed=f"{source.window:,}, the model's window")  # fmt: skip
        ids = torch.full((len(batch), width), source.stop_ids[0])
        mask, wanted = torch.zeros_like(ids), torch.full_like(ids, -100)
        for row, which in enumerate(batch):
            whole = [*pairs[which], *given[which]]
            ids[row, : len(whole)] = torch.tensor(whole)
            mask[row, : len(whole)] = 1
            wanted[row, len(pairs[which]) : len(whole)] = torch.tensor(given[which])
        with torch.inference_mode():
            logits = source.model(ids.to(device), attention_mask=mask.to(device)).logits[:, :-1].float()
            losses = torch.nn.functional.cross_entropy(
                logits.transpose(1, 2), wanted[:, 1:].to(device), ignore_index=-100, reduction="none"
            )
        sums[batch] = losses.sum(1).double().cpu().numpy()
    return sums, np.array([len(one) for one in given])


def _ended(said: list[int], stop_ids: Sequence[int]) -> list[int]:
    return said[: next((at + 1 for at, token in enumerate(said) if token in stop_ids), len(said))]


def _key(ids: Sequence[int], max_new_tokens: int) -> str:
    return hashlib.sha256(json.dumps([max_new_tokens, *ids]).encode()).hexdigest()[:16]


def _known(kept: Path | None) -> dict[str, list[int]]:
    if kept is None or not kept.exists():
        return {}
    found: dict[str, list[int]] = {}
    for line in kept.read_text(encoding="utf-8").split("\n"):
        try:
            row = json.loads(line)
            found[row["prompt"]] = [int(token) for token in row["answer"]]
        except (ValueError, KeyError, TypeError):  # the last line of a process that was killed
            continue
    return found


def _keep(kept: Path | None, new: dict[str, list[int]]) -> None:
    if kept is None:
        return
    kept.parent.mkdir(parents=True, exist_ok=True)
    with open(kept, "a", encoding="utf-8") as file:
        # A line break first: a killed process may have left half a line.
        file.write("\n" + "\n".join(json.dumps({"prompt": key, "answer": said}) for key, said in new.items()) + "\n")
