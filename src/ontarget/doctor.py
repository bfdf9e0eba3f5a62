"""Is this installation whole, and does a bundle still do here what it did where it was made?"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

Check = dict[str, Any]

_EXTRAS = {
    "select": ("numba", "POT", "lz4"),
    "serve": ("fastapi", "uvicorn", "python-multipart"),
    "hub": ("datasets",),
    "ray": ("ray",),
}


def check_installation() -> list[Check]:
    """One entry a check: name, state ("ok" | "warning" | "failed"), detail and, where needed, what to do next."""
    import sys

    checks = [_check("python", sys.version_info >= (3, 11), sys.version.split()[0], "install Python 3.11 or newer")]
    for name in (
        "numpy",
        "torch",
        "torchvision",
        "transformers",
        "timm",
        "peft",
        "optuna",
        "onnx",
        "onnxruntime",
    ):
        version = _version(name)
        checks.append(_check(name, version is not None, version or "missing", f"pip install {name}"))
    for extra, packages in _EXTRAS.items():
        missing = [name for name in packages if _version(name) is None]
        detail = f"without {', '.join(missing)}" if missing else "installed"
        checks.append(_check(f"extra {extra}", not missing, detail, f"pip install 'ontarget[{extra}]'", "warning"))
    from ontarget.pool import zoo

    for source in zoo():
        detail = f"{source.title}, {source.size_mb:.0f} MiB"
        checks.append(
            _check(source.locator, source.available, detail, f"ontarget zoo add {source.locator[4:]}", "warning")
        )
    from ontarget.pool.cache import check_cache

    checks.append(check_cache())
    from ontarget.device import describe

    device = describe()
    checks.append(_check("device", True, ", ".join(f"{key} {value}" for key, value in list(device.items())[:6])))
    return checks


def check_bundle(path: Path) -> list[Check]:
    """The bundle's self-test as checks: files and hashes, outputs, latency. Raises RunError for what is no bundle."""
    from ontarget.errors import RunError
    from ontarget.runtime import load_bundle
    from ontarget.runtime.bundle import BundleError
    from ontarget.serve.language_bundle import is_language_bundle, load_language_bundle

    try:
        loaded = load_language_bundle(path) if is_language_bundle(path) else load_bundle(path)
        result = loaded.self_test()
    except BundleError as error:
        raise RunError(str(error), option=str(path), next_step="make the bundle again or copy it anew") from error
    return [
        _check(check["name"], check["passed"], check["detail"], check.get("next", "")) for check in result["checks"]
    ]


def print_checks(checks: Sequence[Check]) -> None:
    """A table on standard output."""
    from rich.console import Console
    from rich.table import Table

    marks = {"ok": "[green]ok[/]", "warning": "[yellow]-[/]", "failed": "[red]FAILED[/]"}
    table = Table(show_header=False, box=None, pad_edge=False)
    for check in checks:
        following = f"→ {check['next']}" if check["state"] != "ok" and check["next"] else ""
        table.add_row(marks[check["state"]], check["name"], check["detail"], following)
    Console().print(table)


def _check(name: str, passed: bool, detail: str, following: str = "", otherwise: str = "failed") -> Check:
    return {"name": name, "state": "ok" if passed else otherwise, "detail": detail, "next": following}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
