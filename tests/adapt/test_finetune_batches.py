"""Batches: every row once, the same for a seed and epoch, the tensors that preprocessing gives."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ontarget.adapt.tune import batches as module
from ontarget.adapt.tune.batches import Batches
from ontarget.errors import SettingError
from ontarget.runtime.preprocess import InputError, Preprocess
from ontarget.values import Examples


def examples(inputs: Any) -> Examples:
    return Examples(inputs, np.arange(len(inputs)) % 2, np.arange(len(inputs)))


def image_preprocess(crop: float = 0.875, channels: int = 3) -> Preprocess:
    settings = {"size": 32, "crop": crop, "interpolation": "bicubic", "channels": channels,
                "mean": [0.485, 0.456, 0.406][:channels], "std": [0.229, 0.224, 0.225][:channels]}  # fmt: skip
    return Preprocess("image", settings)


def images(count: int = 7) -> list[Any]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (40 + row, 50, 3), dtype=np.uint8) for row in range(count)]


@pytest.fixture(scope="module")
def tokens() -> Preprocess:
    from ontarget.pool import load, resolve

    return load(resolve("zoo:wordllama"), max_length=16).preprocess  # type: ignore[no-any-return]


def texts(count: int = 100) -> list[Any]:
    generator = np.random.default_rng(1)
    found: list[Any] = ["word " * int(length) for length in generator.integers(0, 30, count)]
    found[3] = ("a pair", "of texts")
    return found


@pytest.mark.parametrize(("crop", "channels"), [(0.875, 3), (1.0, 3), (1.0, 1)])
@pytest.mark.parametrize("memory_share", [0.25, 0.0])
def test_images_are_what_preprocessing_gives(
    monkeypatch: pytest.MonkeyPatch, crop: float, channels: int, memory_share: float
) -> None:
    """Bit for bit, held in memory or decoded each time; and cropped once, not twice."""
    monkeypatch.setattr(module, "MEMORY_SHARE", memory_share)
    preprocess = image_preprocess(crop, channels)
    batches = Batches(preprocess, examples(images()), batch_size=4)
    assert (batches.pixels is None) == (memory_share == 0)
    rows = np.array([5, 0, 3])
    expected = preprocess([images()[row] for row in rows])["pixels"]
    np.testing.assert_array_equal(batches.tensors(rows, epoch=0)[0].numpy(), expected)


def test_tokens_are_what_preprocessing_gives(tokens: Preprocess) -> None:
    batches = Batches(tokens, examples(texts()), batch_size=8)
    for rows in [*batches.plan(0), *batches.ordered()]:
        for found, expected in zip(batches.tensors(rows), tokens([texts()[row] for row in rows]).values(), strict=True):
            np.testing.assert_array_equal(found.numpy(), expected)


def test_every_row_comes_once_and_epochs_differ(tokens: Preprocess) -> None:
    batches = Batches(tokens, examples(texts()), batch_size=8, seed=1)
    again = Batches(tokens, examples(texts()), batch_size=8, seed=1)
    for plan in (batches.plan(0), batches.plan(1), batches.ordered()):
        assert sorted(np.concatenate(plan)) == list(range(100))
        assert len(plan) == 13
    assert np.concatenate(batches.plan(2)).tolist() == np.concatenate(again.plan(2)).tolist()
    assert np.concatenate(batches.plan(0)).tolist() != np.concatenate(batches.plan(1)).tolist()


def test_like_lengths_go_together(tokens: Preprocess) -> None:
    """Padded positions of an epoch, against those of batches at random."""
    batches = Batches(tokens, examples(texts(400)), batch_size=8)
    assert batches.lengths is not None
    lengths = batches.lengths

    def padding(plan: list[Any]) -> int:
        return sum(int((lengths[rows].max() - lengths[rows]).sum()) for rows in plan)

    order = np.random.default_rng(0).permutation(400)
    assert padding(batches.plan(0)) < 0.4 * padding([order[at : at + 8] for at in range(0, 400, 8)])


def test_augmentation_depends_on_seed_epoch_and_row_alone() -> None:
    preprocess = image_preprocess()

    def pixels(rows: list[int], epoch: int | None, seed: int = 0) -> torch.Tensor:
        made = Batches(preprocess, examples(images()), batch_size=4, augment="randaugment-2-9+flip", seed=seed)
        return made.tensors(np.array(rows), epoch)[0]

    assert torch.equal(pixels([1, 2, 3], 0)[1], pixels([2], 0)[0])
    everything = list(range(7))
    assert not torch.equal(pixels(everything, 0), pixels(everything, 1))
    assert not torch.equal(pixels(everything, 0), pixels(everything, 0, seed=1))
    assert torch.equal(pixels([2], None)[0], torch.from_numpy(preprocess([images()[2]])["pixels"][0]))


def test_a_row_that_cannot_be_read_is_named(tokens: Preprocess) -> None:
    broken = texts()
    broken[42] = 7
    with pytest.raises(InputError, match="row 42"):
        Batches(tokens, examples(broken), batch_size=4)
    with pytest.raises(InputError, match="row 2"):
        Batches(image_preprocess(), examples([*images(2), b"none"]), batch_size=4)


def test_augmentation_is_for_images(tokens: Preprocess) -> None:
    with pytest.raises(SettingError, match="augment is 'flip'"):
        Batches(tokens, examples(texts(4)), batch_size=4, augment="flip")


def test_grey_images_stay_grey() -> None:
    inputs = [Image.fromarray(image).convert("L") for image in images()]
    batches = Batches(image_preprocess(channels=1), examples(inputs), batch_size=4, augment="randaugment-1-9+crop")
    assert batches.tensors(np.arange(7), 0)[0].shape == (7, 1, 32, 32)
