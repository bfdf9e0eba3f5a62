"""EAGLE-2's dynamic draft tree, and a chain of drawn tokens.

Li, Wei, Zhang, Zhang, 2024, arXiv 2406.16858; official code SafeAILab/EAGLE. A node's value is the product of the draft
probabilities on its path, near to the chance that it is accepted: the best ``top_k`` nodes of a level get ``top_k``
children each, and of all nodes the best ``tokens`` are checked. Here ``depth`` counts the levels of the tree; the
official code counts the passes behind the first.

Which nodes a tree has is decided by the draft alone, not drawn: for the check each child is a point mass, as in the
official code. A chain at a temperature draws its tokens from the draft's own law, which accepts more (min(1, p / q));
pruned trees of drawn tokens would not be lossless. Checked in tests/serve/speculative/test_draft_tree.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ontarget.errors import SettingError
from ontarget.serve.speculative.draft_head import DraftHead, KeysValues
from ontarget.serve.token_law import draw, token_law


@dataclass(frozen=True)
class TreeShape:
    """top_k: children of a node, and nodes of a level that get children. depth: levels. tokens: nodes that are kept.

    A top_k of 1 is a chain. Raises SettingError.
    """

    top_k: int = 10
    depth: int = 7
    tokens: int = 60

    def __post_init__(self) -> None:
        if not (1 <= self.top_k <= 64 and 1 <= self.depth <= 32 and 1 <= self.tokens <= 512):
            raise SettingError(f"top_k is {self.top_k}, depth {self.depth}, tokens {self.tokens}.",
                               allowed="1 to 64, 1 to 32, 1 to 512")  # fmt: skip

    @property
    def name(self) -> str:
        return f"a chain of {self.depth}" if self.top_k == 1 else (
            f"a tree of {self.tokens}, {self.depth} deep, {self.top_k} wide")  # fmt: skip


def chain(depth: int) -> TreeShape:
    return TreeShape(1, depth, depth)


@dataclass(frozen=True)
class DraftTree:
    """Drafted nodes behind a root, parents before children.

    tokens, parents: of each node; a parent of -1 is the root. laws: (nodes, V), what each token was drawn from; None
    where nodes were chosen without chance.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    laws: Tensor | None = None

    def depths(self) -> Tensor:
        """int (nodes + 1,): the root first, at 0."""
        found = [0]
        for parent in self.parents:
            found.append(found[parent + 1] + 1)
        return torch.tensor(found)

    def sees(self) -> Tensor:
        """bool (nodes + 1, nodes + 1), the root first: each node sees itself and its ancestors."""
        found = torch.eye(len(self.tokens) + 1, dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            found[node + 1] |= found[parent + 1]
        return found

    def children(self, node: int) -> list[int]:
        return [at for at, parent in enumerate(self.parents) if parent == node]


def draft_tree(
    head: DraftHead, features: Tensor, tokens: Tensor, shape: TreeShape, *, past: KeysValues | None = None,
    temperature: float = 0.0, top_p: float = 1.0, generator: torch.Generator | None = None,
) -> tuple[DraftTree, KeysValues]:  # fmt: skip
    """Draft behind the last of ``tokens``; also the head's keys and values of all inputs that are not drafts.

    features: f_i of the target (1, T, d). tokens: x_{i+1} (1, T): the last one is the tree's root. past: of earlier
    inputs. generator: of a chain's draws, needed at a temperature above 0.
    """
    guess, read, past = head(features, tokens, past=past)
    guess, read = guess[:, -1:], read[:, -1:]
    if shape.top_k == 1:
        return _chain(head, guess, read, past, shape, temperature, top_p, generator), past
    return _tree(head, guess, read, past, shape, temperature, top_p), past


def _chain(
    head: DraftHead, guess: Tensor, read: Tensor, past: KeysValues, shape: TreeShape, temperature: float, top_p: float,
    generator: torch.Generator | None,
) -> DraftTree:  # fmt: skip
    tokens, laws = [], []
    ids = head.drafted_tokens
    for level in range(shape.depth):
        scores = head.draft_scores(read)[0, 0]
        if temperature > 0:
            assert generator is not None
            law = token_law(scores, temperature, top_p)
            if ids is not None:  # the other tokens are never drafted
                law = law.new_zeros(head.vocabulary).index_copy_(0, ids, law)
            laws.append(law)
            tokens.append(draw(law, generator))
        else:
            best = scores.argmax()
            tokens.append(int(best if ids is None else ids[best]))
        if level + 1 < shape.depth:
            guess, read, past = head(guess, torch.tensor([tokens[-1:]], device=guess.device), past=past)
    return DraftTree(tuple(tokens), tuple(range(-1, len(tokens) - 1)), torch.stack(laws) if laws else None)


def _tree(
    head: DraftHead, guess: Tensor, read: Tensor, past: KeysValues, shape: TreeShape, temperature: float, top_p: float
) -> DraftTree:
    device, before, ids = guess.device, past[0].shape[2], head.drafted_tokens
    tokens: list[int] = []
    parents: list[int] = []
    values: list[float] = []
    level = [-1]  # nodes whose children are found next; row r of guess and read belongs to level[r]
    slots: dict[int, list[int]] = {-1: []}  # entries of the head's cache behind `before` that a node sees
    filled = 0
    for depth in range(shape.depth):
        scores = head.draft_scores(read)[0]
        law = token_law(scores, temperature, top_p) if temperature > 0 else scores.softmax(-1)
        found = law.topk(min(shape.top_k, law.shape[-1]))
        best = found.indices if ids is None else ids[found.indices]
        chances, drafted = found.values.tolist(), best.tolist()
        born: list[int] = []
        for row, node in enumerate(level):
            value = values[node] if node >= 0 else 1.0
            for chance, token in zip(chances[row], drafted[row], strict=True):
                if chance > 0:
                    born.append(len(tokens))
                    tokens.append(token)
                    parents.append(node)
                    values.append(value * chance)
        rows = {node: row for row, node in enumerate(level)}
        level = sorted(sorted(born, key=lambda node: -values[node])[: shape.top_k])
        if depth + 1 == shape.depth or not level:
            break
        mask = torch.zeros(len(level), before + filled + len(level), dtype=torch.bool)
        mask[:, :before] = True
        for row, node in enumerate(level):
            slots[node] = [*slots[parents[node]], filled + row]
            mask[row, [before + slot for slot in slots[node]]] = True
        filled += len(level)
        features = guess[:, [rows[parents[node]] for node in level]]
        guess, read, past = head(
            features, torch.tensor([[tokens[node] for node in level]], device=device), past=past, mask=mask.to(device),
            positions=torch.full((len(level),), before + depth, device=device),
        )  # fmt: skip
    # A parent is worth no less than its child and older: with ties in order of age no kept node lacks its parent.
    kept = sorted(sorted(range(len(tokens)), key=lambda node: -values[node])[: shape.tokens])
    new = {-1: -1} | {node: at for at, node in enumerate(kept)}
    return DraftTree(tuple(tokens[node] for node in kept), tuple(new[parents[node]] for node in kept))
