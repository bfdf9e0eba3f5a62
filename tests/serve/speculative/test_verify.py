"""Acceptance: by hand; no loss in law by a chi-square test over draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from ontarget.errors import SettingError
from ontarget.serve.speculative.draft_tree import DraftTree
from ontarget.serve.speculative.verify import accept_child, greedy_path, sampled_path
from ontarget.serve.token_law import check_sampling, draw, token_law


def test_greedy_path_by_hand() -> None:
    #       root -> 5 -> 7 -> 8
    #            -> 6 -> 9
    tree = DraftTree((5, 6, 7, 9, 8), (-1, -1, 0, 1, 2))
    assert greedy_path(tree, [5, 7, 0, 8, 0, 3]) == ([0, 2, 4], 3)  # the whole path and a token behind it
    assert greedy_path(tree, [6, 7, 9, 8, 1, 3]) == ([1, 3], 1)
    assert greedy_path(tree, [6, 7, 8, 8, 1, 3]) == ([1], 8)
    assert greedy_path(tree, [4, 7, 9, 8, 1, 3]) == ([], 4)


def test_what_is_left_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    law, chance = torch.tensor([0.5, 0.3, 0.2, 0.0]), torch.tensor([0.25, 0.25, 0.25, 0.25])
    # Token 3 has no chance in the target: always rejected. p - q = .25 .05 -.05 -.25 -> 5/6 1/6.
    taken, left = accept_child(law, [3], [chance], generator)
    assert taken is None
    torch.testing.assert_close(left, torch.tensor([5 / 6, 1 / 6, 0, 0]))
    # The second child is drawn from the same law: 5/6 - 1/4 = 7/12, 1/6 - 1/4 < 0.
    taken, left = accept_child(law, [3, 3], [chance, chance], generator)
    assert taken is None
    torch.testing.assert_close(left, torch.tensor([1.0, 0, 0, 0]))
    # A point mass takes its own token away.
    left = torch.zeros(4)
    for seed in range(50):
        taken, left = accept_child(law, [0], [None], torch.Generator().manual_seed(seed))
        if taken is None:
            break
    torch.testing.assert_close(left, torch.tensor([0, 0.6, 0.4, 0]))
    # p >= q: always accepted.
    assert all(accept_child(law, [0], [chance], generator)[0] == 0 for _ in range(50))
    assert accept_child(law, [], [], generator)[0] is None


def counts_of(run, draws: int, cells: int) -> np.ndarray:
    found = np.zeros(cells)
    for _ in range(draws):
        found[run()] += 1
    return found


@pytest.mark.parametrize("children", [1, 3])
def test_drawn_children_lose_nothing(children) -> None:
    generator = torch.Generator().manual_seed(5)
    law = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])
    chance = torch.tensor([0.05, 0.5, 0.05, 0.2, 0.2])

    def once() -> int:
        tokens = [draw(chance, generator) for _ in range(children)]
        taken, left = accept_child(law, tokens, [chance] * children, generator)
        return draw(left, generator) if taken is None else tokens[taken]

    found = counts_of(once, 5000, 5)
    assert stats.chisquare(found, law.numpy().astype(float) / law.double().sum().item() * 5000).pvalue > 0.01


def test_a_fixed_tree_loses_nothing_over_two_tokens() -> None:
    generator = torch.Generator().manual_seed(6)
    tree = DraftTree((1, 2, 0, 1, 2), (-1, -1, 0, 0, 1))
    laws = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3], [0.1, 0.1, 0.8], *[[1.0, 0, 0]] * 3])
    behind = {1: laws[1], 2: laws[2], 0: torch.tensor([0.3, 0.3, 0.4])}
    wanted = torch.stack([laws[0][first] * behind[first] for first in range(3)]).flatten()

    def once() -> int:
        path, token = sampled_path(tree, laws, generator)
        said = [*(tree.tokens[node] for node in path), token]
        if len(said) == 1:  # a later pass says the second one
            said.append(draw(behind[said[0]], generator))
        return said[0] * 3 + said[1]

    found = counts_of(once, 5000, 9)
    assert stats.chisquare(found, wanted.double().numpy() / wanted.double().sum().item() * 5000).pvalue > 0.01


def test_law_is_that_of_transformers() -> None:
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    torch.manual_seed(0)
    logits = torch.randn(6, 30) * 2
    for temperature, top_p in ((1.0, 1.0), (0.7, 0.9), (1.5, 0.3), (1.0, 1e-6)):
        warped = TopPLogitsWarper(top_p)(None, TemperatureLogitsWarper(temperature)(None, logits))
        torch.testing.assert_close(token_law(logits, temperature, top_p), warped.softmax(-1))
    assert token_law(logits, 0.0).argmax(-1).tolist() == logits.argmax(-1).tolist()
    assert token_law(torch.tensor([1.0, 3.0, 3.0]), 0.0).tolist() == [0, 1, 0]


def test_settings_out_of_range() -> None:
    with pytest.raises(SettingError, match="temperature"):
        check_sampling(-1, 1)
    with pytest.raises(SettingError, match="top_p"):
        check_sampling(1, 0)
