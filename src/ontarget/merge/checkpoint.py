"""A model's weights in a folder: one safetensors file or several with their index, read range by range."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ontarget.errors import DataError, SettingError
from ontarget.merge.streamed_safetensors import Entry, SafetensorsReader
from ontarget.pool.language_models import PICKLES, TOKENIZER_FILES
from ontarget.values import Array

INDEX = "model.safetensors.index.json"
PACKED = "gwq.json"  # what `ontarget compress` writes


class Weights(Protocol):
    """Tensors by name, of a checkpoint or of an adapter on one."""

    title: str

    @property
    def entries(self) -> Mapping[str, Entry]: ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array: ...


class Checkpoint:
    """The tensors of a folder, or of one .safetensors file.

    Raises DataError: nothing there, pickled weights alone, a damaged file, an index that does not fit its files.
    """

    def __init__(self, folder: Path, title: str = "") -> None:
        self.folder, self.title = folder, title or str(folder)
        readers = [SafetensorsReader(path) for path in _files(folder, self.title)]
        self._of = {name: reader for reader in readers for name in reader.entries}
        self.entries = {name: reader.entries[name] for name, reader in self._of.items()}
        if sum(len(reader.entries) for reader in readers) != len(self.entries):
            raise DataError(f"'{self.title}' has a tensor in two of its files.", next_step="fetch the model again")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Elements of a tensor's flat form, as they are stored."""
        return self._of[name].read(name, start, stop)


def _files(folder: Path, title: str) -> list[Path]:
    if folder.is_file():
        if folder.suffix != ".safetensors":
            raise DataError(
                f"'{folder}' is no safetensors file.", allowed="a folder, or a .safetensors file",
                next_step="convert it: pickled files can run code and are not read",
            )  # fmt: skip
        return [folder]
    if not folder.is_dir():
        raise DataError(f"There is no '{folder}'.", next_step="check the path")
    if (folder / INDEX).exists():
        named = read_json(folder / INDEX).get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
            raise DataError(f"'{folder / INDEX}' has no weight_map of names.", next_step="fetch the model again")
        names = sorted(set(named.values()))
        for name in names:
            if Path(name).name != name:
                raise DataError(f"'{folder / INDEX}' points outside of its folder: {name!r}.")
            if not (folder / name).exists():
                raise DataError(f"'{folder}' lacks its file '{name}'.", next_step="fetch the model again")
        return [folder / name for name in names]
    if (folder / PACKED).exists():
        raise DataError(f"'{title}' holds packed weights of few bits.", allowed="weights in 16 or 32 bits",
                        next_step="give the model that it was compressed from")  # fmt: skip
    found = [path for path in sorted(folder.glob("*.safetensors")) if path.name != "adapter_model.safetensors"]
    if len(found) == 1:
        return found
    if not found and any(path for pattern in PICKLES for path in folder.glob(pattern)):
        raise DataError(
            f"'{title}' has pickled weights alone, which can run code and are not read.",
            allowed="model.safetensors", next_step="convert it to safetensors where you trust it",
        )  # fmt: skip
    raise DataError(
        f"'{title}' has {len(found)} safetensors files and no {INDEX}.", allowed="one, or several with an index"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises DataError."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' is no JSON ({error}).", next_step="fetch the model again") from error
    if not isinstance(found, dict):
        raise DataError(f"'{path}' is no JSON object.", next_step="fetch the model again")
    return found


def check_same_tokenizer(folders: Mapping[str, Path]) -> None:
    """Raises SettingError naming the first difference of two models' tokenizers; models without one are passed over."""
    known: tuple[str, Path] | None = None
    for title, folder in folders.items():
        if not folder.is_dir() or not any((folder / name).exists() for name in TOKENIZER_FILES):
            continue
        if known is None:
            known = title, folder
            continue
        difference = _difference(known[1], folder)
        if difference:
            raise SettingError(
                f"The tokenizers of '{known[0]}' and '{title}' differ: {difference}.",
                allowed="models with one tokenizer: a token must mean the same in all",
                next_step="merge models that were tuned from one base",
            )


def _difference(one: Path, other: Path) -> str:
    if (one / "tokenizer.json").exists() and (other / "tokenizer.json").exists():
        first, second = (_vocabulary(read_json(path / "tokenizer.json")) for path in (one, other))
        for token in sorted({*first, *second}):
            if first.get(token) != second.get(token):
                return f"token {token!r} is {first.get(token, 'missing')} and {second.get(token, 'missing')}"
        return ""
    for name in TOKENIZER_FILES:
        contents = [
            hashlib.sha256((path / name).read_bytes()).hexdigest() if (path / name).exists() else ""
            for path in (one, other)
        ]
        if all(contents) and contents[0] != contents[1]:
            return name
    return ""


def _vocabulary(tokenizer: dict[str, Any]) -> dict[str, Any]:
    model = tokenizer.get("model") or {}
    vocabulary = model.get("vocab") or {}
    if isinstance(vocabulary, list):  # unigram: pairs of token and score
        vocabulary = {entry[0]: at for at, entry in enumerate(vocabulary)}
    added = {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens") or []}
    return {**vocabulary, **added}
