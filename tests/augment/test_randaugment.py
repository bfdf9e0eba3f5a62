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


@pytest.mark.parametrize("name", ["color", "contrast", "brightness", "sharpness", "posterize", "solarize", "equalize"])
@pytest.mark.parametrize("magnitude", [2, 5, 9, 10])
def test_operations_equal_torchvision_s(name: str, magnitude: float) -> None:
    """Its own tensor kernels, which share no code with Pillow; they round where Pillow cuts off, by 1 at most."""
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    import torch

    image = picture(48)
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    factor = 0.1 + 0.18 * magnitude
    expected = {
        "color": lambda: functional.adjust_saturation(pixels, factor),
        "contrast": lambda: functional.adjust_contrast(pixels, factor),
        "brightness": lambda: functional.adjust_brightness(pixels, factor),
        "sharpness": lambda: functional.adjust_sharpness(pixels, factor),
        "posterize": lambda: functional.posterize(pixels, max(1, int(0.4 * magnitude))),
        "solarize": lambda: functional.solarize(pixels, int(25.6 * magnitude)) if magnitude < 10 else pixels,
        "equalize": lambda: functional.equalize(pixels),
    }[name]()
    found = np.asarray(apply(name, image, magnitude, np.random.default_rng(0))).astype(int)
    difference = np.abs(found - expected.permute(1, 2, 0).numpy().astype(int))
    inner = difference[1:-1, 1:-1] if name == "sharpness" else difference
    assert inner.max() <= (2 if name in ("color", "contrast", "sharpness") else 1)


@pytest.mark.parametrize("axis", [0, 1])
def test_shear_moves_each_line_in_proportion(axis: int) -> None:
    """At M=10 the level is 0.3: line y shows column x + 0.3 (y + 1/2), to either side by chance; 128 comes in."""
    image = picture(20)
    pixels = np.asarray(image) if axis == 0 else np.asarray(image).transpose(1, 0, 2)
    seen = set()
    for seed in range(8):
        sheared = np.asarray(apply("shear_x" if axis == 0 else "shear_y", image, 10, np.random.default_rng(seed)))
        sheared = sheared if axis == 0 else sheared.transpose(1, 0, 2)
        for sign in (1, -1):
            expected = np.full_like(pixels, 128)
            for y in range(20):
                for x in range(20):
                    column = int(np.floor(x + 0.5 + sign * 0.3 * (y + 0.5)))
                    if 0 <= column < 20:
                        expected[y, x] = pixels[y, column]
            if (sheared == expected).all(axis=2).mean() > 0.98:  # ties of rounding aside
                seen.add(sign)
    assert seen == {1, -1}


def test_cutout_by_hand() -> None:
    """At M=10 a square of 2 * 40 of 224 pixels' width, cut by the border; grey 128."""
    image = Image.new("RGB", (224, 224), (255, 0, 0))
    areas = []
    for seed in range(30):
        cut = np.asarray(apply("cutout", image, 10, np.random.default_rng(seed)))
        grey = (cut == 128).all(axis=2)
        rows, columns = np.flatnonzero(grey.any(axis=1)), np.flatnonzero(grey.any(axis=0))
        assert grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        areas.append(int(grey.sum()))
    assert max(areas) == 80 * 80
    assert min(areas) < 80 * 80


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
