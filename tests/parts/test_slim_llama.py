"""The plain Llama encoder's parts: formulas by hand, causality, free axes in ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ontarget.errors import SettingError
from ontarget.parts.slim_llama import RootMeanSquareNorm, SlimLlama, grouped, turned, visible_and_turns

CONFIG: dict[str, Any] = {
    "network": "llama", "vocabulary": 40, "width": 12, "head_width": 4, "queries": 2, "base": 100.0, "epsilon": 1e-5,
    "outputs": 3, "layers": [{"groups": 2, "hidden": 10}, {"groups": 1, "hidden": 6}],
}  # fmt: skip


def network() -> SlimLlama:
    torch.manual_seed(0)
    return SlimLlama(CONFIG).eval()


def test_the_norm_is_torchs() -> None:
    torch.manual_seed(0)
    norm, hidden = RootMeanSquareNorm(12, 1e-5), 3 * torch.randn(2, 5, 12)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
    expected = torch.nn.functional.rms_norm(hidden, (12,), norm.weight, 1e-5)
    torch.testing.assert_close(norm(hidden), expected)


def test_only_distances_count_for_rotary_positions() -> None:
    torch.manual_seed(0)
    one, other = torch.randn(2, 4)
    mask = torch.ones(1, 9, dtype=torch.int64)
    _, cosine, sine = visible_and_turns(mask, 4, 100.0)
    query, key = (turned(vector.expand(1, 1, 9, 4), cosine, sine)[0, 0] for vector in (one, other))
    products = query @ key.T
    for distance in (-3, 0, 2):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    # By hand: the pair of coordinates 1 and 3 turns by 100 ** (-1 / 2) = 0.1 a token.
    angle = torch.tensor(0.3)
    assert float(query[3, 1]) == pytest.approx(float(one[1] * angle.cos() - one[3] * angle.sin()), abs=1e-6)


def test_grouped_attention_by_hand() -> None:
    """Softmax over earlier tokens that are no padding; the query heads 0, 1 read the first key, 2, 3 the second."""
    torch.manual_seed(0)
    groups, queries, d, length = 2, 2, 4, 5
    joint = torch.randn(1, length, groups * (queries + 2) * d)
    mask = torch.tensor([[1, 1, 0, 1, 1]])
    context = visible_and_turns(mask, d, 100.0)
    found = grouped(joint, groups, queries, context)
    parts = joint[0].split([groups * queries * d, groups * d, groups * d], dim=-1)
    query, key, value = (part.view(length, -1, d) for part in parts)
    for head in range(groups * queries):
        q, k, v = query[:, head], key[:, head // queries], value[:, head // queries]
        q, k = (turned(part[None, None], context[1], context[2])[0, 0] for part in (q, k))
        for at in (0, 1, 3, 4):
            seen = [before for before in range(at + 1) if mask[0, before]]
            weight = torch.softmax(q[at] @ k[seen].T / d**0.5, -1)
            torch.testing.assert_close(found[0, at, head * d : (head + 1) * d], weight @ v[seen])


def test_later_tokens_change_nothing_before_them() -> None:
    slim = network()
    ids = torch.randint(0, 40, (1, 6), generator=torch.Generator().manual_seed(1))
    other = ids.clone()
    other[0, 4] = (other[0, 4] + 1) % 40
    context = visible_and_turns(torch.ones_like(ids), slim.head_width, slim.base)

    def hidden(tokens: torch.Tensor) -> torch.Tensor:
        found = slim.embeddings(tokens)
        for attention, forward in zip(slim.attentions, slim.feed_forwards, strict=True):
            found = forward(attention(found, *context))
        return found

    torch.testing.assert_close(hidden(ids)[:, :4], hidden(other)[:, :4])
    assert not torch.allclose(hidden(ids)[:, 4:], hidden(other)[:, 4:])


def test_more_padding_changes_no_score() -> None:
    slim = network()
    ids = torch.randint(0, 40, (2, 5), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    wide = [torch.cat([part, torch.full((2, 3), fill)], 1) for part, fill in ((ids, 7), (mask, 0))]
    torch.testing.assert_close(slim(*wide), slim(ids, mask), atol=1e-6, rtol=1e-6)


def test_a_graph_takes_other_rows_and_lengths(tmp_path: Path) -> None:
    from ontarget.compress.export import trace
    from ontarget.runtime.session import make_session

    slim, names = network(), ["input_ids", "attention_mask"]
    axes = {**{name: {0: "rows", 1: "length"} for name in names}, "scores": {0: "rows"}}
    example = (torch.ones(2, 4, dtype=torch.int64), torch.ones(2, 4, dtype=torch.int64))
    trace(slim, example, tmp_path / "network.onnx", input_names=names, axes=axes)
    session = make_session(tmp_path / "network.onnx", threads=1)
    generator = torch.Generator().manual_seed(1)
    for rows, length in ((1, 1), (1, 3), (5, 9)):
        ids = torch.randint(0, 40, (rows, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, 1 + length // 2 :] = 0
        with torch.inference_mode():
            expected = slim(ids, mask).numpy()
        found = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["queries", "base", "layers"])
def test_a_config_that_lacks_something_is_named(name: str) -> None:
    with pytest.raises(SettingError, match=f"has no '{name}'"):
        SlimLlama({key: value for key, value in CONFIG.items() if key != name})
