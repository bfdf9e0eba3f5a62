"""Zero-shot classification by names: which class name is a text nearest to?

Wenpeng Yin, Jamaal Hay, Dan Roth, "Benchmarking Zero-shot Text Classification", EMNLP 2019 (arXiv 1909.00161), in its
simplest form: texts and names encoded alike, cosine similarity.
Official code: github.com/yinwenpeng/BenchmarkingZeroShot (the entailment models of the paper).
Claim: class names alone, without a labelled row, classify better than chance.
Left out: entailment models; names spelled out by definitions.
Checked in tests/judge/test_zero_shot.py, on a real encoder too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from ontarget.errors import DataError
from ontarget.values import Array

TEMPLATES = ("{}", "This is about {}.")  # (choice), fixed: choosing among them takes labelled rows


def class_sentences(classes: Sequence[str], templates: Sequence[str] = TEMPLATES) -> list[str]:
    """P templates x C classes as sentences, all classes of the first template first.

    Names are read as words: ``"card_payment-fee"`` and ``"cardPaymentFee"`` become "card payment fee".
    """
    words = [_words(name) for name in classes]
    return [template.format(name) for template in templates for name in words]


def nameable(classes: Sequence[str]) -> bool:
    """Whether the names say anything: at least half of them hold a word of three letters or more."""
    spoken = [name for name in classes if re.search(r"[^\W\d_]{3,}", name)]
    return 2 * len(spoken) >= max(1, len(classes))


def zero_shot(texts: Array, names: Array, *, temperature: float = 0.05) -> Array:
    """Scores (N, C) from features of texts (N, D) and of class names (C, D) or (P, C, D) by the same encoder.

    Of P sentences a class, the mean direction counts. temperature: cosine similarities are divided by it; it does not
    change which class is nearest (choice).
    Raises DataError: shapes that do not fit.
    """
    if names.ndim not in (2, 3) or texts.ndim != 2 or texts.shape[1] != names.shape[-1]:
        raise DataError(f"Features of texts {texts.shape} and of class names {names.shape} do not fit.")
    directions = _unit(names)
    if names.ndim == 3:
        directions = _unit(directions.mean(axis=0))
    return (_unit(texts) @ directions.T / temperature).astype(np.float32)


def _words(name: str) -> str:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name) if " " not in name else name
    # Acronyms and proper names keep their capitals; camelCase loses them.
    spaced = spaced.lower() if spaced != name else spaced
    return " ".join(re.sub(r"[_\-/]+", " ", spaced).split())


def _unit(features: Array) -> Array:
    unit: Array = features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
    return unit
