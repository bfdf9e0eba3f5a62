"""Layer swapping against the soup and the inverse swap: sections of German descriptions, learnt from English ones.

The spec's honest check on SmolLM2-135M-Instruct (30 layers). Choices, where its man pages are not at hand or it leaves
something open: Debian's descriptions of software stand for man pages, five sections of a subject for sections of the
manual; no description is on two sides, in English or translated. The task expert learns the section's name after 240
English descriptions, in an instruction's form; the language expert is trained to go on with 240 German descriptions of
any section, not those of the test. All weights, 60 steps of 4 rows of about 64 tokens, AdamW, the same rate. Test: 200
German descriptions, 40 a section, by the likeliest name (each is one token). b = 5, u = 2, t = 1 as published, not
tuned. The inverse swap has the experts' places exchanged, embeddings too.

The pass rule as pairs: the swap above the soup; the inverse swap below the soup, and so the worst of the merges.
Recorded besides: both experts and the base, and by layer how far training has moved the weights.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ontarget.values import Array, Context

NUMBER = 39
NAME = "layer_swapping"
TITLE = "Layer swapping carries a task into a language"
KIND = "direction"
STATEMENT = (
    "A language expert's outer layers around a task expert's middle ones do the task in the language better than the "
    "experts' average, and the inverse swap does it worse than the average."
)
DATA = "Debian's descriptions of software, English and German: 240 + 240 to train on, 200 German ones to test"
BUDGET = "the same two experts for every merge; 60 steps of 4 rows each; nothing tuned on German labels"
ARMS = ("layer swapping", "soup", "inverse swap", "task expert", "language expert", "base")
PAIRS = (("layer swapping", "soup"), ("soup", "inverse swap"))
SEEDS = 5
MEASURE = "accuracy"

SECTIONS = ("games", "graphics", "net", "science", "sound")
STEPS, BATCH, WINDOW, TEST, TEXT = 60, 4, 64, 200, 40
BOTTOM, TOP, TRANSITION = 5, 2, 1
RATE, WARM_UP = 5e-5, 6
INSTRUCTION = "Which section does this software belong to: games, graphics, net, science or sound?\n\n"
QUESTION = "\n\nSection:"

State = dict[str, Tensor]
Row = tuple[list[int], list[int]]


def descriptions(seed: int) -> tuple[tuple[list[str], list[str]], list[str], tuple[list[str], list[str]]]:
    """English texts and their sections; German texts; German texts of the test and their sections. All of other rows.

    As many of each section, but for the German texts to train on, which are of any.
    """
    from ontarget.data.samples import translated_sections

    table = translated_sections("de").sample(frac=1, random_state=seed)
    place = table.groupby("section").cumcount()
    known = table["section"].isin(SECTIONS)
    each, tested = STEPS * BATCH // len(SECTIONS), TEST // len(SECTIONS)
    test = table[known & (place < tested)]
    train = table[known & (place >= tested) & (place < tested + each)]
    others = table[~table.index.isin(test.index) & ~table.index.isin(train.index)]
    german = others[others["translation"].str.len() >= 4 * WINDOW]["translation"].tolist()
    return (
        (train["text"].tolist(), train["section"].tolist()),
        german[: STEPS * BATCH],
        (test["translation"].tolist(), test["section"].tolist()),
    )


def prompt_of(tokenizer: Any, text: str) -> list[int]:
    """The question about a text, whose first TEXT tokens are told."""
    parts = (INSTRUCTION, " ".join(text.split()), QUESTION)
    before, told, after = (list(tokenizer(part, add_special_tokens=False).input_ids) for part in parts)
    return before + told[:TEXT] + after


def expert(base: Any, rows: list[Row], seed: int) -> State:
    """Weights after one pass over the rows: (tokens given, tokens to learn)."""
    from ontarget.adapt.align.supervised_fine_tuning import loss_sum, padded_batches

    model = copy.deepcopy(base).requires_grad_(True).train()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    torch.manual_seed(seed)
    order = np.random.default_rng([seed, 1]).permutation(len(rows))
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / WARM_UP, (STEPS - step) / (STEPS - WARM_UP))
        chosen = [rows[int(at)] for at in order[step * BATCH : (step + 1) * BATCH]]
        count = sum(len(wanted) for _, wanted in chosen)
        for ids, mask, wanted in padded_batches(chosen):
            (loss_sum(model, ids, mask, wanted) / count).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def joined(task: State, language: State, shares: tuple[float, ...], outside: float) -> State:
    """Weights by the language expert's share in each layer, and outside of the layers: embeddings, norm, head."""
    from ontarget.merge.average import average
    from ontarget.merge.layer_names import layer_of

    found = {}
    for name, value in task.items():
        layer = layer_of(name)
        share = outside if layer is None else shares[layer]
        found[name] = average([value, language[name]], weights=[1 - share, share])
    return found


def answers(model: Any, prompts: list[list[int]], names: Tensor) -> Array:
    """Positions of the likeliest of the names' tokens after each prompt."""
    found = []
    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    with torch.inference_mode():
        for start in range(0, len(order), 16):
            part = [prompts[at] for at in order[start : start + 16]]
            ids = torch.zeros(len(part), max(map(len, part)), dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for at, prompt in enumerate(part):
                ids[at, : len(prompt)], mask[at, : len(prompt)] = torch.tensor(prompt), 1
            hidden = model.model(ids, attention_mask=mask).last_hidden_state
            last = hidden[torch.arange(len(part)), mask.sum(1) - 1]
            found += (last @ model.lm_head.weight[names].T).argmax(1).tolist()
    return np.asarray(found)[np.argsort(order)]


def movement(base: State, tuned: State, layers: int) -> dict[str, list[float]]:
    """Norm of the change over that of the weights, by layer, of attention and of the other matrices."""
    from ontarget.merge.layer_names import layer_of

    changed, whole = ({kind: np.zeros(layers) for kind in ("attention", "mlp")} for _ in range(2))
    for name, start in base.items():
        layer = layer_of(name)
        if layer is None or start.ndim != 2:
            continue
        kind = "attention" if "attn" in name else "mlp"
        changed[kind][layer] += float((tuned[name] - start).norm()) ** 2
        whole[kind][layer] += float(start.norm()) ** 2
    return {kind: np.sqrt(changed[kind] / whole[kind]).tolist() for kind in changed}


def run(seed: int, context: Context) -> dict[str, dict[str, Any]]:
    """Accuracy of every arm on the German test."""
    from ontarget.merge.layer_swapping import layer_swapping
    from ontarget.pool.language_models import load_language_model

    source = load_language_model("zoo:smollm2-135m")
    model, tokenizer = source.model, source.tokenizer
    (texts, sections), german, (tested, truth) = descriptions(seed)
    names = torch.tensor([tokenizer(f" {name}", add_special_tokens=False).input_ids for name in SECTIONS])
    names = names.reshape(len(SECTIONS))  # fails where a name has two tokens
    base = {name: value.detach().clone() for name, value in model.named_parameters()}
    layers = model.config.num_hidden_layers

    task_rows = [(prompt_of(tokenizer, text), [int(names[SECTIONS.index(section)])])
                 for text, section in zip(texts, sections, strict=True)]  # fmt: skip
    language_rows = []
    for text in german:
        ids = tokenizer(" ".join(text.split()), add_special_tokens=False).input_ids[:WINDOW]
        language_rows.append((ids[:1], ids[1:]))
    task, language = (expert(model, rows, seed) for rows in (task_rows, language_rows))

    shares = layer_swapping(layers, bottom=BOTTOM, top=TOP, transition=TRANSITION)
    inverse = tuple(1 - share for share in shares)
    arms = {
        "layer swapping": joined(task, language, shares, 1.0),
        "soup": joined(task, language, (0.5,) * layers, 0.5),
        "inverse swap": joined(task, language, inverse, 0.0),
        "task expert": task, "language expert": language, "base": base,
    }  # fmt: skip
    prompts = [prompt_of(tokenizer, text) for text in tested]
    wanted = np.asarray([SECTIONS.index(section) for section in truth])
    results: dict[str, dict[str, Any]] = {}
    for arm, state in arms.items():
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(state[name])
        said = answers(model, prompts, names)
        results[arm] = {MEASURE: float((said == wanted).mean()),
                        "said": np.bincount(said, minlength=len(SECTIONS)).tolist()}  # fmt: skip
    results["task expert"]["movement"] = movement(base, task, layers)
    results["language expert"]["movement"] = movement(base, language, layers)
    return results
