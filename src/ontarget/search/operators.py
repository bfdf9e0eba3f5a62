"""From an operator's description to the module that is timed, and an input for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ontarget.errors import SettingError, nearest
from ontarget.search.space import Operator


def build_operator(operator: Operator) -> torch.nn.Module:
    """The module with random weights, in evaluation mode. Raises SettingError for a kind that is not known."""
    if operator.kind not in _BUILDERS:
        raise SettingError(
            f"'{operator.kind}' is no kind of operator.", allowed=", ".join(sorted(_BUILDERS)), option="operators",
            next_step=nearest(operator.kind, _BUILDERS),
        )  # fmt: skip
    module: torch.nn.Module = _BUILDERS[operator.kind](operator)
    return module.eval()


def operator_input(operator: Operator, batch_size: int) -> tuple[Tensor, ...]:
    """Random inputs (batch_size, *shape): float32, or token ids and mask for embeddings."""
    generator = torch.Generator().manual_seed(0)
    if operator.kind in ("bert_embeddings", "llama_embeddings"):
        length, vocabulary = operator.shape[0], dict(operator.settings)["vocabulary"]
        return (torch.randint(0, vocabulary, (batch_size, length), generator=generator),)
    pixels = torch.randn(batch_size, *operator.shape, generator=generator)
    if operator.kind == "bert_attention":
        return pixels, torch.ones(batch_size, operator.shape[0], dtype=torch.int64)
    if operator.kind == "llama_attention":
        from ontarget.parts.slim_llama import visible_and_turns

        mask = torch.ones(batch_size, operator.shape[0], dtype=torch.int64)
        return (pixels, *visible_and_turns(mask, dict(operator.settings)["head_width"], 10_000.0))
    return (pixels,)


def _mbconv(operator: Operator) -> torch.nn.Module:
    from ontarget.parts.mobile_network import MBConv, Residual

    of = dict(operator.settings)
    block = MBConv(operator.shape[0], of["out"], kernel=of["kernel"], expansion=of["expansion"], stride=of["stride"])
    return Residual(block) if of["residual"] else block


def _stem(operator: Operator) -> torch.nn.Module:
    from ontarget.parts.mobile_network import stem

    of = dict(operator.settings)
    return stem(operator.shape[0], of["width"], of["stride"])


def _head(operator: Operator) -> torch.nn.Module:
    from ontarget.parts.mobile_network import Head

    of = dict(operator.settings)
    return Head(operator.shape[0], of["width"], of["outputs"])


def _bert_embeddings(operator: Operator) -> torch.nn.Module:
    from ontarget.parts.slim_bert import Embeddings

    of = dict(operator.settings)
    return Embeddings(of["vocabulary"], of["positions"], of["width"])


def _bert_attention(operator: Operator) -> torch.nn.Module:
    from ontarget.parts.slim_bert import Attention

    of = dict(operator.settings)
    return Attention(operator.shape[1], of["heads"], of["head_width"])


def _bert_mlp(operator: Operator) -> torch.nn.Module:
    from ontarget.parts.slim_bert import FeedForward

    return FeedForward(operator.shape[1], dict(operator.settings)["hidden"])


def _bert_head(operator: Operator) -> torch.nn.Module:
    from ontarget.parts.slim_bert import MeanHead

    return MeanHead(operator.shape[1], dict(operator.settings)["outputs"])


def _llama_embeddings(operator: Operator) -> torch.nn.Module:
    from ontarget.parts.slim_llama import WordEmbeddings

    of = dict(operator.settings)
    return WordEmbeddings(of["vocabulary"], of["width"])


def _llama_attention(operator: Operator) -> torch.nn.Module:
    from ontarget.parts.slim_llama import GroupedAttention

    of = dict(operator.settings)
    return GroupedAttention(operator.shape[1], of["groups"], of["queries"], of["head_width"], 1e-5)


def _llama_mlp(operator: Operator) -> torch.nn.Module:
    from ontarget.parts.slim_llama import GatedFeedForward

    return GatedFeedForward(operator.shape[1], dict(operator.settings)["hidden"], 1e-5)


def _llama_head(operator: Operator) -> torch.nn.Module:
    from ontarget.parts.slim_llama import NormedMeanHead

    return NormedMeanHead(operator.shape[1], dict(operator.settings)["outputs"], 1e-5)


def _resolution(operator: Operator) -> torch.nn.Module:
    from ontarget.search.multi_resolution import operator_module

    return operator_module(operator)


_BUILDERS: dict[str, Callable[[Operator], Any]] = {
    "bert_attention": _bert_attention,
    "bert_embeddings": _bert_embeddings,
    "bert_head": _bert_head,
    "bert_mlp": _bert_mlp,
    "head": _head,
    "llama_attention": _llama_attention,
    "llama_embeddings": _llama_embeddings,
    "llama_head": _llama_head,
    "llama_mlp": _llama_mlp,
    "mbconv": _mbconv,
    **{f"resolution_{part}": _resolution for part in ("block", "edge", "enlarge", "projection", "stem")},
    "stem": _stem,
}
