"""What methods there are: listed from the stages' ``METHODS`` tuples and searched by text, nothing imported.

Ranking of a search: BM25 (Robertson, Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009).
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ROOMS = (
    "select", "augment", "search", "adapt/tune", "adapt/distil", "adapt/shift", "adapt/align", "adapt/pretrain",
    "adapt/control", "merge", "compress", "serve", "judge", "solve", "retrieve", "parts/optimizers",
)  # fmt: skip

K1, B = 1.2, 0.75  # BM25's usual constants
NAME_WEIGHT = 3  # a word of the name or the title counts as so many words of the summary (choice)


@dataclass(frozen=True)
class Method:
    """One published algorithm, or one cheap baseline, as an entry of its stage's ``METHODS``.

    number: of its specification; 0 for a baseline. name: of its module and of the callable in it. title: of the
    paper, or what the baseline is called. room: folder under ``ontarget``, e.g. ``"adapt/tune"``. summary: one
    sentence: what a user gets, and when. needs, gives: words such as ``("features", "labels")``. source: arXiv id
    or venue. status: "implemented", and "replicated" once its claim has run and holds.
    """

    number: int
    name: str
    title: str
    room: str
    summary: str
    needs: tuple[str, ...]
    gives: tuple[str, ...]
    source: str
    status: str = "implemented"

    @property
    def stage(self) -> str:
        return self.room.split("/")[0]

    @property
    def module(self) -> str:
        return f"ontarget.{self.room.replace('/', '.')}.{self.name}"

    def load(self) -> Callable[..., Any]:
        """The callable: the attribute called ``name``, in whatever capitals, of the module called ``name``."""
        module = importlib.import_module(self.module)
        name = next(key for key in vars(module) if key.lower() == self.name)
        function: Callable[..., Any] = getattr(module, name)
        return function


def all_methods() -> tuple[Method, ...]:
    """Every method of every room that is there, in the order of the flow."""
    methods: list[Method] = []
    for room in ROOMS:
        module = f"ontarget.{room.replace('/', '.')}"
        if _exists(module):
            methods.extend(getattr(importlib.import_module(module), "METHODS", ()))
    return tuple(methods)


def search(text: str) -> list[Method]:
    """Methods that share at least one word with ``text``, best first; all of them for an empty text."""
    methods = all_methods()
    query = _words(text)
    if not query:
        return list(methods)
    documents = [Counter(_document(method)) for method in methods]
    lengths = [sum(document.values()) for document in documents]
    mean_length = sum(lengths) / max(len(lengths), 1)
    scores = [0.0] * len(methods)
    for word in set(query):
        holders = sum(word in document for document in documents)
        weight = math.log(1 + (len(methods) - holders + 0.5) / (holders + 0.5))
        for position, document in enumerate(documents):
            count = document[word]
            norm = K1 * (1 - B + B * lengths[position] / mean_length)
            scores[position] += weight * count * (K1 + 1) / (count + norm)
    order = sorted(range(len(methods)), key=lambda position: (-scores[position], methods[position].name))
    return [methods[position] for position in order if scores[position] > 0]


def print_methods(text: str = "") -> None:
    """Print what `search` finds, one method a paragraph."""
    found = search(text)
    if not found:
        print(f"No method matches '{text}'. `ontarget methods` lists all {len(all_methods())}.")
    for method in found:
        number = f"{method.number:02d} " if method.number else ""
        print(f"{number}{method.name}  [{method.stage}, {method.status}]  {method.source}")
        print(f"    {method.title}")
        print(f"    {method.summary}")
        print(f"    needs {', '.join(method.needs)}; gives {', '.join(method.gives)}; {method.module}")


def _document(method: Method) -> list[str]:
    headline = f"{method.name.replace('_', ' ')} {method.title} {method.number or ''}"
    rest = " ".join((method.room, method.summary, *method.needs, *method.gives, method.source, method.status))
    return _words(headline) * NAME_WEIGHT + _words(rest)


def _words(text: str) -> list[str]:
    # Plurals are cut so that "label" finds "labels"; two letters and "ss" stay as they are.
    found = re.findall(r"[a-z0-9]+", text.lower())
    return [word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in found]


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
