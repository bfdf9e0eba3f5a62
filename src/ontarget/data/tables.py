"""Table files as DataFrames: CSV, TSV, JSON lines, Parquet, Arrow/Feather, and .npz arrays.

Cells of CSV and TSV files stay text, exactly as written; a column is read as numbers only where it is used as
numbers. So "007" stays a class name and a text that is a number stays that text.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ontarget.data.problems import SHOWN, listed
from ontarget.errors import DataError


def read_file(path: Path) -> pd.DataFrame:
    """The table in ``path``, by its suffix. Raises DataError naming the file and, where it can be told, the row."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] in ([".gz"], [".bz2"], [".zst"]):
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    if suffix not in FORMATS:
        raise DataError(
            f"'{path}' has no suffix that names a table format.",
            allowed=", ".join(sorted(FORMATS)) + ", or a folder of images",
            next_step="rename or convert the file",
        )
    if path.stat().st_size == 0:
        raise DataError(f"'{path}' is empty (0 bytes).", next_step="check how the file was written")
    try:
        frame = FORMATS[suffix](path)
    except (OSError, ValueError, pa.ArrowException, zipfile.BadZipFile, KeyError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"'{path}' cannot be read as {suffix[1:]}: {error}", next_step="check that the file is whole"
        ) from error
    check_names(list(frame.columns), str(path))
    if len(frame) == 0:
        raise DataError(f"'{path}' has a header and no rows.", next_step="check how the file was written")
    return frame


def check_names(names: list[Any], where: str) -> None:
    """Raise DataError for column names that occur twice or are no text."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{where} has more than one column named {listed(twice)}.", next_step="rename columns")
    other = [name for name in names if not isinstance(name, str)]
    if other:
        raise DataError(f"{where} has column names that are no text: {listed(other)}.", next_step="rename columns")


def _read_bytes(path: Path) -> bytes:
    with pa.input_stream(str(path), compression="detect") as stream:
        content: bytes = stream.read()
    return content


def _read_text(path: Path) -> tuple[bytes, str]:
    """The file's bytes as UTF-8 without byte order mark, and the text of its start (up to 64 KiB)."""
    content = _read_bytes(path)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(
            f"'{path}' is encoded as UTF-16.", allowed="UTF-8", next_step=f"iconv -f UTF-16 -t UTF-8 '{path}'"
        )
    content = content.removeprefix(b"\xef\xbb\xbf")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"'{path}' is not encoded as UTF-8: line {line} (row {line - 2}, counted from 0) holds the byte"
            f" 0x{content[error.start]:02x}.",
            allowed="UTF-8",
            next_step=f"iconv -f WINDOWS-1252 -t UTF-8 '{path}', if that is its encoding",
        ) from error
    if "\x00" in text:
        line = text.count("\n", 0, text.index("\x00")) + 1
        raise DataError(f"'{path}' holds a NUL byte in line {line}: it is no text file.", next_step="check the file")
    if not text.strip():
        raise DataError(f"'{path}' is empty: it holds white space only.", next_step="check how it was written")
    return content, text


def _read_delimited(path: Path, delimiter: str) -> pd.DataFrame:
    from pyarrow import csv as arrow_csv

    content, text = _read_text(path)
    content = content.lstrip(b"\r\n")
    if delimiter == "," and "," not in (start := text.lstrip("\r\n").split("\n", 1)[0]):
        # Spreadsheets of many countries write "CSV" with semicolons (choice: only where the header has no comma).
        delimiter = next((other for other in (";", "\t") if other in start), ",")
    header = next(row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row)
    names = [name.strip() for name in header]
    del text
    unnamed = [str(at) for at, name in enumerate(names) if not name]
    # pandas writes its index as a first column without a name; that one is told apart, others are mistakes.
    if unnamed and unnamed != ["0"]:
        raise DataError(f"'{path}' has columns without a name, at {', '.join(unnamed)}.", next_step="name them")
    check_names(names, f"'{path}'")
    ragged: list[Any] = []

    def skip(row: Any) -> str:
        ragged.append(row)
        return "skip"

    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(content),
            read_options=arrow_csv.ReadOptions(
                use_threads=False, block_size=min(max(1 << 20, len(content) + 1), 2**31 - 1), column_names=names,
                skip_rows_after_names=1,
            ),
            parse_options=arrow_csv.ParseOptions(
                delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types={name: pa.large_string() for name in names}, strings_can_be_null=False
            ),
        )  # fmt: skip
    except pa.ArrowInvalid as error:
        raise DataError(f"'{path}' cannot be read as CSV: {error}", next_step="check quotes and delimiters") from error
    if ragged:
        # The reader counts the header and, like this message, no empty lines.
        shown = "; ".join(
            f"row {row.number - 2} has {row.actual_columns} ({row.text[:40]!r})" for row in ragged[:SHOWN]
        )
        more = f"; and {len(ragged) - SHOWN:,} more" if len(ragged) > SHOWN else ""
        raise DataError(
            f"'{path}' has {len(names)} columns, but {shown}{more} (rows count from 0, below the header).",
            next_step="quote cells that hold the delimiter or a line break, and close every quote",
        )
    frame: pd.DataFrame = table.to_pandas()
    return frame


def _read_csv(path: Path) -> pd.DataFrame:
    return _read_delimited(path, ",")


def _read_tsv(path: Path) -> pd.DataFrame:
    return _read_delimited(path, "\t")


def _read_json_lines(path: Path) -> pd.DataFrame:
    content, text = _read_text(path)
    del content
    records: list[dict[str, Any]] = []
    if text.lstrip().startswith("["):
        found = json.loads(text)
        for row, record in enumerate(found):
            if not isinstance(record, dict):
                raise DataError(f"'{path}': row {row} is no object.", allowed='[{"column": value, ...}, ...]')
        records = found
    else:
        # Not splitlines(): JSON strings may hold the other line separators of Unicode as they are.
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise DataError(
                    f"'{path}': line {number} is no JSON: {error}", next_step="write one object a line"
                ) from error
            if not isinstance(record, dict):
                raise DataError(f"'{path}': line {number} is no object.", allowed='{"column": value, ...}')
            records.append(record)
    return frame_of_records(records)


def frame_of_records(records: list[Any]) -> pd.DataFrame:
    """Columns are the union of the keys, in the order of their first appearance; absent cells are None."""
    names: dict[str, None] = {}
    for record in records:
        names.update(dict.fromkeys(record))
    # Object columns keep every cell as it was given: 1 stays 1 beside a None.
    return pd.DataFrame(
        {name: pd.Series([record.get(name) for record in records], dtype=object) for name in names}
    )  # fmt: skip


def _read_parquet(path: Path) -> pd.DataFrame:
    from pyarrow import parquet

    return _from_arrow(parquet.ParquetFile(path).read())


def _read_arrow(path: Path) -> pd.DataFrame:
    with pa.memory_map(str(path)) as source:
        try:
            return _from_arrow(pa.ipc.open_file(source).read_all())
        except pa.ArrowInvalid:
            source.seek(0)  # `datasets` writes the stream form
            return _from_arrow(pa.ipc.open_stream(source).read_all())


def _from_arrow(table: pa.Table) -> pd.DataFrame:
    check_names(table.column_names, "the table")
    # Whole numbers beside a null stay whole numbers: they may be class names.
    frame: pd.DataFrame = table.to_pandas(integer_object_nulls=True, ignore_metadata=True)
    return frame


def _read_npz(path: Path) -> pd.DataFrame:
    """Arrays X (N, ...) and, where there are labels, y (N,); further 1-D arrays of length N become columns."""
    with np.load(path, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    if "X" not in found:
        raise DataError(f"'{path}' has no array X.", allowed="X (N, D) and y (N,)", next_step="rename its arrays")
    rows = len(found["X"])
    wrong = [name for name, array in found.items() if array.ndim == 0 or len(array) != rows]
    wrong += [name for name, array in found.items() if name != "X" and array.ndim != 1]
    if wrong:
        raise DataError(f"'{path}': {listed(wrong)} do not have the shape ({rows},) of one value for each row of X.")
    columns: dict[str, Any] = {"X": list(found.pop("X"))}
    columns.update(found)
    return pd.DataFrame(columns)


FORMATS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".tab": _read_tsv,
    ".json": _read_json_lines,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".feather": _read_arrow,
    ".npz": _read_npz,
}
