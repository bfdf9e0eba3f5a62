"""Texts of files that may be larger than memory, a batch at a time.

JSON lines (also .gz, .bz2, .zst), Parquet, Arrow, CSV and TSV: one column. A .txt file: a document a line; a folder:
every such file below it, in the order of their names, and its .txt files as one document each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ontarget.errors import DataError, nearest

BATCH_BYTES = 2 << 20  # of text, about: what a worker gets at once (choice)
TABLES = (".jsonl", ".ndjson", ".parquet", ".arrow", ".feather", ".csv", ".tsv")
COMPRESSED = (".gz", ".bz2", ".zst")


@dataclass(frozen=True)
class TextBatch:
    """Some documents that follow each other. file: as given; first_row: of the first text in it, counted from 0."""

    file: str
    first_row: int
    texts: tuple[str, ...]


def text_files(source: str | Path) -> list[Path]:
    """The files that `stream_texts` reads, in order. Raises DataError: nothing there, no file of a known format."""
    path = Path(source)
    if path.is_dir():
        found = sorted(entry for entry in path.rglob("*") if entry.is_file() and _format(entry))
        if not found:
            raise DataError(f"The folder '{path}' holds no text file.", allowed=", ".join((*TABLES, ".txt")))
        return found
    if not path.is_file():
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = nearest(path.name, names) or "check the path"
        raise DataError(f"There is no file or folder '{path}'.", option="data", next_step=hint)
    if not _format(path):
        raise DataError(f"'{path}' has no suffix that names a text format.", allowed=", ".join((*TABLES, ".txt")))
    if path.stat().st_size == 0:
        raise DataError(f"'{path}' is empty (0 bytes).", next_step="check how the file was written")
    return [path]


def expected_batches(source: str | Path, *, batch_bytes: int = BATCH_BYTES) -> int:
    """About how many batches `stream_texts` will give, by the files' sizes: more where other columns take room, fewer
    where the files are compressed."""
    return sum(-(-path.stat().st_size // batch_bytes) for path in text_files(source))


def stream_texts(source: str | Path, *, column: str = "text", batch_bytes: int = BATCH_BYTES) -> Iterator[TextBatch]:
    """Batches of about ``batch_bytes`` of text; memory holds one batch, whatever the size of the files.

    The same files give the same batches. Raises DataError naming file and row (from 0): no such column, a cell that is
    no text, bytes that are no UTF-8, a line that is no JSON.
    """
    folder = Path(source).is_dir()
    for path in text_files(source):
        batch: list[str] = []
        first, size = 0, 0
        for row, text in enumerate(_texts(path, column, whole=folder)):
            if batch and size + len(text) > batch_bytes:
                yield TextBatch(str(path), first, tuple(batch))
                batch, first, size = [], row, 0
            batch.append(text)
            size += len(text)
        if batch:
            yield TextBatch(str(path), first, tuple(batch))


def _format(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    return suffix if suffix in (*TABLES, ".txt") else ""


def _texts(path: Path, column: str, *, whole: bool) -> Iterator[str]:
    kind = _format(path)
    try:
        if kind == ".txt" and whole:
            with _opened(path) as stream:
                yield _decoded(stream.read(), path, 0)
        elif kind == ".txt":
            for row, line in enumerate(_lines(path)):
                yield _decoded(line, path, row)
        elif kind in (".jsonl", ".ndjson"):
            yield from _json_texts(path, column)
        else:
            yield from _column_texts(path, kind, column)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"'{path}' cannot be read: {error}", next_step="check that the file is whole") from error


def _opened(path: Path) -> Any:
    return pa.input_stream(str(path), compression="detect", buffer_size=1 << 20)


def _lines(path: Path) -> Iterator[bytes]:
    """Lines without their end; only \\n and \\r\\n end one."""
    rest = b""
    with _opened(path) as stream:
        while block := stream.read(1 << 20):
            parts = (rest + block).split(b"\n")
            rest = parts.pop()
            for part in parts:
                yield part.removesuffix(b"\r")
    if rest:
        yield rest.removesuffix(b"\r")


def _decoded(content: bytes, path: Path, row: int) -> str:
    try:
        return content.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"'{path}': row {row} is not encoded as UTF-8 (byte 0x{content[error.start]:02x} at {error.start}).",
            allowed="UTF-8",
            next_step=f"iconv -f WINDOWS-1252 -t UTF-8 '{path}', if that is its encoding",
        ) from error


def _json_texts(path: Path, column: str) -> Iterator[str]:
    row = 0
    for line, content in enumerate(_lines(path), start=1):
        if not content.strip():
            continue
        try:
            record = json.loads(_decoded(content, path, row))
        except ValueError as error:
            raise DataError(
                f"'{path}': line {line} is no JSON: {error}", next_step="write one object a line"
            ) from error
        if not isinstance(record, dict) or column not in record:
            names = list(record) if isinstance(record, dict) else []
            raise DataError(
                f"'{path}': line {line} has no '{column}'. It has {', '.join(map(str, names[:20])) or 'no keys'}.",
                option="--column",
                next_step=nearest(column, names) or "name the column that holds the text",
            )
        yield _checked(record[column], path, row)
        row += 1


def _column_texts(path: Path, kind: str, column: str) -> Iterator[str]:
    row = 0
    for names, batch in _record_batches(path, kind, column):
        if column not in names:
            raise DataError(
                f"'{path}' has no column '{column}'. It has {', '.join(names[:20])}.",
                option="--column",
                next_step=nearest(column, names) or "name the column that holds the text",
            )
        for value in batch.column(batch.schema.get_field_index(column)).to_pylist():
            yield _checked(value, path, row)
            row += 1


def _record_batches(path: Path, kind: str, column: str) -> Iterator[tuple[Sequence[str], Any]]:
    """(names of all columns, record batch). Columns that are not needed are left out where the format allows."""
    if kind == ".parquet":
        from pyarrow import parquet

        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if column not in names:
            yield names, None
        for batch in file.iter_batches(batch_size=1024, columns=[column]):
            yield names, batch
    elif kind in (".arrow", ".feather"):
        with pa.memory_map(str(path)) as source:
            try:
                reader: Any = pa.ipc.open_file(source)
                batches = (reader.get_batch(at) for at in range(reader.num_record_batches))
            except pa.ArrowInvalid:
                source.seek(0)
                reader = batches = pa.ipc.open_stream(source)
            for batch in batches:
                yield reader.schema.names, batch
    else:
        from pyarrow import csv

        reader = csv.open_csv(
            _opened(path),
            read_options=csv.ReadOptions(use_threads=False, block_size=16 << 20),
            parse_options=csv.ParseOptions(delimiter="\t" if kind == ".tsv" else ",", newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                column_types={column: pa.large_string()}, strings_can_be_null=False
            ),
        )  # fmt: skip
        for batch in reader:
            yield reader.schema.names, batch


def _checked(value: Any, path: Path, row: int) -> str:
    if isinstance(value, str):
        return value
    kind = "empty" if value is None else f"a {type(value).__name__}"
    raise DataError(
        f"'{path}': the text of row {row} is {kind}.", allowed="texts", next_step="mend or leave out the row"
    )
