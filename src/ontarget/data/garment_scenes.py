"""Garment scenes: small canvases with one to four garments, labelled for three tasks at once.

A canvas of 48 x 48 pixels shows garments of Fashion-MNIST (Xiao et al., arXiv 1708.07747) at different sizes. Its
labels: which garment is the largest one (classification), what every pixel belongs to (segmentation), and where the
garments' centres are (heat maps). Made for claims about several tasks on one set of images, such as FBNetV5's.
Checked in tests/search/test_multi_resolution.py.

All of it is chosen here: sides of 14 to 30 pixels; later garments lie on top, and hide at most a quarter of any box;
a garment that finds no place in 20 tries is left out; the largest has 10% more visible pixels than the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ontarget.errors import SettingError
from ontarget.values import Array

Split = Literal["train", "validation", "test"]
SIZE, MOST = 48, 4
SIDES = (14, 30)
HIDDEN, TRIES, MARGIN = 0.25, 20, 1.1
INK = 16  # a resized pixel brighter than this is garment; enclosed dark pixels are too
VALIDATION_ROWS = 10_000  # the last of Fashion-MNIST's training rows serve validation scenes alone


@dataclass(frozen=True)
class GarmentScenes:
    """N scenes.

    images: (N, 48, 48) uint8, black background. largest: (N,) int64, 0 to 9, the garment with most visible pixels.
    pixels: (N, 48, 48) int64, 0 background, 1 + garment elsewhere. centres: (N, 4, 2) float64, row and column of each
    garment's middle in pixels, NaN where a scene has fewer.
    """

    images: Array
    largest: Array
    pixels: Array
    centres: Array

    def __len__(self) -> int:
        return len(self.images)


def garment_scenes(
    count: int, *, split: Split = "train", seed: int = 0, garments: tuple[Array, Array] | None = None
) -> GarmentScenes:
    """``count`` scenes, the same ones for the same seed.

    split: train and validation scenes show Fashion-MNIST's training images (no image serves both), test scenes its
    test images. garments: other images (M, 28, 28) uint8 on black and labels (M,) int64, 0 to 9, to draw from instead.
    Raises SettingError: no scene, an unknown split.
    """
    if count < 1:
        raise SettingError(f"{count} scenes", allowed="1 or more", option="count")
    if split not in get_args(Split):
        raise SettingError(f"split '{split}'", allowed=", ".join(get_args(Split)), option="split")
    shown = _garments(split) if garments is None else garments
    generator = np.random.default_rng([seed, get_args(Split).index(split)])
    scenes = [_scene(*shown, generator) for _ in range(count)]
    return GarmentScenes(*(np.stack(column) for column in zip(*scenes, strict=True)))


def _garments(split: Split) -> tuple[Array, Array]:
    """Fashion-MNIST's images and labels that a split's scenes show."""
    from ontarget.data.samples import fashion_mnist

    images, labels, test_images, test_labels = fashion_mnist()
    if split == "test":
        return test_images, test_labels
    rows = slice(-VALIDATION_ROWS, None) if split == "validation" else slice(-VALIDATION_ROWS)
    return images[rows], labels[rows]


def heat_maps(centres: Array, *, size: int = SIZE, stride: int = 2, sigma: float = 1.5) -> Array:
    """(N, size // stride, size // stride) float32: a Gaussian of height 1 at each centre, the larger where two meet.

    centres: (N, K, 2) row and column in pixels, NaN for none. sigma: in cells of the map.
    Source: the targets of CenterNet (Zhou et al., arXiv 1904.07850), for all garments together (choice).
    """
    if stride < 1 or size % stride or sigma <= 0:
        raise SettingError(
            f"stride {stride}, sigma {sigma}", allowed=f"a divisor of {size}; more than 0", option="stride, sigma"
        )
    cells = (np.arange(size // stride) + 0.5) * stride
    rows, columns = (np.nan_to_num(centres[..., axis], nan=np.inf) for axis in (0, 1))
    down, across = (((cells - places[..., None]) / stride) ** 2 for places in (rows, columns))
    heat: Array = np.exp(-(down[..., :, None] + across[..., None, :]) / (2 * sigma**2)).max(axis=1)
    return heat.astype(np.float32)


def _scene(images: Array, labels: Array, generator: np.random.Generator) -> tuple[Array, Array, Array, Array]:
    """One canvas; drawn again until one garment is clearly the largest."""
    while True:
        canvas = np.zeros((SIZE, SIZE), np.uint8)
        owner = np.full((SIZE, SIZE), -1)
        boxes: list[tuple[int, int, int]] = []
        kinds: list[int] = []
        for row in generator.integers(len(images), size=generator.integers(1, MOST + 1)):
            side = int(generator.integers(SIDES[0], SIDES[1] + 1))
            place = _place(side, boxes, generator)
            if place is None:
                continue
            ink, shape = _drawn(images[row], side)
            window = (slice(place[0], place[0] + side), slice(place[1], place[1] + side))
            canvas[window][shape] = ink[shape]
            owner[window][shape] = len(boxes)
            boxes.append((*place, side))
            kinds.append(int(labels[row]))
        visible = np.bincount(owner[owner >= 0], minlength=len(boxes))
        ordered = np.sort(visible)
        if visible.min() > 0 and (len(boxes) == 1 or ordered[-1] >= MARGIN * ordered[-2]):
            break
    pixels = np.where(owner >= 0, np.array(kinds)[owner] + 1, 0)
    centres = np.full((MOST, 2), np.nan)
    centres[: len(boxes)] = [(top + side / 2, left + side / 2) for top, left, side in boxes]
    return canvas, np.array(kinds[int(visible.argmax())]), pixels.astype(np.int64), centres


def _drawn(image: Array, side: int) -> tuple[Array, Array]:
    """A garment's pixels (side, side) uint8 and which of them are garment."""
    from PIL import Image
    from scipy.ndimage import binary_fill_holes

    ink = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))
    return ink, binary_fill_holes(ink > INK)


def _place(side: int, boxes: list[tuple[int, int, int]], generator: np.random.Generator) -> tuple[int, int] | None:
    """Top and left of a box that covers at most a quarter of any other, and of which none covers more."""
    for _ in range(TRIES):
        top, left = (int(value) for value in generator.integers(0, SIZE - side + 1, 2))
        shared = [
            max(0, min(top + side, other_top + other) - max(top, other_top))
            * max(0, min(left + side, other_left + other) - max(left, other_left))
            / min(side, other) ** 2
            for other_top, other_left, other in boxes
        ]
        if max(shared, default=0.0) <= HIDDEN:
            return top, left
    return None
