"""report.json and the self-contained report.html of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ontarget.errors import RunError
from ontarget.plan.run_folder import to_json, write_atomic

_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{{ r.run }}</title></head><body>
<h1>{{ r.decision.title }}</h1><p>{{ r.decision.reason }}</p>
<table>{% for row in r.evidence.baselines %}<tr><td>{{ row.name }}</td><td>{{ row.value }}</td></tr>{% endfor %}</table>
</body></html>"""


def write_report(report: Mapping[str, Any], folder: Path) -> Path:
    """Write ``report.json`` and ``report.html`` into ``folder``; returns the page's path."""
    from jinja2 import Environment

    write_atomic(folder / "report.json", to_json(report))
    page = Environment(autoescape=True).from_string(_PAGE).render(r=report)
    write_atomic(folder / "report.html", page.encode())
    return folder / "report.html"


def read_report(folder: Path) -> dict[str, Any]:
    """What `write_report` wrote. Raises RunError where there is none."""
    try:
        report: dict[str, Any] = json.loads((folder / "report.json").read_text())
        return report
    except FileNotFoundError as error:
        raise RunError(
            f"{folder} has no report.json: the run is not finished.", next_step=f"ontarget fit --resume {folder}"
        ) from error
