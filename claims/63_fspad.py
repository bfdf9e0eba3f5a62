"""FSPAD against EAGLE's draft head, at equal parameters and steps, on a small language model of bytes.

The spec's honest check: a transformer of 4 layers, 192 wide, over bytes, trained on Debian's man pages (docstrings of
the standard library where there are none), is the target; it is trained anew for each seed. Heads: EAGLE's with a
hidden layer in its input (so that all have the same number of parameters), with feature sampling, with partial
alignment, with both; beside them EAGLE's as published, one matrix and fewer parameters. Same data, order, steps and
noise. Measured on 100 prompts from pages that neither target nor heads saw: tokens per pass of the target at greedy
decoding, by EAGLE-2's tree (the measure) and by a chain. Beside it whether all output equals plain greedy decoding
token for token, and the p-value of a chi-square test of the second token of 5,000 sampled replies against the target's
own law. Pages of one package may resemble one another across the split, for all arms alike; those of gcloud, thousands
from one mould, are left out. The learning rate of 1e-3 instead of the paper's 3e-5 is for small networks (choice).
"""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ontarget.values import Context

NUMBER = 63
NAME = "fspad"
TITLE = "FSPAD's draft head has more tokens accepted"
KIND = "direction"
STATEMENT = (
    "At equal parameters and steps a draft head with feature sampling and partial alignment gives more tokens per pass "
    "of the target than EAGLE's, with EAGLE-2's tree."
)
DATA = "Debian man pages as bytes: 600 pages to learn from, 100 prompts of other pages"
BUDGET = "Equal parameters (0.74 M; 0.52 M with one matrix), data, order and steps"
ARMS = ("fspad", "eagle", "sampling", "partial", "eagle, one matrix")
PAIRS = (("fspad", "eagle"),)
SEEDS = 3
MEASURE = "tokens per target forward"

WIDTH, LAYERS, WINDOW = 192, 4, 256
TARGET_STEPS, TARGET_ROWS, TARGET_RATE = 800, 8, 2e-3
HEAD_ROWS, HEAD_EPOCHS, HEAD_RATE, HEAD_BATCH = 1024, 1, 1e-3, 8
FUSE_WIDTHS = {"eagle": 8 * WIDTH // 3, "sampling": 8 * WIDTH // 3, "partial": 2 * WIDTH, "fspad": 2 * WIDTH,
               "eagle, one matrix": None}  # fmt: skip
PROMPTS, PROMPT, REPLY, DRAWS = 100, 128, 32, 5000


def pages() -> list[bytes]:
    """Texts of 2 KB or more, in the order of their names: man pages without markup, or docstrings of modules."""
    from ontarget.data.standard_library import docstring_texts

    found = []
    for path in sorted(Path("/usr/share/man").glob("man[1-8]/*.gz")):
        if path.is_symlink() or path.stat().st_size < 2000 or path.name.startswith("gcloud"):
            continue
        try:
            text = gzip.decompress(path.read_bytes()).decode("utf-8")
        except (OSError, EOFError, UnicodeDecodeError):
            continue
        lines = [line for line in text.splitlines() if not re.match(r"['.]\s*(\\\"|de|ds|ie|el|if|nr|so|\.)", line)]
        text = "\n".join(re.sub(r"^[.'][A-Za-z]+ ?", "", line).strip('"') for line in lines)
        text = re.sub(r"\\f(\[\w*\]|\(?\w)|\\[&|^]|\\s[-+]?\d", "", text).replace("\\-", "-").replace("\\e", "\\")
        text = re.sub(r"\n{2,}", "\n\n", text)
        if len(text) > 2048:
            found.append(text.encode())
    if len(found) >= 700:
        return found
    return [text.encode() for text in docstring_texts(packages=True, least=2048)]


def windows(texts: list[bytes], count: int, generator: np.random.Generator) -> torch.Tensor:
    """(count, WINDOW) int: stretches of the texts, a text the likelier the longer it is."""
    sizes = np.array([len(text) for text in texts], dtype=float)
    rows = []
    for at in generator.choice(len(texts), count, p=sizes / sizes.sum()):
        start = int(generator.integers(0, len(texts[at]) - WINDOW))
        rows.append(list(texts[at][start : start + WINDOW]))
    return torch.tensor(rows)


def target_of(seed: int, texts: list[bytes], context: Context) -> Any:
    """The target of a seed, trained once and kept in the cache."""
    from safetensors.torch import load, save
    from transformers import LlamaConfig, LlamaForCausalLM

    from ontarget.plan.run_folder import write_atomic
    from ontarget.pool.cache import cache_folder, key_of

    torch.manual_seed(seed)
    model: Any = LlamaForCausalLM(LlamaConfig(
        vocab_size=256, hidden_size=WIDTH, intermediate_size=512, num_hidden_layers=LAYERS, num_attention_heads=6,
        num_key_value_heads=6, max_position_embeddings=512, tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=None,
    ))  # fmt: skip
    settings = f"{seed} {len(texts)} {sum(map(len, texts))} {TARGET_STEPS} {TARGET_ROWS} {TARGET_RATE}"
    stored = cache_folder() / "claims" / f"63_fspad_target_{key_of(settings)[:16]}.safetensors"
    if stored.exists():
        model.load_state_dict(load(stored.read_bytes()))
        return model.eval()
    generator = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=TARGET_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, TARGET_RATE, total_steps=TARGET_STEPS, pct_start=0.1)
    for step in range(TARGET_STEPS):
        if context.progress is not None:
            context.progress(step, TARGET_STEPS, "training the target")
        ids = windows(texts, TARGET_ROWS, generator)
        scores = model(ids).logits
        loss = F.cross_entropy(scores[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    write_atomic(stored, save({name: value.contiguous() for name, value in model.state_dict().items()}))
    return model.eval()


def run(seed: int, context: Context) -> dict[str, dict[str, Any]]:
    """Tokens per pass of every arm; of the first one also the p-value of its sampling."""
    from ontarget.serve.speculative.draft_tree import TreeShape, chain
    from ontarget.serve.speculative.generate import generate, generate_plain
    from ontarget.serve.speculative.train_draft import train_draft

    texts = pages()
    order = np.random.default_rng(0).permutation(len(texts))  # the prompts are the same for all seeds
    held_out, others = order[:PROMPTS], order[PROMPTS:]
    drawn = [texts[at] for at in np.random.default_rng(seed).permutation(others)[:600]]
    prompts = [list(texts[at][400 : 400 + PROMPT]) for at in held_out]
    model = target_of(seed, drawn, context)
    with torch.inference_mode():
        probe = torch.tensor([list(texts[at][400 : 400 + WINDOW]) for at in held_out])
        bits = float(model(probe, labels=probe).loss) / np.log(2)
    plain = [_flat(generate_plain(model, ids, max_new_tokens=REPLY)) for ids in prompts]
    data = windows(drawn, HEAD_ROWS, np.random.default_rng(1000 + seed)).tolist()
    results: dict[str, dict[str, Any]] = {}
    for arm in ARMS:
        trained = train_draft(
            model, data, kind=arm.split(",")[0], epochs=HEAD_EPOCHS, learning_rate=HEAD_RATE, batch_size=HEAD_BATCH,
            length=WINDOW, fuse_width=FUSE_WIDTHS[arm], context=context,
        )  # fmt: skip
        row: dict[str, Any] = {"bits per byte of the target": bits, "loss": trained.losses[-1],
                               "parameters": sum(one.numel() for one in trained.head.parameters())}  # fmt: skip
        same = True
        for name, shape in ((MEASURE, TreeShape()), ("by a chain", chain(4))):
            passes = 0
            for ids, wanted in zip(prompts, plain, strict=True):
                lists = list(generate(model, trained.head, ids, max_new_tokens=REPLY, shape=shape))
                passes += len(lists) - 1
                same = same and _flat(lists) == wanted
            row[name] = PROMPTS * (REPLY - 1) / passes
        row["equal to plain greedy"] = same
        if arm == "fspad":
            row["p of sampling"] = sampling(model, trained.head, prompts[0][:16])
        results[arm] = row
    return results


def sampling(model: Any, head: Any, ids: list[int]) -> float:
    """p-value of the second tokens of sampled replies, by the default tree, against the target's own law of them."""
    from scipy import stats

    from ontarget.serve.speculative.generate import generate

    with torch.inference_mode():
        first = model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)
        behind = torch.tensor([[*ids, token] for token in range(256)])
        second = model(behind).logits[:, -1].double().softmax(-1)
    wanted = (first @ second).numpy() * DRAWS
    found = np.zeros(256)
    for seed in range(DRAWS):
        found[_flat(generate(model, head, ids, max_new_tokens=2, temperature=1.0, seed=seed))[1]] += 1
    large = wanted >= 5
    expected = np.array([*wanted[large], wanted[~large].sum()])
    observed = np.array([*found[large], found[~large].sum()])
    return float(stats.chisquare(observed, expected / expected.sum() * observed.sum()).pvalue)


def _flat(lists: Any) -> list[int]:
    return [token for each in lists for token in each]
