"""What is done to the training images of an epoch, from one word: "none", "flip", "randaugment-2-9+crop+flip".

Parts are joined by "+". RandAugment comes first, then the crop, then the flip, as in section 4 of arXiv 1909.13719.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ontarget.augment.randaugment import RandAugment
from ontarget.errors import SettingError

Augmentation = Callable[[Image.Image, np.random.Generator], Image.Image]
CROP_BORDER = 8  # the image is mirrored outwards by 1/8 of its side before the crop, as 4 of 32 pixels (choice)


def image_augmentation(name: str) -> Augmentation | None:
    """(image, generator) -> image of the same size and mode; None for "none". Raises SettingError for other words."""
    if name == "none":
        return None
    steps: list[tuple[int, Augmentation]] = []
    for part in name.split("+"):
        scheme, *numbers = part.split("-")
        if part == "flip":
            steps.append((2, flip))
        elif part == "crop":
            steps.append((1, crop))
        elif scheme == "randaugment" and len(numbers) == 2 and all(_is_number(number) for number in numbers):
            steps.append((0, RandAugment(int(numbers[0]), float(numbers[1]))))
        else:
            allowed = "none, or flip, crop and randaugment-N-M joined by +"
            raise SettingError(f"augment is '{name}'.", allowed=allowed, option="augment")
    steps.sort(key=lambda step: step[0])

    def augment(image: Image.Image, generator: np.random.Generator) -> Image.Image:
        mode = image.mode
        for _, step in steps:
            image = step(image, generator)
        return image if image.mode == mode else image.convert(mode)

    return augment


def flip(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Left and right exchanged for every second image."""
    return ImageOps.mirror(image) if generator.random() < 0.5 else image


def crop(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """The image moved by up to 1/8 of its sides; what comes in is its mirror image."""
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    border = ((height // CROP_BORDER,) * 2, (width // CROP_BORDER,) * 2, (0, 0))[: pixels.ndim]
    top, left = (int(generator.integers(0, 2 * side + 1)) for side, _ in border[:2])
    return Image.fromarray(np.pad(pixels, border, mode="reflect")[top : top + height, left : left + width])


def _is_number(text: Any) -> bool:
    return str(text).replace(".", "", 1).isdigit()
