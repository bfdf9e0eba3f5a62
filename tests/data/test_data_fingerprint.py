"""A fingerprint changes if and only if the content does."""

from __future__ import annotations

import io

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ontarget.data.fingerprint import fingerprint, image_digest, of_image_digests

letters = st.text("ab\x00é", max_size=3)
rows = st.one_of(letters, st.tuples(letters, letters))


@given(st.lists(rows, max_size=6), st.lists(rows, max_size=6))
def test_texts_and_pairs(first, second):
    assert (fingerprint(first) == fingerprint(second)) == (first == second)


arrays = st.builds(
    lambda values, columns, dtype: np.array(values[: len(values) // columns * columns], dtype).reshape(-1, columns),
    st.lists(st.integers(-3, 3), min_size=4, max_size=8), st.integers(1, 3), st.sampled_from(["f4", "f8", "i8"]),
)  # fmt: skip


@given(arrays, arrays)
def test_arrays(first, second):
    same = first.dtype == second.dtype and first.shape == second.shape and (first == second).all()
    assert (fingerprint(first) == fingerprint(second)) == same


def test_memory_layout_does_not_count():
    array = np.arange(12.0).reshape(3, 4)
    assert fingerprint(np.asfortranarray(array)) == fingerprint(array) == fingerprint(array.astype(">f8"))
    assert fingerprint(array[::2]) == fingerprint(array[::2].copy())
    assert len(fingerprint(array)) == 64


def test_large_arrays_are_read_to_the_end():
    array = np.zeros(3_000_000)
    before = fingerprint(array)
    array[-1] = 1
    assert fingerprint(array) != before


def test_images_count_by_content_and_not_by_name(tmp_path):
    content = io.BytesIO()
    Image.new("L", (5, 5), 9).save(content, "PNG")
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(content.getvalue())
    one = fingerprint([tmp_path / "a.png"])
    assert one == fingerprint([tmp_path / "b.png"]) == fingerprint([content.getvalue()])
    assert one == fingerprint([str(tmp_path / "a.png")], modality="image")
    assert one == of_image_digests([image_digest(tmp_path / "a.png")])
    assert one != fingerprint([str(tmp_path / "a.png")])  # a text
    (tmp_path / "b.png").write_bytes(content.getvalue() + b"x")
    assert one != fingerprint([tmp_path / "b.png"])


def test_pixels_count_with_their_shape_and_mode():
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    prints = {
        fingerprint([pixels]),
        fingerprint([pixels.reshape(6, 4)]),
        fingerprint([pixels + 1]),
        fingerprint([Image.fromarray(pixels)]),
    }
    assert len(prints) == 4
    assert fingerprint([pixels]) == fingerprint([np.asfortranarray(pixels)])
