"""Near-duplicates: the sketch estimates the Jaccard index, and what differs by a word or by compression is found."""

from __future__ import annotations

import io
import random
import time

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from ontarget.data.check import contents_of, overlap
from ontarget.data.images import look_at
from ontarget.data.near import jaccard, near_images, near_texts, sketches
from ontarget.data.problems import Rows
from ontarget.values import Examples


def texts(count: int, words: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    known = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(2000)]
    return [" ".join(rng.choices(known, k=words)) for _ in range(count)]


def changed(text: str, seed: int) -> str:
    words = text.split()
    words[random.Random(seed).randrange(len(words))] = "zzz"
    return " ".join(words)


def test_jaccard_by_hand():
    # "abcdef" has the shingles abcde, bcdef; "abcdeg" has abcde, bcdeg: one of three is shared.
    assert jaccard("abcdef", "abcdeg") == 1 / 3
    assert jaccard("abc", "abc") == 0.0
    # The same for long texts: 8 words of 100 different letters, of which one word differs.
    words = ["".join(chr(0x100 + 100 * word + at) for at in range(100)) for word in range(9)]
    long, other = " ".join(words[:8]), " ".join([*words[1:8], words[8]])
    sets = [{t.encode()[at : at + 5] for at in range(len(t.encode()) - 4)} for t in (long, other)]
    assert jaccard(long, other) == len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_sketches_estimate_the_jaccard_index():
    first = texts(400, 40, 0)
    second = [changed(changed(text, 1), 2) for text in first]
    sketch = sketches([*first, *second])
    estimated = (sketch[:400] == sketch[400:]).mean(axis=1)
    exact = np.array([jaccard(a, b) for a, b in zip(first, second, strict=True)])
    assert abs((estimated - exact).mean()) < 0.01
    assert np.sqrt(((estimated - exact) ** 2).mean()) < 0.07


def test_texts_with_one_other_word_are_found_and_nothing_else():
    first, fresh = texts(3000, 40, 0), texts(500, 40, 1)
    held = [changed(text, at) for at, text in enumerate(first[:500])] + fresh
    everything = [*first, *held, "abc", ""]
    found = near_texts(everything, sketches(everything), np.arange(3000), np.arange(3000, 4002))
    wanted = {(at, 3000 + at) for at in range(500) if jaccard(first[at], held[at]) >= 0.8}
    assert set(found) <= {(at, 3000 + at) for at in range(500)}
    assert len(wanted) > 450
    assert len(wanted - set(found)) <= 0.02 * len(wanted)


def test_sketches_do_not_depend_on_neighbours():
    many = texts(3000, 60, 0)  # more than one chunk
    np.testing.assert_array_equal(sketches(many)[::100], sketches(many[::100]))


def test_time_grows_with_the_rows_even_for_texts_of_one_template():
    def seconds(count: int) -> float:
        made = [
            f"the order number {at} was shipped from our store to your address on the agreed day" for at in range(count)
        ]
        started = time.process_time()
        near_texts(made, sketches(made), np.arange(count // 2), np.arange(count // 2, count))
        return time.process_time() - started

    seconds(100)
    assert seconds(8000) < 12 * seconds(2000) + 0.5


def images():
    photo = Image.fromarray(load_sample_images().images[0])
    return [photo.crop((at * 20, at * 5, at * 20 + 200, at * 5 + 160)) for at in range(20)]


def encoded(image, kind, **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def test_images_compressed_or_resized_again_are_found():
    originals = images()[::4]
    held = [
        encoded(originals[0], "JPEG", quality=60),
        encoded(originals[1].resize((100, 80)), "PNG"),
        encoded(originals[2].convert("L"), "PNG"),
        encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (160, 200), np.uint8)), "PNG"),
    ]
    problems: list[str] = []
    looks = look_at([*originals, *held], Rows(("x",), (9,)), problems)
    assert not problems
    assert near_images(looks, np.arange(5), np.arange(5, 9)) == [(0, 5), (1, 6), (2, 7)]


def test_different_digits_are_rarely_near():
    pixels = (load_digits().images * 15).astype(np.uint8)
    looks = look_at(list(pixels), Rows(("x",), (len(pixels),)), [])
    order = np.random.default_rng(0).permutation(len(pixels))
    assert len(near_images(looks, order[:1400], order[1400:])) <= 8


def test_overlap_of_a_source_with_the_test_split():
    test = Examples(["A film  to remember for a long, long time", "short", "new"], np.zeros(3), np.arange(3))
    source = ["x", "a film to remember for a long, long time", "SHORT", "a film to remember for a long, long tim"]
    found = overlap(source, test, modality="text")
    assert found.exact == ((1, 0), (2, 1))
    assert found.near == ()
    assert found.share == 2 / 3
    assert [at for at, _ in overlap(source[3:], test, modality="text").near] == [0]
    assert overlap([], test, modality="text").share == 0
    features = Examples(np.array([[0.0, 1], [2, 3]], np.float32), np.zeros(2), np.arange(2))
    assert overlap(np.array([[-0.0, 1]], np.float32), features, modality="features").exact == ((0, 0),)
    pictures = Examples([np.full((9, 9), 3, np.uint8)], np.zeros(1), np.arange(1))
    assert overlap([np.full((9, 9), 3, np.uint8)], pictures, modality="image").share == 1.0


def test_pairs_that_share_one_part_are_different_rows():
    premise = texts(1, 60, 3)[0]
    contents = contents_of([(premise, "it rains"), (premise, "no sun"), (premise + " zzz", "it rains")], "text")
    assert contents.near(np.array([0]), np.array([1])) == []
    assert contents.near(np.array([0]), np.array([2])) == [(0, 2)]
