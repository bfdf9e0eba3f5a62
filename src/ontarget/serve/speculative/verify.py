"""Which drafted tokens the target takes: the rule that leaves its output as it was.

Greedy: the longest path of tokens that the target would have chosen. Sampled: Leviathan, Kalman, Matias, 2022, arXiv
2211.17192, over several children as in SpecInfer (Miao et al., 2023, arXiv 2305.09781): a child x that was drawn from q
is accepted with the chance min(1, p(x) / q(x)); else p becomes max(p - q, 0), renormalised, and the next child is
tried; behind the last one the token is drawn from what is left of p. The token's law is the first p, whatever q was.
Checked in tests/serve/speculative/test_verify.py: by hand, and by a chi-square test over draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ontarget.serve.speculative.draft_tree import DraftTree
from ontarget.serve.token_law import draw


def greedy_path(tree: DraftTree, best: Sequence[int]) -> tuple[list[int], int]:
    """The accepted nodes from the root down, and the target's own token behind them.

    best: the target's best next token behind the root and behind each node, nodes + 1 entries.
    """
    path: list[int] = []
    node = -1
    while True:
        wanted = best[node + 1]
        taken = next((child for child in tree.children(node) if tree.tokens[child] == wanted), None)
        if taken is None:
            return path, int(wanted)
        path.append(taken)
        node = taken


def sampled_path(tree: DraftTree, laws: Tensor, generator: torch.Generator) -> tuple[list[int], int]:
    """The accepted nodes from the root down, and the token drawn behind them.

    laws: (nodes + 1, V) float, the target's law behind the root and behind each node.
    """
    path: list[int] = []
    node = -1
    while True:
        children = tree.children(node)
        drawn = [None if tree.laws is None else tree.laws[child] for child in children]
        taken, left = accept_child(laws[node + 1], [tree.tokens[child] for child in children], drawn, generator)
        if taken is None:
            return path, draw(left, generator)
        node = children[taken]
        path.append(node)


def accept_child(
    law: Tensor, tokens: Sequence[int], drawn: Sequence[Tensor | None], generator: torch.Generator
) -> tuple[int | None, Tensor]:
    """Which of the children ``tokens`` is accepted, if any, and what is left of ``law`` (V,) behind those that are not.

    drawn: the law that each child was drawn from; None: it was chosen without chance.
    """
    for at, (token, chance) in enumerate(zip(tokens, drawn, strict=True)):
        wanted = float(law[token])
        odds = wanted if chance is None else wanted / max(float(chance[token]), 1e-38)
        if float(torch.rand((), generator=generator)) < odds:
            return at, law
        if chance is None:
            left = law.clone()
            left[token] = 0.0
        else:
            left = (law - chance.to(law.device)).clamp(min=0)
        total = left.sum()
        # Nothing is left where both laws are equal up to rounding: the rejection itself was rounding.
        law = left / total if float(total) > 0 else law
    return None, law
