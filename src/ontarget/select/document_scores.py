"""Score the documents of a pool batch by batch, in worker processes, each batch's scores kept as a Parquet part.

A part is whole or not there, and the same files give the same batches: what was stopped goes on behind its parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from ontarget.data.stream_texts import BATCH_BYTES, TextBatch, expected_batches, stream_texts
from ontarget.plan.run_folder import write_atomic
from ontarget.values import Array, Context

Scorer = Callable[[Sequence[str]], Array]
Result = TypeVar("Result")


@dataclass(frozen=True)
class DocumentScores:
    """All documents of a pool in its order: 28 bytes each, whatever their length.

    score: (N,) float32. bytes: (N,) int32 of UTF-8, 0 for white space only. digest: (N,) uint64, equal for texts that
    differ in case and white space alone. row: (N,) int64 in its file. file: (N,) int32 number in ``files``.
    """

    score: Array
    bytes: Array
    digest: Array
    row: Array
    file: Array
    files: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.score)

    def table(self, positions: Array | None = None) -> dict[str, Any]:
        """Columns file, row, score, bytes of the documents at ``positions``, all by default."""
        at = np.arange(len(self)) if positions is None else positions
        return {
            "file": pa.DictionaryArray.from_arrays(pa.array(self.file[at]), pa.array(self.files)),
            "row": self.row[at],
            "score": self.score[at],
            "bytes": self.bytes[at],
        }


def score_documents(
    pool: str | Path,
    scorer: Scorer,
    parts: Path,
    *,
    column: str,
    processes: int,
    batch_bytes: int = BATCH_BYTES,
    context: Context = Context(),
) -> DocumentScores:
    """Score what has no part yet in the folder ``parts``, and read everything back.

    scorer: maps texts to (n,) scores; it is pickled to the workers. processes: 1 works in this process.
    """
    done = {int(path.stem) for path in parts.glob("[0-9]*.parquet")}
    finished, expected = len(done), expected_batches(pool, batch_bytes=batch_bytes)
    scored = map_batches(pool, scorer, column=column, processes=processes, batch_bytes=batch_bytes, skip=done)
    for number, batch, scores in scored:
        write_parquet(parts / f"{number:08d}.parquet", _part(batch, scores))
        finished += 1
        if context.progress:
            context.progress(finished, max(expected, finished), "scoring documents, batch by batch")
    return read_scores(parts)


def map_batches(
    pool: str | Path,
    function: Callable[[Sequence[str]], Result],
    *,
    column: str,
    processes: int,
    batch_bytes: int = BATCH_BYTES,
    skip: Collection[int] = (),
) -> Iterator[tuple[int, TextBatch, Result]]:
    """(number of the batch, batch, function(its texts)) for every batch of the pool, as they are finished.

    function: module-level or a picklable value. At most two batches a worker are in memory.
    """
    batches = enumerate(stream_texts(pool, column=column, batch_bytes=batch_bytes))
    left = (entry for entry in batches if entry[0] not in skip)
    if processes == 1:
        for number, batch in left:
            yield number, batch, function(batch.texts)
        return
    import multiprocessing

    with ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=_keep, initargs=(function,)
    ) as executor:
        running: dict[Future[Any], tuple[int, TextBatch]] = {}
        exhausted = False
        while running or not exhausted:
            while not exhausted and len(running) < 2 * processes:
                entry = next(left, None)
                if entry is None:
                    exhausted = True
                else:
                    running[executor.submit(_apply, entry[1].texts)] = entry
            for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                number, batch = running.pop(future)
                yield number, batch, future.result()


def read_scores(parts: Path) -> DocumentScores:
    """All parts of the folder, in the order of the pool."""
    columns: dict[str, list[Array]] = {name: [] for name in ("score", "bytes", "digest", "row", "file")}
    numbers: dict[str, int] = {}
    for path in sorted(parts.glob("[0-9]*.parquet")):
        table = parquet.read_table(path)
        for name in ("score", "bytes", "digest", "row"):
            columns[name].append(table[name].to_numpy())
        number = numbers.setdefault(table.schema.metadata[b"file"].decode(), len(numbers))
        columns["file"].append(np.full(table.num_rows, number, dtype=np.int32))
    joined = {name: np.concatenate(found) if found else np.zeros(0) for name, found in columns.items()}
    return DocumentScores(**joined, files=tuple(numbers))


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write a table whole or not at all."""
    stream = pa.BufferOutputStream()
    parquet.write_table(table, stream)
    write_atomic(path, stream.getvalue().to_pybytes())


def texts_at(pool: str | Path, positions: Array, *, column: str) -> dict[int, str]:
    """The texts at these positions of the pool, in one more pass over it."""
    wanted = np.sort(positions)
    found: dict[int, str] = {}
    start = at = 0
    for batch in stream_texts(pool, column=column):
        end = start + len(batch.texts)
        while at < len(wanted) and wanted[at] < end:
            found[int(wanted[at])] = batch.texts[int(wanted[at]) - start]
            at += 1
        if at == len(wanted):
            break
        start = end
    return found


def _part(batch: TextBatch, scores: Array) -> pa.Table:
    contents = [text.encode("utf-8", "surrogatepass") for text in batch.texts]
    words = [content.lower().split() for content in contents]
    sizes = [len(content) if found else 0 for content, found in zip(contents, words, strict=True)]
    digests = [int.from_bytes(hashlib.blake2b(b" ".join(found), digest_size=8).digest(), "little") for found in words]
    table = pa.table({
        "row": np.arange(batch.first_row, batch.first_row + len(contents), dtype=np.int64),
        "score": np.asarray(scores, dtype=np.float32),
        "bytes": np.array(sizes, dtype=np.int32),
        "digest": np.array(digests, dtype=np.uint64),
    })  # fmt: skip
    return table.replace_schema_metadata({"file": batch.file})


_kept: list[Callable[[Sequence[str]], Any]] = []  # of a worker process


def _keep(function: Callable[[Sequence[str]], Any]) -> None:
    _kept[:] = [function]


def _apply(texts: Sequence[str]) -> Any:
    return _kept[0](texts)
