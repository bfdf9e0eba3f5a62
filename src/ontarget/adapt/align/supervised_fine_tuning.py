"""Supervised fine-tuning: a language model learns to write given answers to prompts.

The loss is -log p of the answers' tokens (their end included, prompts not), averaged over all of a step's answers.
LoRA (Hu et al., arXiv 2106.09685) on every linear layer but the output, added into the weights at the end; or all
weights; or those of the last blocks. Checked in tests/adapt/align/test_supervised_fine_tuning.py: the loss against
transformers' own, resuming against an undisturbed run.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ontarget.errors import DataError, RunError, SettingError, out_of_memory
from ontarget.values import Context

if TYPE_CHECKING:
    from ontarget.adapt.tune.lora import Adapter
    from ontarget.pool.language_models import LanguageModel

Mode = Literal["lora", "full", "last"]
RATES: dict[str, float] = {"lora": 2e-4, "full": 2e-5, "last": 5e-5}  # of AdamW (choice)
STEP_ROWS, BATCH_TOKENS, WARM_UP, CLIP, DECAY = 8, 4096, 0.05, 1.0, 0.0


@dataclass(frozen=True)
class Tuned:
    """curve: a mean training loss (nats a token) for each epoch. tokens: of answers, seen in all epochs.

    cut_off: the deadline came before the last epoch. adapter: in peft's format, for the mode "lora".
    """

    curve: tuple[float, ...]
    tokens: int
    seconds: float
    cut_off: bool
    adapter: Adapter | None = None


def supervised_fine_tuning(
    source: LanguageModel,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    instruction: str = "",
    mode: Mode = "lora",
    rank: int = 16,
    last_blocks: int = 4,
    epochs: int = 3,
    rate: float | None = None,
    state: Path | None = None,
    context: Context = Context(),
) -> Tuned:
    """Tune ``source.model`` (changed) to answer ``prompts`` as ``answers`` do.

    mode: "lora" with adapters of ``rank`` on all linear layers but the output; "full" for all weights; "last" for
        those of the ``last_blocks`` blocks. rate: peak of AdamW's; RATES by default. The order of rows depends on the
        seed and the epoch alone, so that arms of a comparison see the same.
    state: folder where each epoch's state is kept; a run that was stopped goes on from there. It is removed by whoever
        stores the result.
    Raises SettingError; DataError: nothing to learn from, rows beyond the window; RunError: a loss that is not finite,
    out of memory.
    """
    import torch

    started = time.monotonic()
    rows = _rows(source, prompts, answers, instruction)
    if epochs < 1 or rank < 1 or last_blocks < 1 or (rate is not None and rate <= 0):
        raise SettingError(f"epochs {epochs}, rank {rank}, last_blocks {last_blocks}, rate {rate}.",
                           allowed="1 or more; a rate above 0")  # fmt: skip
    trained = _trainable(source.model, mode, rank, last_blocks, context.seed)
    optimizer = torch.optim.AdamW(trained, lr=rate or RATES[mode], weight_decay=DECAY)
    steps = epochs * -(-len(rows) // STEP_ROWS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, steps))
    key = _key(rows, mode, rank, last_blocks, epochs, rate or RATES[mode], context.seed)
    curve, seen = _resume(state, key, trained, optimizer, schedule)
    cut_off, adapter = False, None
    source.model.train()
    try:
        for epoch in range(len(curve), epochs):
            if context.deadline is not None and time.monotonic() > context.deadline:
                cut_off = True
                break
            loss, tokens, whole = _epoch(source.model, rows, trained, optimizer, schedule, epoch, epochs, context)
            curve.append(loss)
            seen += tokens
            if not whole:
                cut_off = True
                break
            _store(state, key, trained, optimizer, schedule, curve, seen)
    except RuntimeError as error:
        if out_of_memory(error):
            raise RunError("Fine-tuning ran out of memory.", option="--max-length, mode",
                           next_step="use mode 'lora' or 'last', or shorter rows") from error  # fmt: skip
        raise
    finally:
        source.model.eval()
        if mode == "lora":
            from ontarget.adapt.tune.lora import adapter_of, merge_lora

            adapter = adapter_of(source.model)
            merge_lora(source.model)
        source.model.requires_grad_(False)
    return Tuned(tuple(curve), seen, time.monotonic() - started, cut_off, adapter)


def _rows(
    source: LanguageModel, prompts: Sequence[str], answers: Sequence[str], instruction: str
) -> list[tuple[list[int], list[int]]]:
    if len(prompts) != len(answers) or not prompts:
        raise DataError(f"There are {len(prompts)} prompts and {len(answers)} answers.", allowed="as many, one or more")
    rows = [(source.prompt_ids(p, instruction), source.answer_ids(a)) for p, a in zip(prompts, answers, strict=True)]
    for at, (prompt, answer) in enumerate(rows):
        if len(prompt) + len(answer) > source.window:
            raise DataError(f"Row {at} has {len(prompt) + len(answer):,} tokens.",
                            allowed=f"{source.window:,}, the model's window", next_step="shorten it")  # fmt: skip
    return rows


def _trainable(model: Any, mode: str, rank: int, last_blocks: int, seed: int) -> list[Any]:
    import torch

    from ontarget.adapt.tune.lora import add_lora, lora_targets

    if mode not in RATES:
        raise SettingError(f"'{mode}' is no mode.", allowed=", ".join(RATES), option="mode")
    model.requires_grad_(mode == "full")
    if mode == "lora":
        output = model.get_output_embeddings()
        inside = [name for name in lora_targets(model) if model.get_submodule(name) is not output]
        add_lora(model, rank=rank, targets=inside, seed=seed)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
    elif mode == "last":
        lists = [part for part in model.modules() if isinstance(part, torch.nn.ModuleList)]
        blocks = max(lists, key=len)
        for block in list(blocks)[-last_blocks:]:
            block.requires_grad_(True)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _share(step: int, steps: int) -> float:
    """Of the peak rate: a linear rise, then a cosine to 0."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return float(0.5 * (1 + np.cos(np.pi * (step - warm) / max(1, steps - warm))))


def _epoch(
    model: Any, rows: list[tuple[list[int], list[int]]], trained: list[Any], optimizer: Any, schedule: Any,
    epoch: int, epochs: int, context: Context,
) -> tuple[float, int, bool]:  # fmt: skip
    """Mean loss of a token, how many tokens of answers there were, and whether the deadline left time for all."""
    import torch

    order = np.random.default_rng([context.seed, epoch]).permutation(len(rows))
    total, seen, done = 0.0, 0, 0
    torch.manual_seed(context.seed * 1009 + epoch)  # dropout, where the model has any
    for at in range(0, len(order), STEP_ROWS):
        if at and context.deadline is not None and time.monotonic() > context.deadline:
            return total / seen, seen, False
        if context.progress is not None:
            context.progress(epoch * len(rows) + done, epochs * len(rows), "fine-tuning")
        step = [rows[int(row)] for row in order[at : at + STEP_ROWS]]
        count = sum(len(answer) for _, answer in step)
        for ids, mask, wanted in padded_batches(step):
            found = loss_sum(model, ids, mask, wanted)
            torch.autograd.backward(found / count)
            total += float(found.detach())
        norm = torch.nn.utils.clip_grad_norm_(trained, CLIP)
        if not torch.isfinite(norm):
            raise RunError(f"The loss or its gradient is not finite in epoch {epoch + 1}.", option="rate",
                           next_step="lower the rate, or use float32")  # fmt: skip
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        seen += count
        done += len(step)
    return total / seen, seen, True


def loss_sum(model: Any, ids: Any, mask: Any, wanted: Any) -> Any:
    """Sum of -log p of the wanted tokens. ids, mask, wanted: (B, T) int64; wanted: -100 where nothing is asked."""
    import torch

    device = next(model.parameters()).device
    logits = model(ids.to(device), attention_mask=mask.to(device)).logits[:, :-1]
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), wanted[:, 1:].flatten().to(device), ignore_index=-100, reduction="sum"
    )


def padded_batches(step: list[tuple[list[int], list[int]]]) -> list[tuple[Any, Any, Any]]:
    """The rows of a step in parts of at most BATCH_TOKENS tokens, padded on the right."""
    import torch

    step = sorted(step, key=lambda row: len(row[0]) + len(row[1]))
    parts: list[list[tuple[list[int], list[int]]]] = [[]]
    for row in step:
        if parts[-1] and (len(parts[-1]) + 1) * (len(row[0]) + len(row[1])) > BATCH_TOKENS:
            parts.append([])
        parts[-1].append(row)
    found = []
    for part in parts:
        width = len(part[-1][0]) + len(part[-1][1])
        ids = torch.zeros(len(part), width, dtype=torch.int64)
        mask, wanted = torch.zeros_like(ids), torch.full_like(ids, -100)
        for at, (prompt, answer) in enumerate(part):
            whole = len(prompt) + len(answer)
            ids[at, :whole] = torch.tensor([*prompt, *answer])
            mask[at, :whole] = 1
            wanted[at, len(prompt) : whole] = torch.tensor(answer)
        found.append((ids, mask, wanted))
    return found


def _key(rows: Any, *settings: Any) -> str:
    return hashlib.sha256(json.dumps([rows, settings]).encode()).hexdigest()


def _store(
    state: Path | None, key: str, trained: list[Any], optimizer: Any, schedule: Any, curve: list[float], seen: int
) -> None:
    if state is None:
        return
    import torch

    state.mkdir(parents=True, exist_ok=True)
    temporary = state / "state.pt.part"
    torch.save(
        {"key": key, "trained": [one.detach().cpu() for one in trained], "optimizer": optimizer.state_dict(),
         "schedule": {"last_epoch": schedule.last_epoch}, "curve": curve, "seen": seen},
        temporary,
    )  # fmt: skip
    temporary.replace(state / "state.pt")


def _resume(state: Path | None, key: str, trained: list[Any], optimizer: Any, schedule: Any) -> tuple[list[float], int]:
    if state is None or not (state / "state.pt").exists():
        return [], 0
    import torch

    try:
        stored = torch.load(state / "state.pt", weights_only=True)
    except Exception as error:
        raise RunError(
            f"'{state / 'state.pt'}' is damaged.", next_step="remove it: the epochs are done again"
        ) from error
    if stored["key"] != key:
        return [], 0  # of other rows or settings
    with torch.no_grad():
        for parameter, value in zip(trained, stored["trained"], strict=True):
            parameter.copy_(value)
    optimizer.load_state_dict(stored["optimizer"])
    schedule.last_epoch = stored["schedule"]["last_epoch"]
    for group, factor in zip(optimizer.param_groups, schedule.lr_lambdas, strict=True):
        group["lr"] = group["initial_lr"] * factor(schedule.last_epoch)
    return list(stored["curve"]), int(stored["seen"])
