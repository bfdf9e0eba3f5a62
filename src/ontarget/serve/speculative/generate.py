"""Generate with a draft head: what the model itself would say, several tokens a pass.

At a temperature of 0 the tokens are those of plain greedy decoding; above, each token has the model's own law. Both up
to rounding: a pass over many tokens rounds otherwise than one over a single token, so that where the two best tokens
differ by less than that, the other one may be taken, in 16-bit types more often. Batch of one.
Checked in tests/serve/speculative/test_generate.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ontarget.errors import DataError, RunError, SettingError
from ontarget.serve.speculative.draft_head import DraftHead, KeysValues
from ontarget.serve.speculative.draft_tree import TreeShape, draft_tree
from ontarget.serve.speculative.target import Target
from ontarget.serve.speculative.verify import greedy_path, sampled_path
from ontarget.serve.token_law import check_sampling, draw, token_law


def generate(
    model: Any, head: DraftHead, ids: Sequence[int], *, max_new_tokens: int = 256, temperature: float = 0.0,
    top_p: float = 1.0, stop_ids: Sequence[int] = (), seed: int = 0, shape: TreeShape = TreeShape(),
    piece: int | None = None,
) -> Iterator[list[int]]:  # fmt: skip
    """New tokens behind ``ids``, one list for each pass of the model; ends behind the first of ``stop_ids``.

    The first list, one token, is of the pass over the prompt. piece: tokens of the prompt that a pass reads at most;
    each such pass but the last brings an empty list. Raises SettingError; DataError: an empty prompt, or one that
    leaves no room for ``max_new_tokens`` in the model's window; RunError: scores that are no numbers.
    """
    check_prompt(model, ids, max_new_tokens)
    check_sampling(temperature, top_p)
    round_ = _Rounds(model, head, temperature, top_p, seed)
    step = piece or len(ids)
    for at in range(0, len(ids) - step, step):
        round_.read(ids[at : at + step])
        yield []
    new = round_.begin(ids)
    left = max_new_tokens
    while True:
        new = _cut(new, left, stop_ids)
        left -= len(new)
        yield new
        if left == 0 or new[-1] in stop_ids:
            return
        new = round_.go_on(shape, left)


def generate_plain(
    model: Any, ids: Sequence[int], *, max_new_tokens: int = 256, temperature: float = 0.0, top_p: float = 1.0,
    stop_ids: Sequence[int] = (), seed: int = 0,
) -> Iterator[list[int]]:  # fmt: skip
    """As `generate`, one token a pass: for where a head does not pay."""
    check_prompt(model, ids, max_new_tokens)
    check_sampling(temperature, top_p)
    target, generator = Target(model), torch.Generator().manual_seed(seed)
    given = list(ids)
    for _ in range(max_new_tokens):
        token = _plain_step(target, given, temperature, top_p, generator)
        yield [token]
        if token in stop_ids:
            return
        given = [token]


def check_prompt(model: Any, ids: Sequence[int], max_new_tokens: int) -> None:
    """Raises SettingError, DataError."""
    if max_new_tokens < 1:
        raise SettingError(f"max_new_tokens is {max_new_tokens}.", allowed="1 or more", option="max_new_tokens")
    if len(ids) == 0:
        raise DataError("The prompt is empty.", next_step="give at least one token")
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if min(ids) < 0 or max(ids) >= vocabulary:
        raise DataError(f"The prompt holds the token {max(ids) if min(ids) >= 0 else min(ids)}.",
                        allowed=f"0 to {vocabulary - 1}", next_step="use the model's own tokenizer")  # fmt: skip
    window = getattr(model.config, "max_position_embeddings", None)
    if window and len(ids) + max_new_tokens > window:
        raise DataError(f"The prompt has {len(ids):,} tokens, and {max_new_tokens:,} new ones may follow.",
                        allowed=f"{window:,} together, the model's window", option="max_new_tokens",
                        next_step="shorten the prompt or the answer")  # fmt: skip


def _cut(new: list[int], left: int, stop_ids: Sequence[int]) -> list[int]:
    end = next((at + 1 for at, token in enumerate(new) if token in stop_ids), len(new))
    return new[: min(end, left)]


@torch.inference_mode()
def _plain_step(target: Target, given: list[int], temperature: float, top_p: float, generator: torch.Generator) -> int:
    scores = target.logits(target.read(given)[:, -1])[0]
    return int(scores.argmax()) if temperature == 0 else draw(token_law(scores, temperature, top_p), generator)


def _best(scores: Tensor) -> list[int]:
    """The best token of each row (R, V). Raises RunError."""
    found = scores.max(-1)
    if not bool(found.values.isfinite().all()):
        raise RunError("The model's scores are not finite.", next_step="load it in float32")
    best: list[int] = found.indices.tolist()
    return best


class _Rounds:
    """Target and head, each with its cache, and what the head has not read yet."""

    def __init__(self, model: Any, head: DraftHead, temperature: float, top_p: float, seed: int) -> None:
        self.target, self.head, self.temperature, self.top_p = Target(model), head, temperature, top_p
        self.generator = torch.Generator().manual_seed(seed)
        self.past: KeysValues | None = None
        self.prompt: list[Tensor] = []  # states of its pieces

    @torch.inference_mode()
    def read(self, piece: Sequence[int]) -> None:
        """Of the prompt."""
        self.prompt.append(self.target.read(piece))

    @torch.inference_mode()
    def begin(self, ids: Sequence[int]) -> list[int]:
        """The token behind the prompt ``ids``, of which `read` may have had a part."""
        self.read(ids[self.target.length :])
        states = torch.cat(self.prompt, 1)
        self.prompt.clear()
        scores = self.target.logits(states[:, -1])[0]
        if self.temperature == 0:
            [self.root] = _best(scores[None])
        else:
            self.root = draw(token_law(scores, self.temperature, self.top_p), self.generator)
        # The head pairs each state with the token behind it.
        self.states, self.behind = states, [*list(ids)[1:], self.root]
        return [self.root]

    @torch.inference_mode()
    def go_on(self, shape: TreeShape, left: int) -> list[int]:
        """The next tokens; ``left`` may still be said, so that a draft of ``left - 1`` levels is enough."""
        start = self.target.length
        if left == 1:
            return [_plain_step(self.target, [self.root], self.temperature, self.top_p, self.generator)]
        tree, self.past = draft_tree(
            self.head, self.states, torch.tensor([self.behind], device=self.states.device),
            replace(shape, depth=min(shape.depth, left - 1)), past=self.past, temperature=self.temperature,
            top_p=self.top_p, generator=self.generator,
        )  # fmt: skip
        states = self.target.read([self.root, *tree.tokens], depths=tree.depths(), sees=tree.sees())
        scores = self.target.logits(states)[0]
        if self.temperature == 0:
            path, self.root = greedy_path(tree, _best(scores))
        else:
            laws = token_law(scores, self.temperature, self.top_p).cpu()
            path, self.root = sampled_path(tree, laws, self.generator)
        nodes = [0, *(node + 1 for node in path)]
        self.target.keep(start, nodes)
        new = [*(tree.tokens[node] for node in path), self.root]
        self.states, self.behind = states[:, nodes], new
        return new
