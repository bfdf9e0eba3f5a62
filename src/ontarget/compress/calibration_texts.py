"""A user's rows of text, parted for compression: calibration, rows to choose by, held-out rows; losses on them.

A row that is in the data twice is dropped, so that no held-out text was calibrated on. Losses are summed over windows
of a row; a unit of the paired interval is a row, or a window where there are fewer than `ROWS_AS_UNITS` rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ontarget.errors import DataError
from ontarget.values import Array, Context

WINDOW = 256  # tokens that a held-out loss sees before it starts anew (choice)
ROWS_AS_UNITS = 20  # (choice)
LEAST_UNITS = 5  # below this an interval says nothing (choice)
LEAST_TOKENS = 256  # held-out tokens, at least (choice)


@dataclass(frozen=True)
class Parts:
    """Token ids. calibration: (T,) int64 of rows joined. choosing, held_out: windows with the number of their unit."""

    calibration: Array
    calibration_rows: int
    choosing: tuple[tuple[int, Array], ...]
    held_out: tuple[tuple[int, Array], ...]
    held_out_rows: int
    given: int
    duplicates: int
    unit: str


def part_texts(
    texts: Sequence[str], tokenizer: Any, *, calibration_tokens: int, test_tokens: int, window: int,
    choose: bool = False, seed: int = 0,
) -> Parts:  # fmt: skip
    """Draw rows for calibration until they have enough tokens, then held-out rows from the others.

    choose: also rows to choose bits by, as many tokens as held out. Raises DataError: too few tokens, told how many are
    needed and there.
    """
    distinct: dict[str, str] = {}
    full = [text for text in texts if text.strip()]
    for text in full:
        distinct.setdefault(" ".join(text.split()), text)
    rows = list(distinct.values())
    order = np.random.default_rng(seed).permutation(len(rows))
    window = min(window, WINDOW)

    drawn: list[Array] = []
    taken = 0
    joint = tokenizer("\n\n", add_special_tokens=False).input_ids
    pending = iter(order)
    for at in pending:
        ids = tokenizer(rows[at], truncation=False, verbose=False).input_ids
        drawn.append(np.array([*(joint if drawn else []), *ids], dtype=np.int64))
        taken += len(drawn[-1])
        if taken >= calibration_tokens:
            break
    calibration_rows = len(drawn)
    wanted = test_tokens * (2 if choose else 1)
    others: list[list[Array]] = []
    there = 0
    for at in pending:
        ids = np.array(tokenizer(rows[at], truncation=False, verbose=False).input_ids, dtype=np.int64)
        pieces = [ids[start : start + window] for start in range(0, len(ids), window)]
        pieces = [piece for piece in pieces if len(piece) > 1]
        if pieces:
            others.append(pieces)
            there += len(ids)
        if there >= wanted:
            break
    half = len(others) // 2 if choose else 0
    by_row = min(len(others) - half, half or len(others)) >= ROWS_AS_UNITS
    choosing, held_out = _units(others[:half], by_row), _units(others[half:], by_row)
    units = [len({unit for unit, _ in part}) for part in (choosing, held_out)]
    tokens = [sum(len(piece) for _, piece in part) for part in (choosing, held_out)]
    short = min(units[0 if choose else 1 :]) < LEAST_UNITS or min(tokens[0 if choose else 1 :]) < LEAST_TOKENS
    if taken < calibration_tokens or short:
        parts = "calibration, choosing and testing" if choose else "calibration and testing"
        least = calibration_tokens + LEAST_TOKENS * (2 if choose else 1)
        raise DataError(
            f"The texts are too short for {parts}: {len(rows)} distinct rows with {taken + there:,} tokens.",
            allowed=f"{least:,} tokens or more, and beyond calibration {LEAST_UNITS} rows or windows of {window} tokens"
            " for each part", option="--texts, --calibration-tokens",
            next_step="bring more rows, or calibrate on fewer tokens",
        )  # fmt: skip
    return Parts(
        np.concatenate(drawn)[:calibration_tokens], calibration_rows, choosing, held_out, len(others) - half,
        len(texts), len(full) - len(rows), "row" if by_row else "window",
    )  # fmt: skip


def _units(rows: Sequence[Sequence[Array]], by_row: bool) -> tuple[tuple[int, Array], ...]:
    pieces = [(at, piece) for at, row in enumerate(rows) for piece in row]
    return tuple(pieces if by_row else ((at, piece) for at, (_, piece) in enumerate(pieces)))


def unit_losses(
    model: Any, pieces: Sequence[tuple[int, Array]], what: str, context: Context = Context()
) -> tuple[Array, Array]:
    """Summed loss of the next token, nats, and number of predicted tokens of each unit, both (U,) float64."""
    import torch

    count = max(unit for unit, _ in pieces) + 1
    losses, tokens = np.zeros(count), np.zeros(count)
    with torch.inference_mode():
        for done, (unit, piece) in enumerate(pieces):
            if context.progress is not None:
                context.progress(done, len(pieces), what)
            ids = torch.from_numpy(piece)
            logits = model(ids[None]).logits[0, :-1].float()
            losses[unit] += float(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum"))
            tokens[unit] += len(ids) - 1
    return losses, tokens


def rise(before: Array, after: Array, tokens: Array) -> tuple[float, float, float]:
    """Rise of the mean loss of a token, and its 95% interval over units: a ratio's, by Student's t."""
    from scipy import stats

    changed, count = after - before, len(tokens)
    value = float(changed.sum() / tokens.sum())
    rest = changed - value * tokens
    error = math.sqrt(count / (count - 1) * float(rest @ rest)) / float(tokens.sum())
    far = float(stats.t.ppf(0.975, count - 1)) * error
    return value, value - far, value + far
