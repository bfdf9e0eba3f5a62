"""Text that every machine with Python has: the docstrings of its standard library."""

from __future__ import annotations

import ast
import sysconfig
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=2)
def docstring_texts(*, packages: bool = False, least: int = 500) -> tuple[str, ...]:
    """The docstrings of each module as one text, in the order of the modules' names.

    packages: modules inside of packages too. least: characters of a text that is kept, more than that.
    """
    found = []
    folder = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(folder.rglob("*.py") if packages else folder.glob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef))
        text = "\n\n".join(part for node in nodes if (part := ast.get_docstring(node)))
        if len(text) > least:
            found.append(text)
    return tuple(found)
