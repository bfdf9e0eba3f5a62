"""What a language model costs on this device as it answers there: a token, its memory, its size, a row of training."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ontarget.compress.language_latency import token_times
from ontarget.errors import RunError
from ontarget.task import Limits

if TYPE_CHECKING:
    from ontarget.pool.language_models import LanguageModel

STEPS = 24  # tokens that are timed after each prompt (choice)


def measure_speed(
    source: LanguageModel, prompts: Sequence[str], *, instruction: str = "", tokens: int, training_tokens: int = 0,
    memory: bool = True, dtype: str | None = "float32",
) -> dict[str, Any]:  # fmt: skip
    """latency_ms, latency_p95_ms: of one more token at batch 1, after a prompt, with its keys and values kept.
    first_ms: of a prompt. size_mb: of the weights as they are in memory, tied ones once; 2**20 bytes. memory_mb: the
    most that loading and answering adds, in a process of its own. train_s_per_row: a forward and backward pass of all
    weights.

    memory: whether to measure it; 0 without. dtype: what the model was loaded as. tokens: of an answer, at most.
    training_tokens: of a training answer; 0 for no training, whose seconds are 0 then. The model is laid out to answer,
    in place: train or save it before.
    """
    import torch

    from ontarget.serve.lay_out_to_answer import lay_out_to_answer

    train_s = _training_seconds(source, prompts, instruction, training_tokens) if training_tokens else 0.0
    size_mb = weights_mb(source.model)
    lay_out_to_answer(source.model)
    first: list[float] = []
    each: list[float] = []
    with torch.inference_mode():
        for at, prompt in enumerate([prompts[0], *prompts]):  # the first one warms up
            ids = torch.tensor([source.prompt_ids(prompt, instruction)], device=source.model.device)
            begin, rest = token_times(source.model, ids, min(STEPS, max(2, tokens)))
            if at:
                first.append(begin)
                each += rest
    return {
        "latency_ms": float(np.median(each)), "latency_p95_ms": float(np.percentile(each, 95)),
        "first_ms": float(np.median(first)), "size_mb": size_mb,
        "memory_mb": measure_memory(source.folder, dtype, prompts[0]) if memory else 0.0,
        "train_s_per_row": train_s,
    }  # fmt: skip


def over_limits(measured: Mapping[str, Any], limits: Limits) -> list[str]:
    """What a model costs beyond the limits, in words, one for each limit that is broken."""
    return [
        f"{name} is {measured[name]:.1f}, the limit {limit:g}"
        for name in ("latency_ms", "memory_mb", "size_mb")
        if (limit := getattr(limits, name)) is not None and measured[name] > limit
    ]


def weights_mb(model: Any) -> float:
    """Size of all weights, tied ones once; 2**20 bytes."""
    unique = {parameter.data_ptr(): parameter.numel() * parameter.element_size() for parameter in model.parameters()}
    return float(sum(unique.values())) / 2**20


_PROBE = """
import json, sys
def highest_mb():
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
import torch
from ontarget.adapt.answers import generate_answers
from ontarget.pool.language_models import load_language_model
from ontarget.serve.lay_out_to_answer import lay_out_to_answer
before = highest_mb()
source = load_language_model(sys.argv[1], dtype=sys.argv[2] or None)
lay_out_to_answer(source.model)
for _ in range(2):
    generate_answers(source, [sys.argv[3]], max_new_tokens=8)
print(json.dumps({"memory_mb": highest_mb() - before}))
"""


def measure_memory(folder: Path, dtype: str | None, prompt: str) -> float:
    """The most resident memory that loading and answering a prompt adds, in a process of its own; 2**20 bytes."""
    given = [sys.executable, "-c", _PROBE, str(folder), dtype or "", prompt]
    done = subprocess.run(given, capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"The model in '{folder}' does not run in a process of its own: {done.stderr[-300:]}")
    return max(0.0, float(json.loads(done.stdout.splitlines()[-1])["memory_mb"]))


def _training_seconds(source: LanguageModel, prompts: Sequence[str], instruction: str, tokens: int) -> float:
    from ontarget.adapt.align.supervised_fine_tuning import loss_sum, padded_batches

    answer = list(source.stop_ids[:1]) * tokens
    rows = [(source.prompt_ids(prompt, instruction), answer) for prompt in prompts]
    rows = [(prompt[-max(1, source.window - tokens) :], said) for prompt, said in rows]
    source.model.requires_grad_(True)
    seconds = 0.0
    for _ in range(2):  # the first pass makes room for the gradients
        start = time.perf_counter()
        for batch in padded_batches(rows):
            loss_sum(source.model, *batch).backward()
        seconds = time.perf_counter() - start
    source.model.zero_grad(set_to_none=True)
    source.model.requires_grad_(False)
    return seconds / len(rows)
