"""What tests compare generated text with: greedy text by transformers' own loop, and a model's law of three tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ontarget.serve.token_law import token_law
from ontarget.values import Array


def greedy_text(model: Any, tokenizer: Any, prompt: str, count: int) -> str:
    """The ``count`` greedy tokens behind ``prompt`` as transformers' own generation gives them."""
    import torch

    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    with torch.inference_mode():
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
        )
    return str(tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True))


def law_of_triples(model: Any, ids: Sequence[int], temperature: float, top_p: float) -> Array:
    """(V, V, V) float64: the chance of each three tokens behind ``ids``, from passes over all first two. For tiny V."""
    import torch

    size = model.get_input_embeddings().weight.shape[0]
    wanted = np.zeros((size, size, size))
    with torch.inference_mode():
        for first in range(size):
            for second in range(size):
                scores = model(torch.tensor([[*ids, first, second]])).logits[0].float()
                laws = token_law(scores[len(ids) - 1 :], temperature, top_p).double().numpy()
                wanted[first, second] = laws[0][first] * laws[1][second] * laws[2]
    return wanted


def law_p_value(found: Array, wanted: Array) -> float:
    """p of a chi-square test of counts against chances, cells of fewer than 5 expected put together; 0 where something
    came that cannot."""
    from scipy import stats

    if found[wanted == 0].sum():
        return 0.0
    expected = wanted.ravel() * found.sum()
    large = expected >= 5
    cells = np.array([*expected[large], expected[~large].sum()])
    observed = [*found.ravel()[large], found.ravel()[~large].sum()]
    return float(stats.chisquare(observed, cells / cells.sum() * found.sum()).pvalue)
