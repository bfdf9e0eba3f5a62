"""FSPAD: Boosting Lossless Speculative Decoding via Feature Sampling and Partial Alignment Distillation.

Lujun Gui, Bin Xiao, Lei Su, Weipeng Chen, 2024, arXiv 2408.15562; no official code. Claim: a draft head whose token
picks from the target's state in a wider space (feature sampling), and of which only a part must match that state
(partial alignment), has more tokens accepted than EAGLE-2's. Both parts are reconstructed from the abstract. The head
is in speculative/draft_head.py, its losses in speculative/train_draft.py, the drafts and their check in
speculative/draft_tree.py, verify.py and generate.py. Left out: other draft widths and depths of the paper's ablations.
Checked in claims/63_fspad.py and tests/serve/speculative.

    trained = fspad(model, replies, epochs=20)
    for tokens in generate(model, trained.head, prompt_ids, max_new_tokens=200): ...
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ontarget.serve.speculative.train_draft import TrainedDraft, train_draft
from ontarget.values import Context


def fspad(
    model: Any, sequences: Sequence[Sequence[int]], *, epochs: int = 20, context: Context = Context(), **settings: Any
) -> TrainedDraft:
    """A draft head with both parts for a frozen causal language model, trained on token ids of its use.

    settings: of `train_draft`. Raises SettingError, DataError.
    """
    return train_draft(model, sequences, kind="fspad", epochs=epochs, context=context, **settings)
