"""Seconds that a fit needs after its last trial: forms, the bundle's check, the test rows, the report."""

from __future__ import annotations

from ontarget.compress.choose import CHECKED_ROWS, QUALITY_ROWS
from ontarget.values import TargetData

RESERVED_SHARE = 0.15  # of the budget, kept at least (choice)
FIXED_S = 20.0  # export, quantisation, timing of the forms, the report: 22 s for MiniLM on 2 cores (choice)
SCORED_FORMS = 4  # forms that go through the validation rows, of five: some are too slow to be scored (choice)


def reserved_seconds(data: TargetData, seconds_per_row: float, budget_s: float) -> float:
    """What to keep of ``budget_s`` for a winner, and for baselines on it, that take ``seconds_per_row``.

    Counted: validation rows once a form, and what `judging_seconds` counts.
    """
    forms_s = SCORED_FORMS * min(QUALITY_ROWS, len(data.validation)) * seconds_per_row
    return max(RESERVED_SHARE * budget_s, FIXED_S + forms_s + judging_seconds(data, seconds_per_row))


def judging_seconds(data: TargetData, seconds_per_row: float) -> float:
    """Of that, what follows training again: the rows that a remade form is checked on, twice; test rows twice, through
    the bundle and for the baselines' features."""
    return (2 * min(CHECKED_ROWS, len(data.train)) + 2 * len(data.test)) * seconds_per_row
