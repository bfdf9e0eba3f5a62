"""What the target itself says to prompts, as token ids: the best text to train its draft head on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from ontarget.errors import DataError
from ontarget.pool.language_models import LanguageModel
from ontarget.values import Context

BATCH_TOKENS, BATCH_ROWS = 8192, 32  # of prompts and replies that are in memory at once (choice)


def own_replies(
    source: LanguageModel, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, kept: Path | None = None,
    context: Context = Context(),
) -> list[list[int]]:  # fmt: skip
    """Greedy replies, N lists of ids, each up to its end, that token included, or ``max_new_tokens`` long.

    kept: a file that finished batches are appended to; what it holds is not generated again.
    """
    import torch

    known = _known(kept, max_new_tokens)
    keys = [_key(ids) for ids in prompts]
    left = sorted(
        {key: at for at, key in enumerate(keys) if key not in known}.values(), key=lambda at: -len(prompts[at])
    )
    count = len(left)
    while left:
        if context.progress is not None:
            context.progress(count - len(left), count, "writing replies")
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
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps({"prompt": key, "at_most": max_new_tokens, "reply": said}) for key, said in new.items()]
            with open(kept, "a", encoding="utf-8") as file:
                # A line break first: a killed process may have left half a line.
                file.write("\n" + "\n".join(lines) + "\n")
        known.update(new)
    return [known[key] for key in keys]


def check_room(source: LanguageModel, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Raises DataError: a prompt that leaves no room for its reply."""
    for row, ids in enumerate(prompts):
        if len(ids) + max_new_tokens > source.window:
            raise DataError(
                f"Prompt {row} has {len(ids):,} tokens, and its reply may have {max_new_tokens:,}.",
                allowed=f"{source.window:,} tokens together, the model's window", option="--max-new-tokens",
                next_step="shorten the prompts or the replies",
            )  # fmt: skip


def _ended(said: list[int], stop_ids: Sequence[int]) -> list[int]:
    return said[: next((at + 1 for at, token in enumerate(said) if token in stop_ids), len(said))]


def _key(ids: Sequence[int]) -> str:
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:16]


def _known(kept: Path | None, max_new_tokens: int) -> dict[str, list[int]]:
    if kept is None or not kept.exists():
        return {}
    found: dict[str, list[int]] = {}
    for line in kept.read_text(encoding="utf-8").split("\n"):
        try:
            row = json.loads(line)
            if row["at_most"] == max_new_tokens:
                found[row["prompt"]] = [int(token) for token in row["reply"]]
        except (ValueError, KeyError, TypeError):  # the last line of a process that was killed
            continue
    return found
