"""The result of a run in plain words: does it beat what was there for free, and does it fit?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

SIGNIFICANT = 0.05  # p-values below it count (choice), after Holm's correction

METRIC_NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "r2": "R²",
    "neg_mae": "negative MAE",
    "neg_rmse": "negative RMSE",
    "spearman": "Spearman's ρ",
}
LIMITS = (  # limit, what the bundle says, in words, unit
    ("latency_ms", "latency_p50_ms", "one call", "ms"),
    ("memory_mb", "memory_mb", "the loaded model", "MiB of memory"),
    ("size_mb", "size_mb", "the bundle", "MiB"),
)


@dataclass(frozen=True)
class Verdict:
    """tone: how the model does against the baselines. headline: a few words; sentences: the details; the first one
    is about quality. warnings: what makes the numbers less trustworthy than they look."""

    tone: Literal["better", "alike", "worse", "unknown"]
    headline: str
    sentences: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join([self.headline + ".", *self.sentences, *self.warnings])


def verdict(report: Mapping[str, Any]) -> Verdict:
    """The verdict on a report; parts that the report lacks are left out."""
    evidence = report.get("evidence") or {}
    bundle = report.get("bundle") or {}
    metric = metric_name(evidence.get("metric") or (report.get("data") or {}).get("metric"))
    baselines = [row for row in evidence.get("baselines") or () if row.get("value") is not None]
    rivals = [row for row in baselines if not row.get("same_model")]
    tone, headline = _headline(rivals)
    sentences = []
    test = evidence.get("test") or {}
    if test.get("value") is not None:
        rows = f" on {evidence['rows']:,} test rows" if evidence.get("rows") else " on the test rows"
        reached = f"{test['value']:.3f}{_ends(test.get('low'), test.get('high'))}"
        sentences.append(_minus(f"It reaches {metric} {reached}{rows}."))
    if rivals:
        sentences.append(_against(max(rivals, key=lambda row: float(row["value"]))))
    itself = [row["name"] for row in baselines if row.get("same_model")]
    if itself:
        sentences.append(f"The chosen model is itself the baseline “{itself[0]}”: nothing more costly did better.")
    sentences += _fits(report.get("limits") or {}, bundle)
    touches = evidence.get("touches") or ()
    warnings = []
    if len(touches) > 1:
        warnings.append(f"The test rows were scored {len(touches)} times in this run: the test score may be too good.")
    return Verdict(tone, headline, tuple(sentences), tuple(warnings))


def metric_name(metric: str | None) -> str:
    """How a metric is called in words."""
    return METRIC_NAMES.get(metric or "", metric or "the metric")


def standing(row: Mapping[str, Any]) -> Literal["better", "alike", "worse", "same"]:
    """How the model does against one baseline, by the test's p-value."""
    if row.get("same_model"):
        return "same"
    if row.get("p_value") is None or row["p_value"] >= SIGNIFICANT or not row.get("difference"):
        return "alike"
    return "better" if row["difference"] > 0 else "worse"


def p_words(p_value: float | None) -> str:
    """ "p = 0.032", "p < 0.001"."""
    if p_value is None:
        return ""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def _headline(rivals: Sequence[Mapping[str, Any]]) -> tuple[Literal["better", "alike", "worse", "unknown"], str]:
    names = {kind: [row["name"] for row in rivals if standing(row) == kind] for kind in ("worse", "alike")}
    if not rivals:
        return "unknown", "Not compared with any baseline"
    if names["worse"]:
        return "worse", f"Worse than {_listed(names['worse'])}: prefer the baseline"
    if names["alike"]:
        return "alike", f"Not shown to be better than {_listed(names['alike'])}"
    count = "the baseline" if len(rivals) == 1 else f"all {len(rivals)} baselines"
    return "better", f"Better than {count}"


def _against(best: Mapping[str, Any]) -> str:
    words = f"The best baseline, {best.get('name')}, reaches {best['value']:.3f}"
    if best.get("difference") is None:
        return _minus(words + ".")
    words += ": "
    ends = _ends(best.get("difference_low"), best.get("difference_high"), "+.3f")
    kind, p_value = standing(best), p_words(best.get("p_value"))
    if kind == "alike":
        by = f"{best['difference']:+.3f}{ends}"
        return _minus(words + f"the model's lead of {by} may be chance, it is not significantly different ({p_value}).")
    return _minus(words + f"the model is {kind}, by {best['difference']:+.3f}{ends}, {p_value}.")


def _fits(limits: Mapping[str, Any], bundle: Mapping[str, Any]) -> list[str]:
    sentences = []
    for limit, measured, what, unit in LIMITS:
        value, allowed = bundle.get(measured), limits.get(limit)
        if value is None or (allowed is None and limit != "latency_ms"):
            continue
        text = f"{what} takes {value:.3g} {unit}"
        if allowed is not None:
            text += f", {'within' if value <= allowed else 'over'} the limit of {allowed:g} {unit.split()[0]}"
        sentences.append(text[0].upper() + text[1:] + ".")
    return sentences


def _ends(low: float | None, high: float | None, form: str = ".3f") -> str:
    return "" if low is None or high is None else _minus(f" [{low:{form}}, {high:{form}}]")


def _minus(text: str) -> str:
    """Numbers with a real minus sign."""
    return re.sub(r"(?<=[ \[])-(?=\d)", "−", text)


def _listed(names: Sequence[str]) -> str:
    if len(names) <= 2:
        return " and ".join(names)
    return f"{', '.join(names[:2])} and {len(names) - 2} more"
