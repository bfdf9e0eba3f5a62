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
from ontarget.claims import find_claims, load_claim, pair_texts, results

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "generated"
COMMANDS = (
    "fit",
    "rank",
    "select-data",
    "predict",
    "serve",
    "report",
    "doctor",
    "methods",
    "claims list",
    "claims run",
    "zoo list",
)


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
        "| No | claim | kind | verdict | differences, 95% intervals | seeds | seconds | data |",
        "|--|--|--|--|--|--|--|--|",
    ]
    recorded = results()
    for number, path in find_claims().items():
        claim, result = load_claim(path), recorded.get(number)
        if result is None:
            lines.append(f"| {number} | {claim.STATEMENT} | {claim.KIND} | not run yet | | | | {claim.DATA} |")
            continue
        pairs = "<br>".join(pair_texts(result))
        lines.append(
            f"| {number} | {result['statement']} | {result['kind']} | **{result['verdict']}** | {pairs} "
            f"| {len(result['seeds'])} | {result['seconds']:.0f} | {result['data']} |"
        )
        others = ", ".join(f"{arm} {mean:.4f}" for arm, mean in result["means"].items())
        lines.append(f"| | means: {others} | | | | | | |")
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
