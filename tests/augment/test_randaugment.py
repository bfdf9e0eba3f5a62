import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from ontarget.augment.randaugment import (
    CODE,
    PAPER,
    RandAugment,
    apply,
    enhance_factor,
    posterize_bits,
    solarize_threshold,
)
from ontarget.errors import SettingError


def picture(side: int = 32, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("magnitude", "factor", "bits", "threshold"),
    [(0, 0.1, 1, 0), (5, 1.0, 2, 128), (10, 1.9, 4, 256), (9, 1.72, 3, 230)],
)
def test_level_maps_by_hand(magnitude: float, factor: float, bits: int, threshold: int) -> None:
    assert enhance_factor(magnitude) == pytest.approx(factor)
    assert posterize_bits(magnitude) == bits
    assert solarize_threshold(magnitude) == threshold


def test_lists_are_the_paper_s_and_the_code_s() -> None:
    assert len(PAPER) == 14
    assert "identity" in PAPER
    assert set(CODE) - set(PAPER) == {"invert", "cutout", "solarize_add"}
    assert set(PAPER) - set(CODE) == {"identity"}


@pytest.mark.parametrize("name", ["autocontrast", "equalize", "invert"])
def test_operations_without_a_level_are_pillow_s(name: str) -> None:
    image = picture()
    found = apply(name, image, 7, np.random.default_rng(0))
    assert found.tobytes() == getattr(ImageOps, name)(image).tobytes()


def test_solarize_and_solarize_add_by_hand() -> None:
    image = Image.fromarray(np.array([[[10, 100, 200]]], dtype=np.uint8))
    assert apply("solarize", image, 5, np.random.default_rng(0)).getpixel((0, 0)) == (10, 100, 55)
    # 110 * 5 / 10 = 55 is added where a channel is below 128.
    assert apply("solarize_add", image, 5, np.random.default_rng(0)).getpixel((0, 0)) == (65, 155, 200)


def test_translation_scales_with_the_image() -> None:
    """At M=10 an image of 224 moves by 100 pixels, one of 112 by 50; what comes in is 128."""
    for side, pixels in ((224, 100), (112, 50)):
        image = Image.new("RGB", (side, side), (255, 0, 0))
        moved = np.asarray(apply("translate_x", image, 10, np.random.default_rng(0)))
        assert int((moved[0] == 128).all(axis=1).sum()) == pixels


def test_rotation_by_thirty_degrees_either_way() -> None:
    image = picture()
    turned = {apply("rotate", image, 10, np.random.default_rng(seed)).tobytes() for seed in range(8)}
    both = {image.rotate(angle, fillcolor=(128, 128, 128)).tobytes() for angle in (30, -30)}
    assert turned == both


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 3), st.floats(0, 15), st.sampled_from(["paper", "code"]), st.integers(0, 1000))
def test_size_and_mode_stay_and_the_seed_decides(n: int, m: float, operations: str, seed: int) -> None:
    augment = RandAugment(n, m, operations=operations)  # type: ignore[arg-type]
    first = augment(picture(), np.random.default_rng(seed))
    second = augment(picture(), np.random.default_rng(seed))
    assert (first.size, first.mode) == ((32, 32), "RGB")
    assert first.tobytes() == second.tobytes()


def test_no_operations_change_nothing() -> None:
    assert RandAugment(0, 9)(picture(), np.random.default_rng(0)).tobytes() == picture().tobytes()


def test_all_operations_are_drawn_equally_often() -> None:
    generator, augment = np.random.default_rng(0), RandAugment(1, 9)
    counts = np.bincount(generator.choice(len(augment.names), size=14_000), minlength=14)
    assert counts.min() > 850


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(SettingError):
        RandAugment(-1, 9)
    with pytest.raises(SettingError):
        RandAugment(1, 9, operations="other")  # type: ignore[arg-type]
