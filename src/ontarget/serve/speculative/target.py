"""The target of speculative decoding: one pass over a tree of tokens, and a cache that forgets what was rejected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ontarget.errors import DataError
from ontarget.pool.language_models import cache_argument


class Target:
    """A causal language model with the keys and values of the tokens so far; batch of one.

    length: tokens that the cache holds.
    """

    def __init__(self, model: Any) -> None:
        from transformers import DynamicCache

        self.model, self.cache, self.length = model, DynamicCache(), 0
        self.device = model.get_input_embeddings().weight.device
        self._argument = cache_argument(model.base_model)

    def read(self, tokens: Sequence[int], *, depths: Tensor | None = None, sees: Tensor | None = None) -> Tensor:
        """Last hidden states (1, T, d) of ``tokens`` behind what the cache holds; their keys and values are added.

        depths: (T,) int, position of each token behind the cache, for a tree. sees: bool (T, T), which of ``tokens``
        each sees. Both are left out for plain text.
        """
        ids = torch.tensor([list(tokens)], device=self.device)
        given: dict[str, Any] = {}
        if sees is not None and depths is not None:
            whole = torch.cat([torch.ones(len(tokens), self.length, dtype=torch.bool), sees], 1).to(self.device)
            dtype = self.model.get_input_embeddings().weight.dtype
            mask = torch.zeros(whole.shape, dtype=dtype, device=self.device)
            given = {"attention_mask": mask.masked_fill_(~whole, torch.finfo(dtype).min)[None, None],
                     "position_ids": (self.length + depths)[None].to(self.device)}  # fmt: skip
        made = self.model.base_model(ids, **given, **{self._argument: self.cache}, use_cache=True)
        self.length += len(tokens)
        states: Tensor = made.last_hidden_state
        return states

    def logits(self, states: Tensor) -> Tensor:
        """Scores of the next token, float32 (..., V)."""
        found: Tensor = self.model.get_output_embeddings()(states).float()
        return found

    def keep(self, start: int, nodes: Sequence[int]) -> None:
        """Of the entries from ``start`` on keep ``nodes`` (counted from ``start``, in that order), drop the others."""
        rows = torch.tensor([start + node for node in nodes], device=self.device)
        straight = list(nodes) == list(range(len(nodes)))
        for layer in self.cache.layers:
            for name in ("keys", "values"):
                held = getattr(layer, name)
                if straight:
                    kept = held[..., : start + len(nodes), :]
                else:
                    kept = torch.cat([held[..., :start, :], held.index_select(-2, rows.to(held.device))], -2)
                setattr(layer, name, kept)
        self.length = start + len(nodes)


@torch.inference_mode()
def check_target(model: Any) -> None:
    """Raises DataError: a model that is no causal language model, or one whose passes over a tree differ from plain
    ones (attention over a sliding window, recurrent layers, logits that are not the LM head's, other masks)."""
    from transformers import DynamicCache

    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)

    def refuse(why: str) -> DataError:
        return DataError(f"A model of the kind '{kind}' cannot have a draft head: {why}.",
                         allowed="causal language models like Llama, Qwen2, SmolLM2, with full attention")  # fmt: skip

    if not hasattr(model, "get_output_embeddings") or model.get_output_embeddings() is None:
        raise refuse("it is no causal language model")
    if getattr(model.config, "is_encoder_decoder", False):
        raise refuse("it has an encoder")
    layers = DynamicCache(config=model.config).layers
    odd = next((type(layer).__name__ for layer in layers if type(layer).__name__ != "DynamicLayer"), None)
    if odd is not None:
        raise refuse(f"its layers keep a {odd}")
    training = model.training
    model.eval()
    try:
        vocabulary = model.get_input_embeddings().weight.shape[0]
        one, two, three = (token % vocabulary for token in (1, 2, 3))
        device = model.get_input_embeddings().weight.device
        scores = model(torch.tensor([[one, two], [one, three]], device=device), use_cache=False).logits.float()
        ahead, plain = float((scores[0, 0] - scores[1, 0]).abs().max()), scores[:, -1]
        target = Target(model)
        target.read([one])
        states = target.read([two, three], depths=torch.tensor([0, 0]), sees=torch.eye(2, dtype=torch.bool))
        tree = target.logits(states)[0]
    except Exception as error:  # models raise what they like
        raise refuse(f"a pass over a tree fails ({type(error).__name__}: {error})") from error
    finally:
        model.train(training)
    scale = float(plain.std()) + 1e-6
    if ahead > 1e-3 * scale:
        raise refuse("it is no causal language model: a token sees those behind it")
    half = model.get_input_embeddings().weight.dtype != torch.float32
    if not bool(((tree - plain).abs() <= (0.2 if half else 1e-3) * scale).all()):
        raise refuse("its pass over a tree gives other scores than its plain one")
