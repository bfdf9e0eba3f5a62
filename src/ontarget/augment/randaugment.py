"""RandAugment: N operations drawn at random for each image, all at one magnitude M.

Cubuk, Zoph, Shlens, Le, "RandAugment: Practical automated data augmentation with a reduced search space", NeurIPS 2020,
arXiv 1909.13719. Official code: tensorflow/tpu, models/official/efficientnet/autoaugment.py.
Claim: with N and M tuned on the target itself it beats flips and crops, and the best M grows with data and model.
Left out: nothing; both the paper's and the code's list of operations are offered.
Checked: tests/augment/test_randaugment.py (level maps by hand, operations against Pillow), claims/27_randaugment.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from ontarget.errors import SettingError

FILL = (128, 128, 128)
REFERENCE_PX = 224  # the image size that the code's pixel distances were written for
PAPER = (
    "identity", "autocontrast", "equalize", "rotate", "solarize", "color", "posterize", "contrast", "brightness",
    "sharpness", "shear_x", "shear_y", "translate_x", "translate_y",
)  # fmt: skip
CODE = (
    "autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "color", "contrast", "brightness",
    "sharpness", "shear_x", "shear_y", "translate_x", "translate_y", "cutout", "solarize_add",
)  # fmt: skip
MAX_LEVEL = 10.0


def enhance_factor(magnitude: float) -> float:
    """Factor of colour, contrast, brightness and sharpness: 0.1 at 0, 1.9 at 10; neutral at 5."""
    return 0.1 + 1.8 * magnitude / MAX_LEVEL


def posterize_bits(magnitude: float) -> int:
    """Bits that posterize keeps: int(4 M / 10), so few at low M, as in the official code; at least 1, at most 8."""
    return int(np.clip(int(4 * magnitude / MAX_LEVEL), 1, 8))


def solarize_threshold(magnitude: float) -> int:
    """Pixels at or above are inverted: int(256 M / 10), so almost all at low M, as in the official code."""
    return int(min(256, int(256 * magnitude / MAX_LEVEL)))


class RandAugment:
    """image -> augmented image of the same size, RGB.

    n: operations an image, 0 or more; drawn uniformly with replacement, applied in order, always.
    m: magnitude, 0 or more; 10 is the scale's upper end and may be exceeded.
    operations: "paper" (14, with identity) or "code" (16: adds invert, cutout, solarize-add, lacks identity).
    Raises SettingError for values out of range.
    """

    def __init__(self, n: int = 2, m: float = 9, *, operations: Literal["paper", "code"] = "paper") -> None:
        if n < 0 or m < 0:
            raise SettingError(f"n is {n} and m is {m}.", allowed="0 or more", option="RandAugment")
        if operations not in ("paper", "code"):
            raise SettingError(f"operations is '{operations}'.", allowed="paper, code", option="RandAugment")
        self.n, self.m = n, m
        self.names = PAPER if operations == "paper" else CODE

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        """Augment one image with the randomness of ``generator`` alone."""
        image = image.convert("RGB")
        for name in generator.choice(len(self.names), size=self.n):
            image = apply(self.names[int(name)], image, self.m, generator)
        return image


def apply(name: str, image: Image.Image, magnitude: float, generator: np.random.Generator) -> Image.Image:
    """One operation at ``magnitude`` on an RGB image."""
    return _OPERATIONS[name](image, magnitude, generator)


def _signed(value: float, generator: np.random.Generator) -> float:
    return value if generator.random() < 0.5 else -value


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=FILL)


def _rotate(image: Image.Image, magnitude: float, generator: np.random.Generator) -> Image.Image:
    degrees = _signed(30.0 * magnitude / MAX_LEVEL, generator)
    return image.rotate(degrees, Image.Resampling.NEAREST, fillcolor=FILL)


def _shear(image: Image.Image, magnitude: float, generator: np.random.Generator, axis: int) -> Image.Image:
    level = _signed(0.3 * magnitude / MAX_LEVEL, generator)
    return _affine(image, (1, level, 0, 0, 1, 0) if axis == 0 else (1, 0, 0, level, 1, 0))


def _translate(image: Image.Image, magnitude: float, generator: np.random.Generator, axis: int) -> Image.Image:
    # 100 pixels at 10 for images of 224: the distance scales with the image.
    pixels = _signed(100.0 * magnitude / MAX_LEVEL * image.size[axis] / REFERENCE_PX, generator)
    return _affine(image, (1, 0, pixels, 0, 1, 0) if axis == 0 else (1, 0, 0, 0, 1, pixels))


def _cutout(image: Image.Image, magnitude: float, generator: np.random.Generator) -> Image.Image:
    half = int(40.0 * magnitude / MAX_LEVEL * max(image.size) / REFERENCE_PX)
    if half == 0:
        return image
    x, y = (int(generator.integers(0, side)) for side in image.size)
    image = image.copy()
    ImageDraw.Draw(image).rectangle((x - half, y - half, x + half - 1, y + half - 1), fill=FILL)
    return image


def _solarize_add(image: Image.Image, magnitude: float, generator: np.random.Generator) -> Image.Image:
    added = int(110.0 * magnitude / MAX_LEVEL)
    table = [min(255, value + added) if value < 128 else value for value in range(256)]
    return image.point(table * 3)


def _enhanced(kind: Any) -> Callable[[Image.Image, float, np.random.Generator], Image.Image]:
    def enhance(image: Image.Image, magnitude: float, generator: np.random.Generator) -> Image.Image:
        result: Image.Image = kind(image).enhance(enhance_factor(magnitude))
        return result

    return enhance


_OPERATIONS: dict[str, Callable[[Image.Image, float, np.random.Generator], Image.Image]] = {
    "identity": lambda image, m, g: image,
    "autocontrast": lambda image, m, g: ImageOps.autocontrast(image),
    "equalize": lambda image, m, g: ImageOps.equalize(image),
    "invert": lambda image, m, g: ImageOps.invert(image),
    "rotate": _rotate,
    "solarize": lambda image, m, g: ImageOps.solarize(image, solarize_threshold(m)),
    "posterize": lambda image, m, g: ImageOps.posterize(image, posterize_bits(m)),
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "shear_x": lambda image, m, g: _shear(image, m, g, 0),
    "shear_y": lambda image, m, g: _shear(image, m, g, 1),
    "translate_x": lambda image, m, g: _translate(image, m, g, 0),
    "translate_y": lambda image, m, g: _translate(image, m, g, 1),
    "cutout": _cutout,
    "solarize_add": _solarize_add,
}
