"""TF-IDF of word and character n-grams with a linear model: the baseline to beat on text.

Salton, Buckley: Term-weighting approaches in automatic text retrieval (1988). No arXiv id. No official code.
On long noisy text with few labels it beats a frozen encoder, and it runs in well under a millisecond.
Terms: words 1-2, characters 2-5 inside words; sublinear counts, smooth inverse document frequency, unit rows.
The network is a sum of term embeddings, so that it exports to ONNX as two operators.
Checked against scikit-learn's TfidfVectorizer, LogisticRegression and Ridge in
tests/adapt/test_tfidf_linear.py.
"""

from __future__ import annotations

import io
import json
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from ontarget.adapt.tune.held_out import check_grid, check_targets, choose, make_folds, out_of_fold, scored
from ontarget.adapt.tune.linear_head import ClassWeight
from ontarget.adapt.tune.logistic import class_weights, logistic_path
from ontarget.errors import DataError
from ontarget.runtime.preprocess import Preprocess, chunk_terms, joined_text, word_terms
from ontarget.values import Array

L2_GRID: tuple[float, ...] = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)  # rows have unit length (choice)
MAX_TERMS = 100_000  # (choice) about 2 MB of vocabulary and 0.4 MB of weights a class
BLOCK_ROWS = 2_000  # rows whose terms are counted at a time: bounds memory
LARGE_ENTRIES = 5_000_000
RARE_ROWS = 100  # rows from which a term must occur in two of them (choice)


class TermSum(torch.nn.Module):
    """indices (N, L) int64, values (N, L) float32 -> scores (N, C), a sum of weight[indices]."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)

    def forward(self, indices: Tensor, values: Tensor) -> Tensor:
        rows = torch.nn.functional.embedding(indices, self.weight)
        return torch.matmul(values.unsqueeze(1), rows).squeeze(1) + self.bias


def network_from_state(state: Mapping[str, Tensor]) -> TermSum:
    """The network with the tensors ``weight`` (V, C) and ``bias`` (C,)."""
    return TermSum(state["weight"], state["bias"]).eval()


@dataclass(frozen=True)
class TfidfLinear:
    """preprocess and network together predict. terms: vocabulary size V. The rest as in `LinearHead`."""

    preprocess: Preprocess
    network: TermSum
    scores: Array
    l2: float
    value: float
    terms: int
    path: tuple[tuple[float, float], ...]


def tfidf_linear(
    texts: Sequence[Any],
    targets: Array,
    *,
    outputs: int,
    kind: Literal["classification", "regression"],
    metric: str | None = None,
    l2_grid: Sequence[float] = L2_GRID,
    class_weight: ClassWeight = "metric",
    folds: Array | None = None,
    validation: tuple[Sequence[Any], Array] | None = None,
    max_terms: int = MAX_TERMS,
    word_ngrams: tuple[int, int] = (1, 2),
    char_ngrams: tuple[int, int] | None = (2, 5),
    tolerance: float | None = None,
) -> TfidfLinear:
    """Fit vocabulary, weights and L2 strength. Arguments and choice of the strength as in `linear_head`.

    texts: N texts or pairs of texts. max_terms: the terms that occur in most rows are kept.
    tolerance: see `logistic_path`; by default from 0.01 for few rows to 1 from LARGE_ENTRIES entries on (choice).
    Vocabulary and document frequencies come from all of ``texts``, also under ``folds``: they see no targets.
    Raises DataError: no term at all; see `linear_head` for the rest.
    """
    targets = check_targets(targets, outputs=outputs, kind=kind)
    if len(texts) != len(targets) or len(texts) == 0:
        raise DataError(f"Expected as many texts as targets, got {len(texts)} and {len(targets)}.")
    metric = metric or ("accuracy" if kind == "classification" else "r2")
    grid = check_grid(l2_grid)
    if validation is None and (folds is None or len(folds) == 0):
        folds = make_folds(targets, kind=kind)
    settings = {
        "word_ngrams": list(word_ngrams),
        "char_ngrams": list(char_ngrams) if char_ngrams else None,
        "lowercase": True,
        "sublinear": True,
    }
    preprocess, design = fit_terms(texts, settings, max_terms=max_terms)
    if tolerance is None:
        tolerance = 0.01 if design.nnz < LARGE_ENTRIES / 20 else 0.3 if design.nnz < LARGE_ENTRIES else 1.0
    balanced = class_weight == "balanced" or (class_weight == "metric" and metric != "accuracy")

    def path(design: Any, targets: Array, strengths: Sequence[float]) -> Iterator[tuple[float, Array, Array]]:
        if kind == "classification":
            weights = class_weights(targets, outputs=outputs, balanced=balanced)
            return logistic_path(
                design,
                targets,
                outputs=outputs,
                l2_grid=strengths,
                row_weights=weights,
                tolerance=tolerance,
            )
        return _sparse_ridge_path(design, targets, strengths)

    if validation is not None:
        held = to_sparse(preprocess, validation[0])
        held_targets = check_targets(validation[1], outputs=outputs, kind=kind)
        walk = ((l2, scored(held, weight, bias), weight, bias) for l2, weight, bias in path(design, targets, grid))
        best = choose(walk, metric, held_targets)
        weight, bias = best.weight, best.bias
    else:
        assert folds is not None
        best = choose(out_of_fold(design, targets, folds, grid, path, outputs=outputs), metric, targets)
        ((_, weight, bias),) = path(design, targets, [best.l2])
    network = TermSum(
        torch.from_numpy(np.ascontiguousarray(weight.T, dtype=np.float32)),
        torch.from_numpy(np.asarray(bias, dtype=np.float32)),
    ).eval()
    return TfidfLinear(preprocess, network, best.scores, best.l2, best.value, design.shape[1], best.path)


def fit_terms(
    texts: Sequence[Any], settings: Mapping[str, Any], *, max_terms: int = MAX_TERMS
) -> tuple[Preprocess, sparse.csr_array]:
    """The vocabulary as a `Preprocess` of kind "tfidf", and the TF-IDF matrix (N, V) float32 of ``texts``.

    Terms are ordered by falling document frequency. Each distinct word is cut into characters once.
    """
    lower = [joined_text(text, row) for row, text in enumerate(texts)]
    if settings.get("lowercase", True):
        lower = [text.lower() for text in lower]
    words, words_of = _word_counts(lower, *settings["word_ngrams"])
    chunk_ids, starts, chunks = _numbered(text.split() if settings.get("char_ngrams") else [] for text in lower)
    chunk_counts = _count_matrix(chunk_ids, starts, len(chunks))
    of_chunk, chunk_starts, characters = _numbered(chunk_terms(chunk, settings) for chunk in chunks)
    character_counts = _count_matrix(of_chunk, chunk_starts, len(characters))
    del lower

    rows, word_width, character_width = len(texts), words.shape[1], character_counts.shape[1]
    frequency = np.zeros(word_width + character_width, dtype=np.int64)
    frequency[:word_width] = np.bincount(words.indices, minlength=word_width)
    for start in range(0, rows, BLOCK_ROWS):
        found = (chunk_counts[start : start + BLOCK_ROWS] @ character_counts).indices
        frequency[word_width:] += np.bincount(found, minlength=character_width)
    common = np.flatnonzero(frequency >= (2 if rows >= RARE_ROWS else 1))
    if len(common) == 0:
        raise DataError("The texts have no term in common.", next_step="check the input column")
    least = np.sort(frequency[common])[::-1][:max_terms][-1]
    common = common[frequency[common] >= least]
    names = {at: words_of(at) if at < word_width else characters[at - word_width] for at in common.tolist()}
    order = sorted(names, key=lambda at: (-frequency[at], names[at]))[:max_terms]
    kept = np.asarray(order, dtype=np.int64)

    of_words, of_characters = np.flatnonzero(kept < word_width), np.flatnonzero(kept >= word_width)
    counts = sparse.hstack(
        [words[:, kept[of_words]], chunk_counts @ character_counts[:, kept[of_characters] - word_width]],
        format="csr",
    )
    indices = np.concatenate([of_words, of_characters])[counts.indices].astype(counts.indptr.dtype)
    idf = (np.log((1 + rows) / (1 + frequency[kept])) + 1).astype(np.float32)
    values = counts.data.astype(np.float32)
    values = (1 + np.log(values) if settings.get("sublinear", True) else values) * idf[indices]
    matrix = sparse.csr_array((values, indices, counts.indptr), shape=counts.shape)
    norms = np.sqrt(np.maximum(np.asarray(matrix.multiply(matrix).sum(axis=1)).reshape(-1), 1e-30))
    matrix.data /= np.repeat(norms, np.diff(matrix.indptr)).astype(np.float32)
    stored = io.BytesIO()
    np.save(stored, idf, allow_pickle=False)
    vocabulary = {names[at]: index for index, at in enumerate(order)}
    files = {
        "vocabulary.json": json.dumps(vocabulary, ensure_ascii=False).encode(),
        "idf.npy": stored.getvalue(),
    }
    return Preprocess("tfidf", settings, files), matrix


def _numbered(documents: Iterable[list[str]]) -> tuple[Array, Array, list[str]]:
    """Ids of all terms one after another, where each document starts (N + 1), and the terms by id."""
    numbers: defaultdict[str, int] = defaultdict()
    numbers.default_factory = numbers.__len__
    ids, starts = array("i"), [0]
    for document in documents:
        ids.extend(map(numbers.__getitem__, document))
        starts.append(len(ids))
    return np.array(ids, dtype=np.int32), np.array(starts, dtype=np.int64), list(numbers)


def _count_matrix(ids: Array, starts: Array, width: int) -> sparse.csr_array:
    ones = np.ones(len(ids), dtype=np.int32)
    counts = sparse.csr_array((ones, ids, starts), shape=(len(starts) - 1, width))
    counts.sum_duplicates()
    return counts


def _word_counts(texts: Sequence[str], low: int, high: int) -> tuple[sparse.csr_array, Callable[[int], str]]:
    """Counts (N, V) of the word n-grams, and the function from a column to its n-gram."""
    words, starts, names = _numbered(word_terms(text, {"word_ngrams": (1, 1)}) for text in texts)
    document = np.repeat(np.arange(len(texts)), np.diff(starts))
    grams = words.astype(np.int64)  # the n-gram that starts at each word, as a number
    inside = np.ones(len(words), dtype=bool)  # ... if it does not run into the next document
    blocks: list[sparse.csr_array] = []
    first: list[int] = []
    sizes: list[int] = []
    for size in range(1, high + 1):
        if size > 1:
            grams[: len(grams) - size + 1] *= max(1, len(names))
            grams[: len(grams) - size + 1] += words[size - 1 :]
            inside[max(0, len(words) - size + 1) :] = False
            inside[: len(words) - size + 1] &= document[: len(words) - size + 1] == document[size - 1 :]
        at = np.flatnonzero(inside)
        _, position, numbered = np.unique(grams[at], return_index=True, return_inverse=True)
        grams[at] = numbered
        if size >= low:
            counted = np.concatenate([[0], np.cumsum(np.bincount(document[at], minlength=len(texts)))])
            blocks.append(_count_matrix(numbered.astype(np.int32), counted, len(position)))
            first += at[position].tolist()
            sizes += [size] * len(position)

    def name(column: int) -> str:
        return " ".join(names[word] for word in words[first[column] : first[column] + sizes[column]])

    return sparse.hstack(blocks, format="csr"), name


def to_sparse(preprocess: Preprocess, texts: Sequence[Any]) -> sparse.csr_array:
    """The TF-IDF matrix (N, V) float32 of new texts."""
    parts = []
    width = len(preprocess._vocabulary)
    for start in range(0, len(texts), 256):
        tensors = preprocess(texts[start : start + 256])
        filled = tensors["values"] != 0
        starts = np.concatenate([[0], np.cumsum(filled.sum(axis=1))])
        data = (tensors["values"][filled], tensors["indices"][filled].astype(np.int32), starts)
        parts.append(sparse.csr_array(data, shape=(len(filled), width)))
    return sparse.vstack(parts, format="csr")


def _sparse_ridge_path(
    design: sparse.csr_array, targets: Array, l2_grid: Sequence[float]
) -> Iterator[tuple[float, Array, Array]]:
    """Ridge as in `ridge_path`, by conjugate gradients; each strength starts from the one before."""
    middle, spread = float(targets.mean()), float(targets.std()) or 1.0
    wanted = (targets - middle) / spread
    transposed = design.T.tocsr()
    centre = np.asarray(design.sum(axis=0)).reshape(-1) / design.shape[0]
    energy = np.asarray(design.multiply(design).sum(axis=0)).reshape(-1)
    weight = np.zeros(design.shape[1])
    for l2 in sorted(l2_grid, reverse=True):

        def normal(vector: Array, l2: float = l2) -> Array:
            fitted = design @ vector
            product: Array = transposed @ (fitted - fitted.mean()) + l2 * vector
            return product

        shape = (design.shape[1], design.shape[1])
        matrix = LinearOperator(shape, matvec=normal, dtype=np.float64)
        scale = LinearOperator(shape, matvec=lambda vector, l2=l2: vector / (energy + l2), dtype=np.float64)
        weight, _ = cg(matrix, transposed @ wanted, x0=weight, rtol=1e-4, maxiter=200, M=scale)
        unscaled = weight * spread
        yield float(l2), unscaled[None], np.array([middle - centre @ unscaled])
