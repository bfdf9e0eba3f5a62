"""A report of every part, with user text that tries to be markup."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

EVIL = "<script>window.hacked=1</script><img src=x onerror=window.hacked=1>"
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAA"
    "AABJRU5ErkJggg=="
)


def _trial(number: int, method: str, metric: float | None, **more: Any) -> dict[str, Any]:
    return {
        "number": number, "source": "zoo:minilm", "method": method, "settings": {}, "metric": metric, "seconds": 10.0,
        "state": "complete", "reason": "", "latency_p50_ms": 9.0 + number, "curve": [], "peak_memory_mb": 0.0, **more,
    }  # fmt: skip


def _baseline(name: str, value: float, p_value: float, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "value": value, "low": value - 0.1, "high": value + 0.1, "difference": 0.8 - value,
        "difference_low": 0.7 - value, "difference_high": 0.9 - value, "p_value": p_value, "test": "mcnemar",
        "same_model": False, "trial": None, **more,
    }  # fmt: skip


def _sample() -> dict[str, Any]:
    score = {"value": 0.8, "low": 0.7, "high": 0.9, "seconds": 0.1}
    entry = {
        "source": "zoo:minilm", "dim": 384, "features_s": 2.0, "too_close": False, "picked": True, "notes": ["a note"],
        "scores": {"linear_probe": score, "tmi": {**score, "value": 12.5}},
    }  # fmt: skip
    form = {
        "form": "onnx-fp32", "latency_p50_ms": 3.0, "latency_p95_ms": 4.0, "memory_mb": 100.0, "size_mb": 87.0,
        "validation_metric": 0.83, "kept": True, "reason": "cosine 1.0000", "batch_size": 1,
    }  # fmt: skip
    curve = [{"epoch": epoch, "train_loss": 1 / epoch, "validation": 0.78 + 0.01 * epoch} for epoch in (1, 2, 3)]
    tuned = [
        _trial(
            number, "finetune", 0.7 + 0.013 * number, settings={"mode": "lora", "rate": 1e-4 * number}, curve=curve,
            predicted_seconds=8.0, peak_memory_mb=900.0, predicted_memory_mb=1000.0,
        )
        for number in range(3, 11)
    ]  # fmt: skip
    return {
        "ontarget": "0.1.0",
        "created": "2026-01-01T00:00:00+00:00",
        "run": "reviews-1",
        "task": {"data": "reviews.csv", "input": ["text"], "target": "label"},
        "limits": {"latency_ms": 5.0, "budget_s": 60.0},
        "label_worth": {
            "source": "zoo:minilm", "metric": "accuracy", "rows": 10, "now": {"value": 0.8, "low": 0.7, "high": 0.85},
            "after": {"10": {"value": 0.82, "low": 0.7, "high": 0.9}, "1000": {"value": 0.9, "low": 0.8, "high": 0.95}},
        },
        "data": {
            "modality": "text", "kind": "classification", "metric": "accuracy", "classes": ["no", EVIL, "maybe"],
            "rows": {"train": 10, "validation": 5, "test": 5, "unlabelled": 0}, "cross_fitted": False,
            "warnings": [f"column {EVIL}"],
        },
        "device": {"cpu": "Test CPU", "threads": 2, "accelerator": ""},
        "ranking": {
            "decided_by": "linear_probe",
            "entries": [entry, {**entry, "source": "other", "picked": False, "too_close": True}],
            "rejected": [{"source": "big", "reason": "too slow"}],
        },
        "admission": {"zoo:minilm": {"admitted": True, "reason": "", "latency_p50_ms": 9.0, "size_mb": 87.0,
                                     "parameters": 22_700_000, "seconds_per_row": 0.004, "load_s": 0.3}},
        "trials": [
            _trial(0, "majority", 0.5, latency_p50_ms=None),
            _trial(1, "linear_head", 0.8),
            _trial(2, "finetune", None, state="failed", reason=f"loss was NaN in {EVIL}"),
            *tuned,
        ],
        "variants": [form, {**form, "form": "onnx-int8-dynamic", "kept": False, "reason": "significantly worse",
                            "validation_metric": 0.71, "latency_p50_ms": 2.0}],
        "tuning": {"stopped": "the budget is spent"},
        "evidence": {
            "metric": "accuracy", "rows": 5, "test": {"value": 0.8, "low": 0.7, "high": 0.9},
            "baselines": [_baseline("TF-IDF + linear", 0.6, 0.012), _baseline("majority", 0.5, 0.0001)],
            "stages": [{"stage": "adapt", "what": "finetune", "before": 0.8, "after": 0.83, "difference": 0.03,
                        "low": -0.01, "high": 0.05, "kept": True, "reason": ""}],
            "confusion": [[2, 1, 0], [0, 2, 0], [1, 0, 0]],
            "per_class": [{"class": EVIL, "rows": 3, "precision": 0.5, "recall": None, "f1": 0.4}],
            "calibration": {"ece": 0.1, "mean_confidence": 0.9, "accuracy": 0.8,
                            "bins": [{"confidence": 0.9, "accuracy": 0.8, "rows": 5}]},
            "worst": [{"row": 3, "input": EVIL, "target": "no", "predicted": EVIL, "loss": 2.0, "score": 0.87}],
            "touches": [{"when": "2026-01-01T00:00:00+00:00", "model": "abc", "rows": 5, "forced": False}],
        },
        "timeline": [{"stage": "ranking", "what": "features", "start_s": 0.0, "seconds": 2.0},
                     {"stage": "trial 1", "what": "training", "start_s": 2.0, "seconds": 10.0}],
        "costs": {"total_s": 30.0, "features_s": 2.0, "training_s": 20.0, "measuring_s": 5.0, "other_s": 3.0,
                  "budget_s": 60.0},
        "bundle": {"path": "runs/reviews-1/bundle", "form": "onnx-fp32", "size_mb": 90.0, "latency_p50_ms": 3.0,
                   "latency_p95_ms": 4.0, "self_test": {"checks": [{"name": "files", "passed": True, "detail": "10"}]}},
        "decision": {"number": 10, "title": "finetune on zoo:minilm", "reason": "best", "rejected": []},
        "reproduce": "ontarget fit runs/reviews-1/task.toml",
    }  # fmt: skip


@pytest.fixture
def report() -> dict[str, Any]:
    return _sample()


@pytest.fixture
def evil() -> str:
    return EVIL


@pytest.fixture
def pixel() -> str:
    return PIXEL


@pytest.fixture
def without(report: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """The sample report without the thing at a path of keys."""

    def drop(*path: str) -> dict[str, Any]:
        changed = copy.deepcopy(report)
        place = changed
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]
        return changed

    return drop
