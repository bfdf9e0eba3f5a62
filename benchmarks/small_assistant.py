"""A smaller model with a language model's tokenizer, for transformers' assisted generation: some of its own layers,
evenly spaced, all weights tuned on the replies that a draft head was trained on, for as many epochs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ontarget.adapt.align.supervised_fine_tuning import padded_batches
from ontarget.adapt.answers import generate_ids
from ontarget.plan.language_trials import save_model
from ontarget.pool.language_models import LanguageModel
from ontarget.serve.speculative.make_draft import REPLIES
from ontarget.values import Context

RATE, ROWS = 3e-4, 16


def fewer_layers(model: Any, count: int) -> Any:
    """A model of ``count`` of the layers, the first and the last one among them."""
    from transformers import AutoModelForCausalLM

    kept = [round(at) for at in np.linspace(0, model.config.num_hidden_layers - 1, count)]
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[at] for at in kept]
    made = AutoModelForCausalLM.from_config(config)
    state = {}
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if parts[:2] == ["model", "layers"]:
            if int(parts[2]) not in kept:
                continue
            parts[2] = str(kept.index(int(parts[2])))
        state[".".join(parts)] = value
    made.load_state_dict(state)
    return made


def make_assistant(
    source: LanguageModel, prompts: list[list[int]], replies: Path, folder: Path, *, layers: int, max_new_tokens: int,
    epochs: int, context: Context,
) -> None:  # fmt: skip
    """Write the assistant to ``folder``. prompts: token ids; replies: the draft head's folder, which keeps replies."""
    said = generate_ids(source, prompts, max_new_tokens=max_new_tokens, kept=replies / REPLIES, context=context)
    rows = list(zip(prompts, said, strict=True))
    model = fewer_layers(source.model, layers).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    steps = epochs * -(-len(rows) // ROWS)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    done = 0
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(len(rows))
        for at in range(0, len(rows), ROWS):
            step = [rows[int(row)] for row in order[at : at + ROWS]]
            tokens = sum(len(answer) for _, answer in step)
            for ids, mask, wanted in padded_batches(step):
                asked = wanted[:, 1:] != -100  # the output layer is most of the work: only where it is needed
                hidden = model.model(ids, attention_mask=mask).last_hidden_state[:, :-1][asked]
                loss = torch.nn.functional.cross_entropy(model.lm_head(hidden), wanted[:, 1:][asked], reduction="sum")
                (loss / tokens).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            done += 1
            if context.progress is not None:
                context.progress(done, steps, f"training an assistant of {layers} layers")
    made = copy.copy(source)
    object.__setattr__(made, "model", model.eval())
    save_model(made, folder)
