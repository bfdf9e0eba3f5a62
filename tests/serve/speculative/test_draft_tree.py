"""The draft tree: against enumeration of all paths; masks by hand; chains."""

from __future__ import annotations

import itertools

import pytest
import torch

from ontarget.errors import SettingError
from ontarget.serve.speculative.draft_head import new_draft_head
from ontarget.serve.speculative.draft_tree import DraftTree, TreeShape, chain, draft_tree


def path_of(tree: DraftTree, node: int) -> tuple[int, ...]:
    found: list[int] = []
    while node >= 0:
        found.insert(0, tree.tokens[node])
        node = tree.parents[node]
    return tuple(found)


def draft_law(head, features, tokens, path):
    """The draft's next law behind a path, by feeding whole sequences anew."""
    for token in path:
        guess = head(features, tokens)[0][:, -1:]
        features, tokens = torch.cat([features, guess], 1), torch.cat([tokens, torch.tensor([[token]])], 1)
    return head.logits(head(features, tokens)[1][:, -1])[0].softmax(-1)


def test_masks_and_depths_by_hand() -> None:
    tree = DraftTree((5, 6, 7, 8), (-1, -1, 0, 2))
    assert tree.depths().tolist() == [0, 1, 1, 2, 3]
    assert tree.sees().int().tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1],
    ]  # fmt: skip
    assert tree.children(-1) == [0, 1] and tree.children(0) == [2] and tree.children(3) == []


@pytest.mark.parametrize("kind", ["eagle", "fspad"])
def test_a_full_tree_holds_the_likeliest_paths(tiny_llama, kind) -> None:
    """Over 5 tokens with a beam of 25 nothing is cut, so that enumeration tells which nodes must be kept."""
    torch.manual_seed(1)
    model = tiny_llama(vocab_size=5)
    head = new_draft_head(model, kind, seed=4).requires_grad_(False)
    model.requires_grad_(False)
    features, tokens = torch.randn(1, 6, 32), torch.randint(0, 5, (1, 6))
    values = {}
    for length in (1, 2, 3):
        for path in itertools.product(range(5), repeat=length):
            chance = draft_law(head, features, tokens, path[:-1])[path[-1]]
            values[path] = float(chance) * values.get(path[:-1], 1.0)
    best = sorted(values, key=lambda path: -values[path])[:20]
    _, past = draft_tree(head, features[:, :4], tokens[:, :4], TreeShape(2, 2, 2))
    tree, _ = draft_tree(head, features[:, 4:], tokens[:, 4:], TreeShape(25, 3, 20), past=past)
    assert {path_of(tree, node) for node in range(20)} == set(best)
    assert all(parent < node for node, parent in enumerate(tree.parents))


def test_a_level_has_at_most_top_k_parents(tiny_llama) -> None:
    head = new_draft_head(tiny_llama(), "eagle").requires_grad_(False)
    tree, past = draft_tree(head, torch.randn(1, 3, 32), torch.tensor([[1, 2, 3]]), TreeShape(3, 4, 100))
    assert past[0].shape[2] == 3  # drafts leave nothing behind
    depths = tree.depths().tolist()[1:]
    assert len(tree.tokens) == 3 + 9 * 3 and max(depths) == 4
    for depth in (2, 3, 4):
        assert len({parent for parent, at in zip(tree.parents, depths, strict=True) if at == depth}) <= 3


def test_chain_is_the_greedy_path_of_the_draft(tiny_llama) -> None:
    head = new_draft_head(tiny_llama(), "fspad", seed=1).requires_grad_(False)
    features, tokens = torch.randn(1, 3, 32), torch.tensor([[1, 2, 3]])
    tree, past = draft_tree(head, features, tokens, chain(4))
    wanted: list[int] = []
    for _ in range(4):
        wanted.append(int(draft_law(head, features, tokens, wanted).argmax()))
    assert tree.tokens == tuple(wanted) and tree.parents == (-1, 0, 1, 2) and tree.laws is None
    assert past[0].shape[2] == 3


def test_drawn_chain_tells_its_laws(tiny_llama) -> None:
    head = new_draft_head(tiny_llama(), "fspad", seed=1).requires_grad_(False)
    features, tokens = torch.randn(1, 3, 32), torch.tensor([[1, 2, 3]])
    generator = torch.Generator().manual_seed(0)
    tree, _ = draft_tree(head, features, tokens, chain(3), temperature=1.0, generator=generator)
    for at in range(3):
        torch.testing.assert_close(tree.laws[at], draft_law(head, features, tokens, tree.tokens[:at]))


def test_shapes_out_of_range() -> None:
    with pytest.raises(SettingError, match="top_k is 0"):
        TreeShape(0)
    assert chain(3).name == "a chain of 3"
