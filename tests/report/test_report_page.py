import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ontarget.errors import RunError
from ontarget.report.build import read_report, rebuild_report, render, write_report

SECTIONS = ("warnings", "evidence", "pareto", "ranking", "stages", "trials", "curves", "labels", "variants",
            "confusion", "worst", "calibration", "timeline", "bundle", "about")  # fmt: skip
VOID = {"meta", "link", "img", "input", "br", "line", "rect", "circle"}


class Page(HTMLParser):
    """Tags with their attributes, ids, what follows what; fails where tags do not close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]


def test_every_part_is_there_and_in_the_navigation(report: dict[str, Any]) -> None:
    page = Page(render(report))
    assert set(SECTIONS) <= set(page.ids())
    assert len(page.ids()) == len(set(page.ids()))
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == [f"#{name}" for name in SECTIONS]


def test_user_text_stays_text_and_nothing_is_loaded_from_outside(report: dict[str, Any], evil: str) -> None:
    page = Page(render(report))
    assert page.text.count("window.hacked=1") >= 6
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not any(tag in ("iframe", "object", "base", "form") for tag, _ in page.tags)
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert "style" not in attributes  # the content policy would drop it
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith(("data:", "#"))


def test_every_place_for_text_is_escaped(report: dict[str, Any], evil: str) -> None:
    """Every string of the report replaced by markup: the page keeps the same tags, but for pictures and numbers."""

    def replace(value: Any) -> Any:
        if isinstance(value, dict):
            return {key if key in KEYS else evil: replace(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [replace(entry) for entry in value]
        return f"{value}{evil}" if isinstance(value, str) else value

    KEYS = set()

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            KEYS.update(value)
        for entry in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            collect(entry)

    collect(report)
    page = Page(render(replace(report)))
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not any(tag == "img" for tag, _ in page.tags)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_the_content_policy_names_the_pages_own_script_and_style(report: dict[str, Any]) -> None:
    page = render(report)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    for tag in ("script", "style"):
        content = re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert content is not None
        digest = base64.b64encode(hashlib.sha256(content[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy[1].replace("&#39;", "'")
    assert "default-src 'none'" in policy[1]


@pytest.mark.parametrize(
    "path",
    [
        *[(name,) for name in (
            "ontarget", "created", "run", "task", "limits", "data", "device", "ranking", "admission", "trials",
            "variants", "tuning", "evidence", "timeline", "costs", "bundle", "decision", "reproduce",
        )],
        *[("evidence", name) for name in (
            "metric", "rows", "test", "baselines", "stages", "confusion", "per_class", "calibration", "worst",
            "touches",
        )],
        *[("data", name) for name in ("modality", "metric", "classes", "rows", "warnings", "cross_fitted")],
        *[("bundle", name) for name in ("path", "form", "size_mb", "latency_p50_ms", "latency_p95_ms", "self_test")],
        ("decision", "number"), ("decision", "title"), ("costs", "features_s"), ("costs", "budget_s"),
        ("ranking", "decided_by"), ("ranking", "entries"),
    ],
)  # fmt: skip
def test_what_is_missing_is_left_out(path: tuple[str, ...], without: Any) -> None:
    page = Page(render(without(*path)))
    assert "verdict" in page.ids()
    assert "None" not in page.text
    assert "undefined" not in page.text.lower()


def test_nothing_at_all_and_nulls_are_no_obstacle(report: dict[str, Any]) -> None:
    assert "Report of a run" in Page(render({})).text
    nulls = dict.fromkeys(report)
    assert Page(render(nulls)).ids() == Page(render({})).ids()
    bare = {
        "trials": [{"number": 0}],
        "variants": [{"form": "x"}],
        "evidence": {"baselines": [{"name": "b", "value": 1.0}]},
        "ranking": {"entries": [{"source": "s"}]},
        "timeline": [{"stage": "x", "what": "y", "start_s": 0, "seconds": 1}],
    }
    assert "None" not in Page(render(bare)).text


def test_regression_has_residuals_and_no_confusion(report: dict[str, Any]) -> None:
    numbers = {"bias": -0.05, "middle": 0.1, "p90": 0.2}
    report["evidence"]["residuals"] = {"target": [1.0, 2.0], "predicted": [1.1, 1.8], **numbers}
    del report["evidence"]["confusion"], report["evidence"]["calibration"]
    page = Page(render(report))
    assert "residuals" in page.ids()
    assert "confusion" not in page.ids()
    assert "on average the prediction is −0.050 off" in page.text


def test_pictures_are_shown_and_only_real_ones(report: dict[str, Any], pixel: str) -> None:
    row = report["evidence"]["worst"][0]
    report["evidence"]["worst"] = [{**row, "input": pixel}, {**row, "input": 'data:image/png;base64,"onerror='}]
    page = Page(render(report))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [image["src"] for image in images] == [pixel]
    assert images[0]["alt"] == "test row 3, no"


def test_predictions_are_compared_with_the_truth(report: dict[str, Any]) -> None:
    """8 trials: 10 s where 8 were predicted, 900 MiB where 1000 were."""
    text = Page(render(report)).text
    assert "8.0 predicted" in text
    assert "1,000 predicted" in text
    assert "Predicted seconds were within a factor of 1.2 for half of 8 trials" in text
    assert "Predicted memory was within a factor of 1.1 for half of 8 trials" in text


def test_accessible_names(report: dict[str, Any]) -> None:
    page = Page(render(report))
    assert ("html", {"lang": "en"}) in page.tags
    for tag, attributes in page.tags:
        if tag == "svg" and attributes.get("role") == "img":
            assert attributes["aria-label"]
        if tag == "section":
            assert attributes["aria-labelledby"] in page.ids()
        if tag == "img":
            assert attributes["alt"]


def test_it_is_written_read_and_written_again(report: dict[str, Any], tmp_path: Path) -> None:
    page = write_report(report, tmp_path)
    first = page.read_text()
    assert first.startswith("<!doctype html>")
    assert read_report(tmp_path) == json.loads(json.dumps(report))
    page.unlink()
    assert rebuild_report(tmp_path).read_text() == first


@pytest.mark.parametrize(("content", "words"), [(None, "is not finished"), ("{", "damaged"), ("[1]", "no report")])
def test_a_report_that_cannot_be_read(content: str | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(RunError, match=words):
        rebuild_report(tmp_path)
