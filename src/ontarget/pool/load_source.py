"""From a source to an encoder in memory, with its preprocessing."""

from __future__ import annotations

from pathlib import Path

from ontarget.errors import SettingError
from ontarget.pool.source import FIELDS_APART, Source, resolve
from ontarget.values import Loaded

DEFAULT_MAX_LENGTH = 128  # tokens (choice)


def load(source: Source, *, max_length: int | None = None) -> Loaded:
    """The source's encoder in evaluation mode.

    max_length: tokens that texts are cut to; 128, or the model's own limit where that is lower, by default.
    Raises MissingExtra for weights that are not installed, SettingError for models that cannot be used.
    """
    if source.fields_apart:
        from ontarget.pool.fields_apart import fields_apart

        whole = load(resolve(source.locator.removesuffix(FIELDS_APART)), max_length=max_length)
        return fields_apart(whole, source.locator)
    length = max_length or DEFAULT_MAX_LENGTH
    base = source.locator.split("@")[0] if source.image_size else source.locator
    scheme, _, name = base.partition(":")
    if base == "zoo:wordllama":
        from ontarget.pool.static_embeddings import load_wordllama

        return load_wordllama(source, length)
    if scheme == "file" and (Path(name) / "network.json").exists():
        from ontarget.pool.found_networks import load_found

        return load_found(source.locator, Path(name), max_length=max_length)
    if base in ("zoo:minilm", "zoo:smollm2-135m") or scheme in ("hub", "file"):
        from ontarget.pool import text_encoders

        if base == "zoo:minilm":
            return text_encoders.load_minilm(source, length)
        if base == "zoo:smollm2-135m":
            return text_encoders.load_smollm2(source, length)
        return text_encoders.load_transformer(source.locator, name, length, local=scheme == "file")
    if base.startswith("zoo:efficientnet-lite"):
        from ontarget.pool.image_encoders import load_efficientnet_lite

        return load_efficientnet_lite(source)
    if scheme == "timm":
        from ontarget.pool.image_encoders import load_timm

        return load_timm(source, name)
    if scheme == "control" and name != "array":
        from ontarget.pool import controls

        if name == "pixels":
            return controls.load_pixels(source)
        if name.startswith("array-"):
            return controls.load_array(int(name.removeprefix("array-")))
        return controls.load_random(source, load(resolve(f"zoo:{name.removeprefix('random-')}"), max_length=max_length))
    raise SettingError(f"'{source.locator}' cannot be loaded.", option="--pool", next_step="see: ontarget zoo list")
