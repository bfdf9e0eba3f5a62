import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ontarget.errors import RunError
from ontarget.report import plots
from ontarget.report.build import read_report, render, verdict, write_report

EVIL = "<script>window.hacked=1</script><img src=x onerror=window.hacked=1>"


def report(**changes: object) -> dict[str, object]:
    """A small report of every part, with user text that tries to be markup."""
    score = {"value": 0.8, "low": 0.7, "high": 0.9, "seconds": 0.1}
    entry = {"source": "zoo:minilm", "dim": 384, "features_s": 2.0, "too_close": False, "picked": True, "notes": [],
             "scores": {"linear_probe": score, "tmi": {**score, "value": 12.5}}}  # fmt: skip
    trial = {"number": 0, "source": "zoo:minilm", "method": "linear_head", "settings": {}, "metric": 0.8,
             "seconds": 1.0, "state": "complete", "reason": "", "latency_p50_ms": 9.0, "curve": [],
             "peak_memory_mb": 0.0}  # fmt: skip
    tuned = {**trial, "number": 1, "method": "finetune", "settings": {"mode": "full"}, "metric": 0.83,
             "predicted_seconds": 20.0, "peak_memory_mb": 900.0, "predicted_memory_mb": 800.0,
             "curve": [{"epoch": 1, "validation": 0.81}, {"epoch": 2, "validation": 0.83}]}  # fmt: skip
    form = {"form": "onnx-fp32", "latency_p50_ms": 3.0, "latency_p95_ms": 4.0, "memory_mb": 100.0, "size_mb": 87.0,
            "validation_metric": 0.83, "kept": True, "reason": "cosine 1.0000", "batch_size": 1}  # fmt: skip
    baseline = {"name": "majority", "value": 0.5, "low": 0.4, "high": 0.6, "difference": 0.3, "difference_low": 0.2,
                "difference_high": 0.4, "p_value": 0.001, "test": "mcnemar"}  # fmt: skip
    return {
        "ontarget": "0.1.0", "created": "2026-01-01T00:00:00+00:00", "run": "reviews-1", "task": {"target": "label"},
        "limits": {"latency_ms": 5.0, "budget_s": 60.0},
        "data": {"modality": "text", "kind": "classification", "metric": "accuracy", "classes": ["no", EVIL],
                 "rows": {"train": 10, "validation": 5, "test": 5, "unlabelled": 0}, "cross_fitted": False,
                 "warnings": [f"column {EVIL}"]},
        "device": {"cpu": "Test CPU", "threads": 2},
        "ranking": {"decided_by": "linear_probe", "entries": [entry, {**entry, "source": "other", "picked": False,
                    "too_close": True}], "rejected": [{"source": "big", "reason": "too slow"}]},
        "trials": [trial, tuned], "variants": [form, {**form, "form": "onnx-int8-dynamic", "kept": False,
                                               "reason": "significantly worse", "validation_metric": None}],
        "tuning": {"stopped": "the budget is spent"},
        "evidence": {"metric": "accuracy", "rows": 5, "test": {"value": 0.8, "low": 0.7, "high": 0.9},
                     "baselines": [baseline],
                     "stages": [{"stage": "adapt", "what": "finetune", "before": 0.8, "after": 0.83, "low": -0.01,
                                 "high": 0.05, "kept": True, "reason": ""}],
                     "confusion": [[2, 1], [0, 2]], "calibration": {"ece": 0.1, "bins": [
                         {"confidence": 0.9, "accuracy": 0.8, "rows": 5}]},
                     "worst": [{"row": 3, "input": EVIL, "target": "no", "predicted": EVIL, "loss": 2.0}]},
        "timeline": [{"stage": "ranking", "what": "features", "start_s": 0.0, "seconds": 2.0}],
        "costs": {"total_s": 30.0, "features_s": 2.0, "training_s": 20.0, "measuring_s": 5.0, "other_s": 3.0,
                  "budget_s": 60.0},
        "bundle": {"path": "runs/reviews-1/bundle", "form": "onnx-fp32", "size_mb": 90.0, "latency_p50_ms": 3.0,
                   "latency_p95_ms": 4.0},
        "decision": {"number": 1, "title": "finetune on zoo:minilm", "reason": "best"},
        "reproduce": "ontarget fit runs/reviews-1/task.toml",
        **changes,
    }  # fmt: skip


class Tags(HTMLParser):
    """Collects tags and their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_user_text_stays_text_and_nothing_is_loaded_from_outside() -> None:
    tags = Tags(render(report())).found
    assert sum(tag == "script" for tag, _ in tags) == 1
    assert not any(tag in ("link", "iframe", "object") for tag, _ in tags)
    assert not any("onerror" in attributes for _, attributes in tags)
    for _, attributes in tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")


def test_every_part_is_there() -> None:
    page = render(report())
    for section in ("pareto", "evidence", "ranking", "stages", "trials", "variants", "confusion", "calibration",
                    "worst", "timeline", "about", "warnings"):  # fmt: skip
        assert f'id="{section}"' in page
    assert page.count("<svg") == 7


def test_regression_has_residuals_and_no_confusion() -> None:
    changed = report()
    evidence = {**changed["evidence"], "residuals": {"target": [1.0, 2.0], "predicted": [1.1, 1.8]}}  # type: ignore[dict-item]
    del evidence["confusion"], evidence["calibration"]
    page = render({**changed, "evidence": evidence})
    assert 'id="residuals"' in page
    assert 'id="confusion"' not in page


@pytest.mark.parametrize(
    ("difference", "p_value", "words"),
    [(0.3, 0.001, "better than"), (-0.3, 0.001, "Prefer the baseline"), (0.1, 0.4, "not significantly different")],
)
def test_the_verdict_says_it_plainly(difference: float, p_value: float, words: str) -> None:
    changed = report()
    changed["evidence"]["baselines"][0].update(difference=difference, p_value=p_value)  # type: ignore[index]
    assert words in verdict(changed)
    assert "within the limit of 5 ms" in verdict(changed)


def test_it_is_written_read_and_missing_by_name(tmp_path: Path) -> None:
    page = write_report(report(), tmp_path)
    assert page.read_text().startswith("<!doctype html>")
    assert read_report(tmp_path) == json.loads(json.dumps(report()))
    with pytest.raises(RunError, match="is not finished"):
        read_report(tmp_path / "nothing")


def test_ticks_are_round() -> None:
    assert plots.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert plots.ticks(0.83, 0.87) == [0.83, 0.84, 0.85, 0.86, 0.87]
    assert plots.ticks(5, 5) == [5]


def test_large_matrices_and_empty_plots() -> None:
    classes = [f"class {number}" for number in range(100)]
    table = [[int(row == column) for column in range(100)] for row in range(100)]
    assert plots.confusion(table, classes).count("<rect") == 10_000
    assert plots.pareto([], metric="r2", limit_ms=None) == ""
    assert plots.curves([], label="") == ""
    assert plots.timeline([]) == ""


@pytest.mark.browser
def test_in_a_real_browser(browser, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from selenium.webdriver.common.by import By

    browser.get(write_report(report(), tmp_path).as_uri())
    assert browser.execute_script("return window.hacked") is None
    assert "finetune on zoo:minilm" in browser.find_element(By.TAG_NAME, "h1").text
    for section in browser.find_elements(By.TAG_NAME, "section"):
        assert section.is_displayed()
        assert section.size["height"] > 40
    column = browser.find_element(By.CSS_SELECTOR, "#trials th:nth-child(4) button")
    column.click()
    column.click()
    first = browser.find_element(By.CSS_SELECTOR, "#trials tbody tr td:nth-child(4)").text
    assert first == "0.8300"
    assert browser.find_elements(By.CSS_SELECTOR, "#pareto circle title")
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    requests = [
        json.loads(entry["message"])["message"]
        for entry in browser.get_log("performance")
        if "Network.requestWillBeSent" in entry["message"]
    ]
    addresses = {event["params"]["request"]["url"][:5] for event in requests if "request" in event["params"]}
    assert addresses <= {"file:", "data:", "chrom"}  # the browser's own start page
    browser.set_window_size(400, 900)
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
