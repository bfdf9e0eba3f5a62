"""Counted lengths against zlib's own, to the byte."""

import gzip
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from ontarget.select.deflate_sizes import LAZY_LEVELS, LONGEST, gzip_sizes, parsed

SOURCES = sorted(Path(zlib.__file__ if hasattr(zlib, "__file__") else random.__file__).parent.glob("*.py")) or [
    Path(random.__file__)
]


def expected(prefix, texts, level):
    return [len(gzip.compress(prefix + text, level)) for text in texts]


def chunks(size, count, seed=0):
    content = b"".join(path.read_bytes() for path in [Path(random.__file__), Path(gzip.__file__), *SOURCES[:20]])
    generator = random.Random(seed)
    starts = [generator.randrange(len(content) - size) for _ in range(count)]
    return [content[start : start + size] for start in starts]


@pytest.mark.parametrize("level", LAZY_LEVELS)
@pytest.mark.parametrize("size", [1, 30, 300, 1000, 5000])
def test_source_code(level, size):
    prefixes, texts = chunks(size, 6), [*chunks(size, 8, seed=1), b"", b"a", b"ab"]
    for prefix in prefixes:
        assert gzip_sizes(prefix, texts, level=level) == expected(prefix, texts, level)


@pytest.mark.parametrize(
    "prefix",
    [b"", b"a", b"ab", b"abc", b"a" * 300, b"ab" * 500, bytes(range(256)) * 3, b"x" * 5000 + b"abc" * 100, b"\0" * 999],
)
def test_repetitions_and_edges(prefix):
    texts = [b"", b"a", b"b" * 259, b"ab" * 400, bytes(range(256)), prefix[:300], prefix[::-1], prefix[-2:] * 200]
    assert gzip_sizes(prefix, texts) == expected(prefix, texts, 6)


def test_random_bytes_are_stored():
    generator = random.Random(0)
    prefix, texts = generator.randbytes(700), [generator.randbytes(count) for count in (0, 1, 500, 4000)]
    assert gzip_sizes(prefix, texts) == expected(prefix, texts, 6)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=600), st.lists(st.binary(max_size=600), min_size=1, max_size=4), st.sampled_from([4, 6, 9]))
def test_any_bytes(prefix, texts, level):
    assert gzip_sizes(prefix, texts, level=level) == expected(prefix, texts, level)


@settings(max_examples=300, deadline=None)
@given(
    st.text(alphabet="ab \n", max_size=900), st.lists(st.text(alphabet="ab \n", max_size=900), min_size=1, max_size=4)
)
def test_few_letters(prefix, texts):
    contents = [text.encode() for text in texts]
    assert gzip_sizes(prefix.encode(), contents) == expected(prefix.encode(), contents, 6)


def test_long_texts_and_other_levels_go_to_zlib():
    prefix, texts = chunks(9000, 1)[0], [*chunks(9000, 2, seed=2), b"short"]
    assert len(prefix) + len(texts[0]) > LONGEST
    assert gzip_sizes(prefix, texts) == expected(prefix, texts, 6)
    assert gzip_sizes(prefix, texts, level=1) == expected(prefix, texts, 1)


def test_longest_that_is_counted():
    content = chunks(LONGEST, 1)[0]
    assert gzip_sizes(content[:10000], [content[10000:]]) == expected(content[:10000], [content[10000:]], 6)
    generator = random.Random(1)  # as many symbols as bytes
    noise = bytes(generator.randrange(200) for _ in range(LONGEST))
    assert gzip_sizes(noise[:50], [noise[50:]]) == expected(noise[:50], [noise[50:]], 6)


def test_texts_parsed_alone():
    generator = np.random.default_rng(5)
    noise = [generator.integers(0, high, size, dtype=np.uint8).tobytes() for high in (2, 20, 256) for size in (9, 900)]
    texts = [*chunks(1000, 10), *chunks(17, 5), *noise, b"", b"a", b"aaa", b"a" * 600, b"abab" * 50, *chunks(9000, 2)]
    # Of match lengths, the shortest one that each symbol stands for.
    shortest = [*range(3, 11), *range(11, 19, 2), *range(19, 35, 4), *range(35, 67, 8), *range(67, 131, 16),
                *range(131, 258, 32), 258]  # fmt: skip
    for level in (4, 6, 9):
        symbols, sizes = parsed(texts, level=level)
        assert sizes.tolist() == [len(zlib.compress(text, level, 31)) for text in texts]
        covered = symbols[:, :256].sum(axis=1) + symbols[:, 257:286] @ np.array(shortest)
        assert (covered <= [len(text) for text in texts]).all()
        assert (symbols[:, 257:286].sum(axis=1) == symbols[:, 286:].sum(axis=1)).all()
