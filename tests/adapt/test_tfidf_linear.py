"""TF-IDF with a linear model against scikit-learn; the fast path against its definition."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from ontarget.adapt.tune.tfidf_linear import fit_terms, tfidf_linear, to_sparse
from ontarget.errors import DataError
from ontarget.runtime.preprocess import InputError, terms

GOOD = ["great", "wonderful", "lovely", "superb", "charming", "delightful"]
BAD = ["awful", "dreadful", "boring", "tedious", "horrid", "dull"]
FILLER = ["the", "film", "was", "and", "a", "plot", "its", "actors", "with", "scenes", "Ünïcode", "42"]
SETTINGS = {"word_ngrams": [1, 2], "char_ngrams": [2, 5], "lowercase": True, "sublinear": True}


def reviews(rows: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, rows)
    texts = [
        " ".join(rng.permutation([*rng.choice(FILLER, 6), *rng.choice(GOOD if target else BAD, 2)]))
        for target in targets
    ]
    return texts, targets


def reference_terms(text: str) -> list[str]:
    word = CountVectorizer(ngram_range=(1, 2)).build_analyzer()
    character = CountVectorizer(analyzer="char_wb", ngram_range=(2, 5)).build_analyzer()
    return [*word(text), *("\x00" + term for term in character(text))]


def predicted(network: torch.nn.Module, tensors: dict[str, np.ndarray]) -> np.ndarray:
    with torch.inference_mode():
        return network(torch.from_numpy(tensors["indices"]), torch.from_numpy(tensors["values"])).numpy()


def test_matrix_equals_sklearn() -> None:
    texts, _ = reviews(40)
    preprocess, matrix = fit_terms(texts, SETTINGS)
    reference = TfidfVectorizer(analyzer=reference_terms, sublinear_tf=True)
    expected = reference.fit_transform(texts)
    import json

    vocabulary = json.loads(preprocess.files["vocabulary.json"])
    assert set(vocabulary) == set(reference.vocabulary_)
    columns = [reference.vocabulary_[term] for term in sorted(vocabulary, key=vocabulary.__getitem__)]
    np.testing.assert_allclose(matrix.toarray(), expected[:, columns].toarray(), atol=1e-6)
    fresh, _ = reviews(15, seed=1)
    np.testing.assert_allclose(
        to_sparse(preprocess, fresh).toarray(), reference.transform(fresh)[:, columns].toarray(), atol=1e-6
    )


def test_classifier_equals_sklearn_on_the_same_terms() -> None:
    texts, targets = reviews(150)
    fresh, fresh_targets = reviews(40, seed=1)
    ours = tfidf_linear(
        texts,
        targets,
        outputs=2,
        kind="classification",
        l2_grid=[0.5],
        validation=(fresh, fresh_targets),
        tolerance=1e-4,
    )
    vectorizer = TfidfVectorizer(analyzer=reference_terms, sublinear_tf=True, min_df=2)
    # Two softmax columns under L2 equal one logistic column under half of it.
    model = LogisticRegression(C=1 / 0.25, tol=1e-8, max_iter=1000)
    model.fit(vectorizer.fit_transform(texts), targets)
    scores = predicted(ours.network, ours.preprocess(fresh))
    np.testing.assert_allclose(
        scores[:, 1] - scores[:, 0], model.decision_function(vectorizer.transform(fresh)), atol=3e-3
    )
    np.testing.assert_allclose(scores, ours.scores, atol=1e-5)
    assert ours.value == pytest.approx(np.mean(scores.argmax(1) == fresh_targets))


def test_regressor_equals_sklearn_ridge() -> None:
    texts, targets = reviews(120)
    values = targets * 7.0 + 100 + np.random.default_rng(0).normal(size=120)
    fresh, _ = reviews(20, seed=1)
    ours = tfidf_linear(texts, values, outputs=1, kind="regression", l2_grid=[1.0], validation=(fresh, np.arange(20.0)))
    vectorizer = TfidfVectorizer(analyzer=reference_terms, sublinear_tf=True, min_df=2)
    model = Ridge(alpha=1.0).fit(vectorizer.fit_transform(texts), values)
    np.testing.assert_allclose(ours.scores[:, 0], model.predict(vectorizer.transform(fresh)), atol=2e-2)


def test_strength_is_chosen_out_of_fold_and_learns() -> None:
    texts, targets = reviews(200)
    ours = tfidf_linear(texts, targets, outputs=2, kind="classification", folds=np.arange(200) % 4, metric="macro_f1")
    assert ours.value > 0.95
    assert ours.scores.shape == (200, 2)
    fresh, fresh_targets = reviews(100, seed=5)
    assert np.mean(predicted(ours.network, ours.preprocess(fresh)).argmax(1) == fresh_targets) > 0.95
    again = tfidf_linear(texts, targets, outputs=2, kind="classification", folds=np.arange(200) % 4, metric="macro_f1")
    assert torch.equal(ours.network.weight, again.network.weight)
    assert ours.preprocess.fingerprint == again.preprocess.fingerprint


def test_max_terms_keeps_the_most_frequent() -> None:
    texts, targets = reviews(120)
    preprocess, matrix = fit_terms(texts, SETTINGS, max_terms=50)
    assert matrix.shape == (120, 50)
    idf = preprocess._idf
    assert np.all(np.diff(idf) >= -1e-6)  # ordered by falling document frequency
    _, full = fit_terms(texts, SETTINGS)
    frequency = np.sort(np.bincount(full.indices))[::-1]
    np.testing.assert_array_equal(np.bincount(matrix.indices), frequency[:50])
    assert tfidf_linear(texts, targets, outputs=2, kind="classification", max_terms=50).terms == 50


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="abAB éİß_09.,-'\n\t\u00a0", max_size=40))
def test_terms_are_sklearns(text: str) -> None:
    found = sorted(terms(text, SETTINGS).elements())
    # scikit-learn closes up only ASCII-visible runs of white space before char_wb, which splits the same way
    assert found == sorted(reference_terms(re.sub(r"\s+", " ", text)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="abc d", max_size=15), min_size=1, max_size=6))
def test_fast_path_equals_definition(texts: list[str]) -> None:
    preprocess, _ = fit_terms(["abc d ab", "ba cab dd a", "cc ab"], SETTINGS)
    tensors = preprocess(texts)
    vocabulary, idf = preprocess._vocabulary, preprocess._idf
    for row, text in enumerate(texts):
        expected = np.zeros(len(vocabulary))
        for term, count in terms(text, SETTINGS).items():
            if term in vocabulary:
                expected[vocabulary[term]] = (1 + np.log(count)) * idf[vocabulary[term]]
        expected /= np.linalg.norm(expected) or 1.0
        dense = np.zeros(len(vocabulary))
        np.add.at(dense, tensors["indices"][row], tensors["values"][row])
        np.testing.assert_allclose(dense, expected, atol=1e-6)


def test_pairs_and_bad_input() -> None:
    preprocess, _ = fit_terms([("good film", "bad book"), ("a good book", "film")], SETTINGS)
    assert "film bad" in preprocess._vocabulary  # fields are joined into one text
    with pytest.raises(InputError, match="row 1"):
        preprocess(["fine", 3])
    with pytest.raises(DataError, match="no term"):
        fit_terms(["", " "], SETTINGS)
    with pytest.raises(DataError, match="as many texts"):
        tfidf_linear(["a"], np.array([0, 1]), outputs=2, kind="classification")
