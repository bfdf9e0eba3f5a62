"""Training of a draft head on what its target says: EAGLE's recipe.

Li, Wei, Zhang, Zhang, 2024, arXiv 2401.15077; checked against SafeAILab/EAGLE (eagle/train/main.py)::

    loss = 1.0 SmoothL1(fhat_{i+1}, f_{i+1}) + 0.1 CE(softmax LM head(f_{i+1}), LM head(read_{i+1}))

over the positions whose next state is known, with uniform noise (u - 0.5) * 0.2 * 512 / length on the states that are
read; AdamW, betas 0.9 and 0.95, gradients cut at 0.5 each, a linear warm-up and decay. Left out: mixed precision,
several devices. Sequences best are the target's own replies to prompts of its use. Checked in
tests/serve/speculative/test_train_draft.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ontarget.errors import DataError, SettingError
from ontarget.serve.speculative.draft_head import DraftHead, new_draft_head
from ontarget.values import Context

STATE = "training_state.pt"
STATES_BYTES = 1 << 30  # of the target's states that are kept in memory; the others are computed anew (choice)
SCORES = 1 << 24  # scores of tokens that are in memory at once (choice)


@dataclass(frozen=True)
class TrainedDraft:
    """losses: mean loss of each epoch. cut, skipped: sequences that were longer than the length, or too short."""

    head: DraftHead
    losses: list[float]
    cut: int
    skipped: int


def train_draft(
    model: Any, sequences: Sequence[Sequence[int]], *, kind: str = "fspad", starts: Sequence[int] | None = None,
    epochs: int = 20, learning_rate: float = 3e-5, batch_size: int = 4, length: int = 2048, warm_up: int = 2000,
    noise: float = 0.2, fuse_width: int | None = None, folder: Path | None = None, context: Context = Context(),
) -> TrainedDraft:  # fmt: skip
    """Train a draft head for ``model`` (frozen, unchanged) on token ids.

    starts: of each sequence, where the reply begins: what is before it is read but not learnt. warm_up: steps, at most
    a tenth of all (choice: small data has fewer steps than the paper's warm-up). folder: where the state is kept after
    each epoch: a killed training goes on. Ends after the epoch in which ``context.deadline`` passes.
    Raises SettingError; DataError: nothing to learn from, a loss that is not finite, a target that cannot have a head.
    """
    if epochs < 1 or batch_size < 1 or length < 3 or learning_rate <= 0 or noise < 0 or warm_up < 0:
        raise SettingError(
            f"epochs {epochs}, batch_size {batch_size}, length {length}, learning_rate {learning_rate}, noise {noise}.",
            allowed="1 or more epochs and rows, a length of 3 or more, a rate above 0, noise and warm-up of 0 or more",
        )
    begins = list(starts) if starts is not None else [0] * len(sequences)
    if len(begins) != len(sequences):
        raise SettingError(f"{len(sequences)} sequences and {len(begins)} starts.", allowed="one start for each")
    rows = [(list(ids)[:length], begin) for ids, begin in zip(sequences, begins, strict=True)]
    rows = [(ids, begin) for ids, begin in rows if len(ids) > max(2, begin + 1)]
    if not rows:
        raise DataError("There is no text to learn from.", allowed="sequences of 3 tokens or more, replies in them",
                        next_step="give prompts that the model replies to, or a larger length")  # fmt: skip
    cut = sum(len(ids) > length for ids in sequences)
    head = new_draft_head(model, kind, seed=context.seed, fuse_width=fuse_width).to(context.device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, betas=(0.9, 0.95))
    total = epochs * -(-len(rows) // batch_size)
    first = max(1, min(warm_up, total // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / first, max(0.0, (total - step) / max(1, total - first)))
    )
    generator, drawn = np.random.default_rng(context.seed), torch.Generator().manual_seed(context.seed)
    identity = _identity(rows, head, epochs, learning_rate, batch_size, length, noise)
    losses = _load(folder, identity, head, optimizer, schedule, generator, drawn)
    states = _States(model, [ids for ids, _ in rows])
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.requires_grad_(False)  # embedding and LM head take part in the loss
        _epochs(
            head, rows, states, optimizer, schedule, generator, drawn, losses, epochs, batch_size, noise,
            lambda: _save(folder, identity, head, optimizer, schedule, generator, drawn, losses), context,
        )  # fmt: skip
    finally:
        for parameter, before in wanted.items():
            parameter.requires_grad_(before)
    return TrainedDraft(head.eval(), losses, cut, len(sequences) - len(rows))


def _epochs(
    head: DraftHead, rows: Sequence[tuple[list[int], int]], states: _States, optimizer: Any, schedule: Any,
    generator: np.random.Generator, drawn: torch.Generator, losses: list[float], epochs: int, batch_size: int,
    noise: float, save: Callable[[], None], context: Context,
) -> None:  # fmt: skip
    """Train from epoch ``len(losses)`` on; each one's mean loss is added to ``losses``."""
    batches = -(-len(rows) // batch_size)
    head.train()
    for epoch in range(len(losses), epochs):
        order = generator.permutation(len(rows))
        found = []
        for at in range(batches):
            if context.progress is not None:
                context.progress(epoch * batches + at, epochs * batches, "training the draft head")
            chosen = order[at * batch_size : (at + 1) * batch_size]
            batch = [(rows[row][0], rows[row][1], states.of(row)) for row in chosen]
            loss = draft_loss(head, *_padded(batch, noise, drawn, context.device))
            if not torch.isfinite(loss):
                raise DataError(f"The loss of step {epoch * batches + at} is {float(loss.detach())}.",
                                next_step="use float32, or a smaller learning rate")  # fmt: skip
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_value_(head.parameters(), 0.5)
            optimizer.step()
            schedule.step()
            found.append(float(loss.detach()))
        losses.append(float(np.mean(found)))
        save()
        if context.deadline is not None and time.monotonic() > context.deadline:
            break


def draft_loss(
    head: DraftHead, features: Tensor, tokens: Tensor, wanted: Tensor, counted: Tensor, *, feature_weight: float = 1.0,
    token_weight: float = 0.1,
) -> Tensor:  # fmt: skip
    """The mean loss of the counted positions, a scalar.

    features: f_i (B, T, d), noise and all. tokens: x_{i+1} (B, T). wanted: f_{i+1} (B, T, d). counted: bool (B, T).
    """
    guess, read, _ = head(features, tokens)
    guess, read, wanted = guess[counted], read[counted], wanted[counted].to(guess.dtype)
    regression = F.smooth_l1_loss(guess, wanted)

    def cross_entropy(read: Tensor, wanted: Tensor) -> Tensor:
        with torch.no_grad():
            law = head.logits(wanted).softmax(-1)
        return -(law * head.logits(read).log_softmax(-1)).sum()

    vocabulary = head.logits(wanted[:1]).shape[-1]
    step = max(1, SCORES // vocabulary)
    if len(read) <= step:
        tokens_loss = cross_entropy(read, wanted)
    else:
        from torch.utils.checkpoint import checkpoint

        parts = [checkpoint(cross_entropy, one, two, use_reentrant=False)
                 for one, two in zip(torch.split(read, step), torch.split(wanted, step), strict=True)]  # fmt: skip
        tokens_loss = torch.stack(parts).sum()
    return feature_weight * regression + token_weight * tokens_loss / max(1, len(read))


class _States:
    """The target's last hidden states of each sequence, kept while they fit."""

    def __init__(self, model: Any, sequences: Sequence[Sequence[int]]) -> None:
        self.model, self.sequences = model, sequences
        self.kept: dict[int, Tensor] = {}
        self.free = STATES_BYTES

    @torch.no_grad()
    def of(self, row: int) -> Tensor:
        if row in self.kept:
            return self.kept[row]
        device = self.model.get_input_embeddings().weight.device
        ids = torch.tensor([list(self.sequences[row])], device=device)
        found: Tensor = self.model.base_model(ids, use_cache=False).last_hidden_state[0].cpu()
        size = found.numel() * found.element_size()
        if size <= self.free:
            self.kept[row], self.free = found, self.free - size
        return found


def _padded(
    batch: Sequence[tuple[list[int], int, Tensor]], noise: float, generator: torch.Generator, device: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States with noise, tokens behind them, next states, and which positions count; padded on the right."""
    width = max(len(ids) for ids, _, _ in batch) - 1
    hidden = batch[0][2].shape[-1]
    features, wanted = torch.zeros(len(batch), width, hidden), torch.zeros(len(batch), width, hidden)
    tokens, counted = torch.zeros(len(batch), width, dtype=torch.long), torch.zeros(len(batch), width).bool()
    for row, (ids, begin, states) in enumerate(batch):
        count = len(ids) - 1
        states = states.float()
        shaken = (torch.rand(len(ids), hidden, generator=generator) - 0.5) * noise * 512 / len(ids)
        features[row, :count] = (states + shaken)[:-1]
        wanted[row, :count] = states[1:]
        tokens[row, :count] = torch.tensor(ids[1:])
        # The head at i drafts x_{i+2}: learnt where that is a token of the reply, the state behind its last one too.
        counted[row, max(0, begin - 2) : count] = True
    return features.to(device), tokens.to(device), wanted.to(device), counted.to(device)


def _identity(rows: Sequence[tuple[list[int], int]], head: DraftHead, *settings: Any) -> str:
    from ontarget.pool.cache import key_of

    return key_of(json.dumps(rows), json.dumps(head.settings), json.dumps(settings))


def _save(
    folder: Path | None, identity: str, head: DraftHead, optimizer: Any, schedule: Any, generator: np.random.Generator,
    drawn: torch.Generator, losses: list[float],
) -> None:  # fmt: skip
    if folder is None:
        return
    from ontarget.search.training_state import save_state

    save_state(folder / STATE, generator, identity=identity, head=head.state_dict(), optimizer=optimizer.state_dict(),
               schedule=schedule.state_dict(), drawn=drawn.get_state(), losses=losses)  # fmt: skip


def _load(
    folder: Path | None, identity: str, head: DraftHead, optimizer: Any, schedule: Any, generator: np.random.Generator,
    drawn: torch.Generator,
) -> list[float]:  # fmt: skip
    """Losses of the epochs that are done; a state of other data or settings is not used."""
    from ontarget.search.training_state import load_state

    before = json.dumps(generator.bit_generator.state)
    state = load_state(folder / STATE if folder else None, generator)
    if state is None or state["identity"] != identity:
        generator.bit_generator.state = json.loads(before)
        return []
    head.load_state_dict(state["head"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    drawn.set_state(state["drawn"])
    return list(state["losses"])
