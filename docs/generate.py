"""Writes the generated parts of the documentation: tables of methods, claims and benchmarks, and the command line.

Everything comes from the catalogue, from recorded results and from the program itself; nothing is typed by hand.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from ontarget.catalogue import all_methods
from ontarget.claims import find_claims, load_claim, results

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "generated"
COMMANDS = ("fit", "rank", "predict", "serve", "report", "doctor", "methods", "claims list", "claims run", "zoo list")


def methods_table() -> str:
    recorded = results()
    lines = ["| No | method | stage | what it does | source | status |", "|--|--|--|--|--|--|"]
    for method in all_methods():
        number = f"{method.number:02d}" if method.number else ""
        result = recorded.get(number)
        status = "implemented" if result is None else f"claim {result['verdict']}"
        lines.append(
            f"| {number} | **{method.title}** `{method.module}` | {method.stage} | {method.summary} | {method.source} "
            f"| {status} |"
        )
    return "\n".join(lines) + "\n"


def claims_table() -> str:
    lines = [
        "| No | claim | kind | verdict | method − baseline, 95% interval | seeds | seconds | data |",
        "|--|--|--|--|--|--|--|--|",
    ]
    recorded = results()
    for number, path in find_claims().items():
        claim, result = load_claim(path), recorded.get(number)
        if result is None:
            lines.append(f"| {number} | {claim.TITLE} | {claim.KIND} | not run yet | | | | {claim.DATA} |")
            continue
        for baseline, difference in result["difference"].items():
            low, high = difference["low"], difference["high"]
            interval = "" if low is None else f" [{low:+.4f}, {high:+.4f}]"
            first = baseline == result["baseline"]
            lines.append(
                f"| {number if first else ''} | {result['title'] if first else ''} | {result['kind'] if first else ''} "
                f"| {('**' + result['verdict'] + '**') if first else ''} | {result['method']} − {baseline}: "
                f"{difference['mean']:+.4f}{interval} {result['measure']} | {len(result['seeds'])} "
                f"| {result['seconds']:.0f} | {result['data'] if first else ''} |"
            )
    return "\n".join(lines) + "\n"


def benchmarks_list() -> str:
    parts = []
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        result = json.loads(path.read_text())
        headline = result.get("headline", "")
        command = result.get("command", "")
        parts.append(f"### {path.stem}\n\n{headline}\n\n`{command}` · {result.get('date', '')}\n")
    return "\n".join(parts)


def command_help(command: str) -> str:
    environment = {**os.environ, "TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "110"}
    output = subprocess.run(
        [sys.executable, "-c", "from ontarget.cli import main; main()", *command.split(), "--help"],
        capture_output=True, text=True, check=True, env=environment,
    ).stdout  # fmt: skip
    text = "\n".join(line.rstrip() for line in output.splitlines()).replace("-c ", "ontarget ", 1)
    return f"## ontarget {command}\n\n```text\n{text.strip()}\n```\n"


def main() -> None:
    TARGET.mkdir(exist_ok=True)
    (TARGET / "methods.md").write_text(methods_table())
    (TARGET / "claims.md").write_text(claims_table())
    (TARGET / "benchmarks.md").write_text(benchmarks_list())
    (TARGET / "commands.md").write_text("\n".join(command_help(command) for command in COMMANDS))


if __name__ == "__main__":
    main()
