import numpy as np
import pytest

from ontarget.errors import DataError
from ontarget.judge.zero_shot import class_sentences, nameable, zero_shot


def test_the_nearest_name_wins() -> None:
    names = np.eye(3)
    texts = np.array([[0.9, 0.1, 0.0], [0.0, 0.2, 5.0]])
    assert zero_shot(texts, names).argmax(axis=1).tolist() == [0, 2]
    assert zero_shot(texts, names, temperature=0.5)[0] == pytest.approx(2 * texts[0] / np.linalg.norm(texts[0]))


def test_several_sentences_a_class_count_together() -> None:
    """Class 0 lies at 0 and 90 degrees, so at 45; class 1 at 90 and 90: a text at 60 degrees is nearer to 45."""
    names = np.array([[[1.0, 0], [0, 1]], [[0, 3.0], [0, 1]]])
    angle = np.deg2rad(60)
    scores = zero_shot(np.array([[np.cos(angle), np.sin(angle)]]), names, temperature=1.0)
    assert scores[0] == pytest.approx(np.cos(np.deg2rad([15, 30])))


def test_names_become_words() -> None:
    assert class_sentences(["card_payment-fee", "cardPaymentFee", "Atheism", "NASA/space"], ["{}"]) == [
        "card payment fee", "card payment fee", "Atheism", "NASA space"
    ]  # fmt: skip
    assert class_sentences(["a", "b"], ["{}", "on {}"]) == ["a", "b", "on a", "on b"]


def test_numbers_are_no_names() -> None:
    assert not nameable(["0", "1", "-2"])
    assert not nameable(["c1", "c2"])
    assert nameable(["spam", "ham"])


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="do not fit"):
        zero_shot(np.zeros((2, 3)), np.zeros((2, 4)))


def test_a_real_encoder_knows_sport_from_cooking() -> None:
    from ontarget.pool import load, resolve
    from ontarget.pool.features import extract

    loaded = load(resolve("zoo:wordllama"))
    texts = ["The striker scored twice and the team won the match.", "Fry the onions in butter, then add the flour."]
    names = extract(loaded, class_sentences(["sport", "cooking"]))
    scores = zero_shot(extract(loaded, texts), names.reshape(-1, 2, names.shape[1]))
    assert scores.argmax(axis=1).tolist() == [0, 1]
