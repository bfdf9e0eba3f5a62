"""report.json and the self-contained report.html of a run: one file that can be mailed, nothing loaded from outside.

The report is one dictionary; whatever it lacks, the page leaves out. Its keys:

    ontarget, created, run, reproduce       version, ISO time, name, command
    task, limits, device                    as the user gave them; as the machine was found
    data        modality, kind, metric, classes, rows {train, validation, test, unlabelled}, cross_fitted, warnings
    ranking     decided_by, entries [{source, dim, features_s, too_close, picked, notes,
                scores {name: {value, low, high, seconds}}}], rejected [{source, reason}]
    admission   {source: {admitted, reason, latency_p50_ms, size_mb, parameters, seconds_per_row, load_s}}
    trials      [{number, source, method, settings, metric, seconds, predicted_seconds, peak_memory_mb,
                predicted_memory_mb, state, reason, curve [{epoch, train_loss, validation}], latency_p50_ms}]
    variants    [{form, latency_p50_ms, latency_p95_ms, memory_mb, size_mb, validation_metric, kept, reason}]
    evidence    what `judge.evidence.judge` gives
    timeline    [{stage, what, start_s, seconds}]
    costs       total_s, features_s, training_s, measuring_s, other_s, budget_s
    bundle      path, form, size_mb, latency_p50_ms, latency_p95_ms, memory_mb, batch_size, self_test
    decision    number, title, reason, rejected [{number, reason}]
    tuning      stopped: why tuning ended
    label_worth source, metric, rows, now {value, low, high}, after {"10": {value, low, high}, ...}
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ontarget.errors import RunError
from ontarget.plan.run_folder import to_json, write_atomic

HERE = Path(__file__).parent
PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}\Z")


def write_report(report: Mapping[str, Any], folder: Path) -> Path:
    """Write ``report.json`` and ``report.html`` into ``folder``; returns the page's path."""
    content = to_json(report)
    write_atomic(folder / "report.json", content)
    write_atomic(folder / "report.html", render(json.loads(content)).encode("utf-8", "replace"))
    return folder / "report.html"


def read_report(folder: Path) -> dict[str, Any]:
    """What `write_report` wrote. Raises RunError where there is none or it is damaged."""
    path = folder / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(
            f"{folder} has no report.json: the run is not finished.", next_step=f"ontarget fit --resume {folder}"
        ) from error
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}).", next_step=f"ontarget fit --resume {folder}") from error
    if not isinstance(report, dict):
        raise RunError(f"{path} holds no report.", next_step=f"ontarget fit --resume {folder}")
    return report


def rebuild_report(folder: Path) -> Path:
    """Write ``report.html`` again from ``report.json``; returns its path. Raises RunError as `read_report`."""
    report = read_report(folder)
    if report.get("kind") == "generation":
        from ontarget.report.generation_page import write_generation_page

        write_generation_page(folder / "report.html", report)
        return folder / "report.html"
    return write_report(report, folder)


def render(report: Mapping[str, Any]) -> str:
    """The page. Everything that comes from the user's data is escaped, and no script but the page's own may run."""
    from markupsafe import Markup

    from ontarget.report.view import view

    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    return str(
        _template().render(
            r=report, v=view(report), style=Markup(style), script=Markup(script),
            style_hash=_digest(style), script_hash=_digest(script),
        )
    )  # fmt: skip


def style_and_policy() -> tuple[str, str]:
    """The reports' stylesheet, and a Content-Security-Policy for a page that carries it and runs no script."""
    style = (HERE / "report.css").read_text(encoding="utf-8")
    return style, f"default-src 'none'; style-src '{_digest(style)}'; base-uri 'none'; form-action 'none'"


@cache
def _template() -> Any:
    from jinja2 import ChainableUndefined, Environment

    from ontarget.report import words

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=ChainableUndefined)
    environment.filters.update(
        number=words.number, signed=words.signed, duration=words.duration, p=words.p_value, count=words.count,
        plain=words.plain, metric=words.metric_name,
    )  # fmt: skip
    environment.tests["picture"] = lambda value: bool(isinstance(value, str) and PICTURE.match(value))
    return environment.from_string((HERE / "report.html.jinja").read_text(encoding="utf-8"))


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
