import numpy as np
import pytest
from PIL import Image

from ontarget.augment.image_augmentation import crop, flip, image_augmentation
from ontarget.augment.randaugment import RandAugment
from ontarget.errors import SettingError


def picture(height: int = 24, width: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_parts_follow_in_the_order_of_the_paper_however_they_are_written() -> None:
    for name in ("randaugment-2-9+crop+flip", "flip+randaugment-2-9+crop"):
        augment = image_augmentation(name)
        assert augment is not None
        for seed in range(5):
            generator = np.random.default_rng(seed)
            expected = flip(crop(RandAugment(2, 9)(picture(), generator), generator), generator)
            assert augment(picture(), np.random.default_rng(seed)).tobytes() == expected.tobytes()


def test_none_is_none() -> None:
    assert image_augmentation("none") is None


def test_half_of_the_images_are_flipped() -> None:
    mirrored = np.asarray(picture())[:, ::-1]
    found = [np.asarray(flip(picture(), np.random.default_rng(seed))) for seed in range(200)]
    flipped = sum(np.array_equal(pixels, mirrored) for pixels in found)
    assert 70 < flipped < 130
    assert flipped + sum(np.array_equal(pixels, np.asarray(picture())) for pixels in found) == 200


def test_a_crop_moves_the_image_by_up_to_an_eighth() -> None:
    """Each result is the image moved by (dy, dx) of at most (3, 4); all 7 x 9 moves turn up."""
    whole = np.asarray(picture())
    moves = set()
    for seed in range(800):
        moved = np.asarray(crop(picture(), np.random.default_rng(seed)))
        assert moved.shape == whole.shape
        fits = [
            (dy, dx)
            for dy in range(-3, 4)
            for dx in range(-4, 5)
            if np.array_equal(moved[3:-3, 4:-4], whole[3 + dy : 21 + dy, 4 + dx : 28 + dx])
        ]
        assert len(fits) == 1
        moves.add(fits[0])
    assert len(moves) == 63


@pytest.mark.parametrize("name", ["flop", "randaugment", "randaugment-2", "randaugment-2-x", "flip+", "none+flip"])
def test_other_words_are_refused(name: str) -> None:
    with pytest.raises(SettingError, match="randaugment-N-M"):
        image_augmentation(name)
