"""From what a user has (texts, images, arrays) to the tensors that a network takes: described as data.

The same code runs in training and in a bundle, so the two cannot drift apart. It needs numpy alone, plus
``tokenizers`` for texts and Pillow for images. Nothing here knows PyTorch or the rest of OnTarget.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Tensors = dict[str, Array]

# Decoded images larger than this are refused before their pixels are expanded in memory.
MAX_IMAGE_PIXELS = 64_000_000


class InputError(ValueError):
    """An input that cannot be turned into tensors; the message names the row, where it is one row's fault."""

    def __init__(self, problem: str, row: int | None = None) -> None:
        super().__init__(problem if row is None else f"row {row}: {problem}")
        self.problem, self.row = problem, row

    def at(self, rows: Sequence[int] | Array) -> InputError:
        """The same for a batch that holds these rows of a larger call."""
        return InputError(self.problem, None if self.row is None else int(rows[self.row]))


@dataclass(frozen=True)
class Preprocess:
    """How inputs become tensors.

    kind and its settings (JSON values) and files (name -> content):
      tokens: text or pair of texts -> ``input_ids``, ``attention_mask`` int64 (N, T), T = longest row of the call;
          with fields_apart, pairs alone, (N, 2, T), each field tokenized as a text of its own.
          settings: max_length (int), pad_id (int), fields_apart (bool, false by default). files: tokenizer.json.
      tfidf: text -> ``indices`` int64 (N, L), ``values`` float32 (N, L), padded with index 0 and value 0.
          settings: word_ngrams [low, high], char_ngrams [low, high] or null, lowercase, sublinear.
          files: vocabulary.json (term -> index), idf.npy (V,) float32.
      tokens+tfidf: the tensors of both, with the settings and files of both.
      image: image -> ``pixels`` float32 (N, channels, size, size).
          settings: size, crop (fraction of the resized image that the centre crop keeps; 1 = squash to a square),
          interpolation ("bilinear" | "bicubic"), mean, std (lists of ``channels`` values, on the 0..1 scale),
          channels (1 or 3).
      array: numbers -> ``features`` float32 (N, dim). settings: dim.
    """

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in _PREPARE:
            raise ValueError(f"unknown preprocessing '{self.kind}'; known: {', '.join(sorted(_PREPARE))}")

    def __call__(self, inputs: Sequence[Any] | Array) -> Tensors:
        """Tensors for a batch of inputs. Raises InputError naming the row that cannot be read."""
        return _PREPARE[self.kind](self, inputs)

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Names of the tensors, in the order of the network's arguments."""
        return {
            "tokens": ("input_ids", "attention_mask"),
            "tfidf": ("indices", "values"),
            "tokens+tfidf": ("input_ids", "attention_mask", "indices", "values"),
            "image": ("pixels",),
            "array": ("features",),
        }[self.kind]

    @property
    def takes_texts(self) -> bool:
        """Whether inputs are texts, which go through in batches of like length."""
        return self.kind in ("tokens", "tfidf", "tokens+tfidf")

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of kind, settings and files."""
        digest = hashlib.sha256(json.dumps([self.kind, dict(self.settings)], sort_keys=True).encode())
        for name in sorted(self.files):
            digest.update(name.encode() + b"\0" + hashlib.sha256(self.files[name]).digest())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write ``preprocess.json`` and the files into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        listing = {"kind": self.kind, "settings": dict(self.settings), "files": sorted(self.files)}
        (folder / "preprocess.json").write_text(json.dumps(listing, indent=1, sort_keys=True))

    @classmethod
    def load(cls, folder: Path) -> Preprocess:
        """Read what `save` wrote. File names are taken as plain names: no path can leave ``folder``."""
        listing = json.loads((folder / "preprocess.json").read_text())
        names = listing["files"]
        if any(Path(name).name != name for name in names):
            raise ValueError(f"preprocess.json in {folder} names a file outside its folder")
        return cls(listing["kind"], listing["settings"], {name: (folder / name).read_bytes() for name in names})

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.files["tokenizer.json"].decode())
        tokenizer.enable_truncation(int(self.settings["max_length"]))
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        vocabulary: dict[str, int] = json.loads(self.files["vocabulary.json"])
        return vocabulary

    @cached_property
    def _idf(self) -> Array:
        idf: Array = np.load(io.BytesIO(self.files["idf.npy"]), allow_pickle=False)
        return idf

    @cached_property
    def _chunk_indices(self) -> dict[str, Array]:
        return {}  # filled by _known_indices

    def __getstate__(self) -> dict[str, Any]:
        # Tokenizers and other caches are rebuilt where the value arrives.
        return {"kind": self.kind, "settings": self.settings, "files": self.files}


def _tokens(preprocess: Preprocess, texts: Sequence[Any]) -> Tensors:
    rows = [_checked_text(text, row) for row, text in enumerate(texts)]
    apart = bool(preprocess.settings.get("fields_apart", False))
    if apart:
        for row, fields in enumerate(rows):
            if isinstance(fields, str):
                raise InputError("expected a pair of texts, got one text", row)
        rows = [field for fields in rows for field in fields]
    encoded = preprocess._tokenizer.encode_batch(rows)
    # An empty text can tokenize to nothing; one pad token, attended to, keeps the mean over tokens defined.
    pad = int(preprocess.settings["pad_id"])
    length = max([1, *(len(row.ids) for row in encoded)])
    ids = np.full((len(rows), length), pad, dtype=np.int64)
    mask = np.zeros((len(rows), length), dtype=np.int64)
    for row, tokens in enumerate(encoded):
        count = max(1, len(tokens.ids))
        ids[row, : len(tokens.ids)] = tokens.ids
        mask[row, :count] = 1
    shape = (-1, 2, length) if apart else (-1, length)
    return {"input_ids": ids.reshape(shape), "attention_mask": mask.reshape(shape)}


def _checked_text(text: Any, row: int) -> Any:
    if isinstance(text, str):
        return text
    if isinstance(text, (tuple, list)) and len(text) == 2 and all(isinstance(part, str) for part in text):
        return tuple(text)
    raise InputError(f"expected a text or a pair of texts, got {type(text).__name__}", row)


def _tokens_and_tfidf(preprocess: Preprocess, texts: Sequence[Any]) -> Tensors:
    return {**_tokens(preprocess, texts), **_tfidf(preprocess, texts)}


_WORD = re.compile(r"(?u)\b\w\w+\b")


CACHED_CHUNKS = 100_000  # distinct words whose character terms are remembered, about 30 MB


def terms(text: str, settings: Mapping[str, Any]) -> Counter[str]:
    """Word and character n-grams of ``text``, as scikit-learn's "word" and "char_wb" analyzers cut them.

    Terms of the two kinds cannot collide: character terms carry the prefix "\\x00".
    """
    if settings.get("lowercase", True):
        text = text.lower()
    found = Counter(word_terms(text, settings))
    for chunk in text.split():
        found.update(chunk_terms(chunk, settings))
    return found


def word_terms(text: str, settings: Mapping[str, Any]) -> list[str]:
    """The word n-grams of a text that is already in lower case where settings ask for it."""
    low, high = settings["word_ngrams"]
    words = _WORD.findall(text)
    found = words[:] if low == 1 else []
    for size in range(max(low, 2), high + 1):
        found += [" ".join(words[at : at + size]) for at in range(len(words) - size + 1)]
    return found


def chunk_terms(chunk: str, settings: Mapping[str, Any]) -> list[str]:
    """The character n-grams of one piece of text between white space."""
    found = []
    if settings.get("char_ngrams"):
        low, high = settings["char_ngrams"]
        padded = f" {chunk} "
        for size in range(low, high + 1):
            if len(padded) <= size:
                found.append("\x00" + padded)
                break
            found += ["\x00" + padded[at : at + size] for at in range(len(padded) - size + 1)]
    return found


def joined_text(text: Any, row: int) -> str:
    """A text, or the two fields of a row as one text. Raises InputError for anything else."""
    checked = _checked_text(text, row)
    return checked if isinstance(checked, str) else " \n ".join(checked)


def _known_indices(preprocess: Preprocess, text: str) -> Array:
    """Vocabulary indices of the terms of ``text``, one an occurrence. Words repeat: theirs are remembered."""
    settings, vocabulary, remembered = preprocess.settings, preprocess._vocabulary, preprocess._chunk_indices
    if settings.get("lowercase", True):
        text = text.lower()
    known = [vocabulary[term] for term in word_terms(text, settings) if term in vocabulary]
    found = [np.array(known, dtype=np.int64)]
    for chunk in text.split() if settings.get("char_ngrams") else ():
        indices = remembered.get(chunk)
        if indices is None:
            known = [vocabulary[term] for term in chunk_terms(chunk, settings) if term in vocabulary]
            indices = np.array(known, dtype=np.int64)
            if len(remembered) >= CACHED_CHUNKS:
                remembered.clear()
            if len(chunk) <= 64:
                remembered[chunk] = indices
        found.append(indices)
    return np.concatenate(found)


def _tfidf(preprocess: Preprocess, texts: Sequence[Any]) -> Tensors:
    idf = preprocess._idf
    sublinear = bool(preprocess.settings.get("sublinear", True))
    rows: list[tuple[Array, Array]] = []
    for row, text in enumerate(texts):
        indices, counts = np.unique(_known_indices(preprocess, joined_text(text, row)), return_counts=True)
        frequency = counts.astype(np.float32)
        values = (1 + np.log(frequency) if sublinear else frequency) * idf[indices]
        norm = float(np.sqrt(np.sum(values**2)))
        rows.append((indices, values / norm if norm > 0 else values))
    length = max([1, *(len(indices) for indices, _ in rows)])
    padded_indices = np.zeros((len(rows), length), dtype=np.int64)
    padded_values = np.zeros((len(rows), length), dtype=np.float32)
    for row, (indices, values) in enumerate(rows):
        padded_indices[row, : len(indices)] = indices
        padded_values[row, : len(values)] = values
    return {"indices": padded_indices, "values": padded_values}


def open_image(image: Any, row: int = 0) -> Any:
    """A loaded Pillow image from a path, bytes, an array or a Pillow image; EXIF rotation applied.

    Raises InputError for what is no image, is damaged, or has more than MAX_IMAGE_PIXELS.
    """
    from PIL import Image, ImageOps

    try:
        if isinstance(image, np.ndarray):
            return Image.fromarray(_checked_pixels(image, row))
        if isinstance(image, (bytes, bytearray)):
            image = Image.open(io.BytesIO(image))
        elif isinstance(image, (str, Path)):
            image = Image.open(image)
        elif not isinstance(image, Image.Image):
            raise InputError(f"expected an image, its path or its bytes, got {type(image).__name__}", row)
        if image.width * image.height > MAX_IMAGE_PIXELS:
            raise InputError(f"image of {image.width} x {image.height} has over {MAX_IMAGE_PIXELS:,} pixels", row)
        return ImageOps.exif_transpose(image)
    except InputError:
        raise
    except Exception as error:  # Pillow raises a dozen kinds for damaged files
        what = f"'{image}'" if isinstance(image, (str, Path)) else "the given bytes"
        raise InputError(f"{what} cannot be read as an image ({type(error).__name__}: {error})", row) from error


def _checked_pixels(image: Array, row: int) -> Array:
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        shapes = "(H, W) or (H, W, 3)"
        raise InputError(f"an image array must be uint8 of shape {shapes}, got {image.dtype} {image.shape}", row)
    return image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image


def _image(preprocess: Preprocess, images: Sequence[Any]) -> Tensors:
    settings = preprocess.settings
    size, channels = int(settings["size"]), int(settings.get("channels", 3))
    mean = np.asarray(settings["mean"], dtype=np.float32).reshape(channels, 1, 1)
    std = np.asarray(settings["std"], dtype=np.float32).reshape(channels, 1, 1)
    pixels = np.empty((len(images), channels, size, size), dtype=np.float32)
    for row, image in enumerate(images):
        cropped = resize_and_crop(open_image(image, row), settings)
        values = np.asarray(cropped, dtype=np.float32).reshape(size, size, channels).transpose(2, 0, 1)
        pixels[row] = (values / np.float32(255) - mean) / std
    return {"pixels": pixels}


def resize_and_crop(image: Any, settings: Mapping[str, Any]) -> Any:
    """The Pillow image (size, size) in the mode that ``settings`` asks for."""
    from PIL import Image

    size, crop = int(settings["size"]), float(settings.get("crop", 1.0))
    image = image.convert("L" if int(settings.get("channels", 3)) == 1 else "RGB")
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    resample = filters[settings.get("interpolation", "bilinear")]
    if crop >= 1.0:
        return image if image.size == (size, size) else image.resize((size, size), resample)
    short = round(size / crop)
    scale = short / min(image.size)
    width, height = max(size, round(image.width * scale)), max(size, round(image.height * scale))
    image = image.resize((width, height), resample)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _array(preprocess: Preprocess, rows: Sequence[Any] | Array) -> Tensors:
    dim = int(preprocess.settings["dim"])
    try:
        features = np.asarray(rows, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"features must be numbers in rows of {dim}: {error}") from error
    if features.ndim != 2 or features.shape[1] != dim:
        raise InputError(f"features must have shape (N, {dim}), got {features.shape}")
    broken = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(broken):
        raise InputError("features hold NaN or infinity", int(broken[0]))
    return {"features": features}


_PREPARE: dict[str, Callable[[Preprocess, Any], Tensors]] = {
    "tokens": _tokens,
    "tfidf": _tfidf,
    "tokens+tfidf": _tokens_and_tfidf,
    "image": _image,
    "array": _array,
}
