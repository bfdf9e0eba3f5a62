from pathlib import Path

import numpy as np
import pytest
import torch

from ontarget.adapt.tune.batches import Batches
from ontarget.adapt.tune.finetune import build, finetune, network_from_state
from ontarget.compress.export import export_onnx, torch_scores
from ontarget.errors import SettingError
from ontarget.pool import candidates, load, resolve
from ontarget.pool.features import extract
from ontarget.pool.source import stamp
from ontarget.runtime.preprocess import InputError
from ontarget.runtime.session import make_session
from ontarget.values import Context, Examples, Loaded

PAIRS = [
    ("Who wrote the book?", "The novel was written by Tolstoy in the years after the war, in his house."),
    ("", "A second field alone."),
    ("How far is the moon from here, and how long does light take?", "About one second."),
    ("ünïcode ☃", "漢字"),
    ("Who wrote the book?", "It rained."),
]


def examples(pairs: list[tuple[str, str]]) -> Examples:
    return Examples(pairs, np.arange(len(pairs)) % 2, np.arange(len(pairs)))


@pytest.fixture(scope="module", params=["zoo:wordllama", "zoo:minilm"])
def both(request: pytest.FixtureRequest) -> tuple[Loaded, Loaded]:
    return load(resolve(request.param)), load(resolve(f"{request.param}@apart"))


def test_features_are_those_of_each_field_and_their_comparison(both: tuple[Loaded, Loaded]) -> None:
    whole, apart = both
    first, second = (extract(whole, [pair[field] for pair in PAIRS]) for field in (0, 1))
    expected = np.concatenate([first, second, abs(first - second), first * second], axis=1)
    found = extract(apart, PAIRS)
    assert found.shape == (len(PAIRS), apart.dim) == (len(PAIRS), 4 * whole.dim)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_training_batches_hold_what_the_preprocessing_makes(both: tuple[Loaded, Loaded]) -> None:
    for loaded in both:
        batches = Batches(loaded.preprocess, examples(PAIRS), batch_size=3)
        assert sorted(np.concatenate(batches.ordered())) == list(range(len(PAIRS)))
        for rows in batches.ordered():
            expected = loaded.preprocess([PAIRS[int(row)] for row in rows])
            for found, wanted in zip(batches.tensors(rows), expected.values(), strict=True):
                np.testing.assert_array_equal(found.numpy(), wanted)


def test_a_single_text_is_refused_with_its_row(both: tuple[Loaded, Loaded]) -> None:
    with pytest.raises(InputError, match="row 1: expected a pair"):
        both[1].preprocess([PAIRS[0], "one text"])


def test_the_graph_takes_any_number_of_pairs_of_any_length(both: tuple[Loaded, Loaded], tmp_path: Path) -> None:
    loaded = both[1]
    network = build(loaded, examples(PAIRS), outputs=2, kind="classification", mode="full", probe=False).eval()
    path = export_onnx(network, loaded.preprocess, PAIRS[:3], tmp_path / "pairs.onnx")
    session = make_session(path)
    for rows in (PAIRS, PAIRS[1:2], [(" ".join(PAIRS[0]) * 5, "short")] * 9):
        tensors = loaded.preprocess(rows)
        np.testing.assert_allclose(session.run(["scores"], tensors)[0], torch_scores(network, tensors), atol=1e-4)


@pytest.mark.parametrize("mode", ["full", "lora", "last"])
def test_tuning_learns_how_two_texts_are_related_and_is_rebuilt(mode: str) -> None:
    """Label 1: both fields are the same sentence. Nothing about either field alone tells it."""
    sentences = [
        "the cat sleeps", "prices rise again", "snow fell in may", "he plays chess", "ships leave port",
        "a new bridge opens", "soup needs salt", "she reads maps",
    ]  # fmt: skip
    count = len(sentences)
    pairs = [(left, sentences[(at + step) % count]) for at, left in enumerate(sentences) for step in (0, 0, 1, 3)]
    targets = np.array([int(left == right) for left, right in pairs])
    rows = Examples(pairs, targets, np.arange(len(pairs)))
    loaded = load(resolve("zoo:minilm@apart"))
    found = finetune(
        loaded, rows, rows, outputs=2, kind="classification", metric="accuracy", mode=mode, total_epochs=2,
        context=Context(seed=0),
    )  # fmt: skip
    assert found.validation_metric == 1.0
    again = network_from_state(load(resolve("zoo:minilm@apart")), found.state, outputs=2, mode=mode)
    tensors = [torch.from_numpy(value) for value in loaded.preprocess(pairs).values()]
    with torch.inference_mode():
        np.testing.assert_allclose(again.eval()(*tensors), found.network(*tensors), atol=1e-5)
    if found.adapter is not None:
        # Under the names that peft knows them by on the transformers model itself.
        assert "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight" in found.adapter.tensors


def test_pairs_of_texts_bring_the_encoders_in_a_second_time() -> None:
    minilm = "zoo:minilm"
    assert candidates([minilm], "text", columns=2) == [minilm, f"{minilm}@apart"]
    assert candidates([f"{minilm}@apart"], "text", columns=2) == [f"{minilm}@apart"]
    assert candidates([minilm, "control:random-minilm"], "text", columns=2)[1:] == [
        f"{minilm}@apart",
        "control:random-minilm",
    ]
    assert candidates([minilm], "text") == [minilm]
    source = resolve(f"{minilm}@apart")
    assert source.licence == resolve(minilm).licence and stamp(source) == stamp(resolve(minilm))


def test_only_texts_have_fields_apart(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="two text fields"):
        resolve("zoo:efficientnet-lite0@apart")
    folder = tmp_path / "model@apart"
    folder.mkdir()
    assert not resolve(f"file:{folder}").fields_apart
    assert resolve(f"file:{tmp_path}@apart").fields_apart
