"""Texts of large files, batch by batch: every format, errors that name file and row, bounded batches."""

import gzip
import json

import pandas as pd
import pytest

from ontarget.data.stream_texts import stream_texts, text_files
from ontarget.errors import DataError

TEXTS = ["first", "second, with a comma", "third\nwith a line break", "", "fünf"]


def read(source, **options):
    return [text for batch in stream_texts(source, **options) for text in batch.texts]


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet", "arrow", "csv", "tsv"])
def test_formats(tmp_path, suffix):
    path, frame = tmp_path / f"pool.{suffix}", pd.DataFrame({"id": range(5), "text": TEXTS})
    if suffix.startswith("jsonl"):
        lines = "\n".join(json.dumps(row) for row in frame.to_dict("records")).encode()
        path.write_bytes(gzip.compress(lines) if suffix.endswith("gz") else lines)
    elif suffix == "parquet":
        frame.to_parquet(path)
    elif suffix == "arrow":
        frame.to_feather(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    assert read(path) == TEXTS


def test_text_files(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\n\nfour")
    assert read(tmp_path / "a.txt") == ["one", "two", "", "four"]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt").write_text("a document\nof two lines")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert [path.name for path in text_files(tmp_path)] == ["a.txt", "b.txt"]
    assert read(tmp_path) == ["one\r\ntwo\n\nfour", "a document\nof two lines"]


def test_batches_are_bounded_and_numbered(tmp_path):
    path = tmp_path / "pool.jsonl"
    path.write_text("\n".join(json.dumps({"text": "x" * 300}) for _ in range(50)))
    batches = list(stream_texts(path, batch_bytes=1000))
    assert [batch.first_row for batch in batches[:3]] == [0, 3, 6]
    assert sum(len(batch.texts) for batch in batches) == 50
    assert max(sum(map(len, batch.texts)) for batch in batches) <= 1000
    assert len(next(iter(stream_texts(path, batch_bytes=10))).texts) == 1  # one document is never cut


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": 3}', "row 1 is a int"),
        ("a.jsonl", b'{"text": "a"}\n{"txet": "b"}', "line 2 has no 'text'.*\n.*\n.*did you mean 'txet'"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b"', "line 2 is no JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}', "row 1 is not encoded as UTF-8 .byte 0xff"),
        ("a.csv", b"id,body\n1,x\n", "no column 'text'"),
        ("a.txt", b"fine\nna\xefve\n", "row 1 is not encoded"),
        ("a.parquet", b"not parquet", "cannot be read"),
        ("a.txt", b"", "empty"),
        ("a.exe", b"x", "no suffix"),
    ],
)
def test_errors(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"(?s){message}"):
        read(tmp_path / name)


def test_missing(tmp_path):
    (tmp_path / "pool.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"did you mean 'pool\.jsonl'"):
        read(tmp_path / "pol.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no text file"):
        read(tmp_path / "empty")
