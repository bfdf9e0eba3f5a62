"""Pick the documents of a large pool that are most like target examples: streamed, on all cores, resumable.

Scores come from `zipfit` (exact or fast), `dsir`, or chance; this file brings them to pools that are larger than
memory. Batches are scored by worker processes (document_scores.py), and a run that was stopped goes on behind its last
batch. Memory holds a few batches, 28 bytes for each document, and the texts of the candidates for the selection.

Documents are compared with those of like length (length_guard.py), since scores favour short ones; scores that measure
nothing but length are refused. Near-duplicates of better documents are left out (choose_documents.py).
Checked in tests/select/test_select_data.py; memory and speed are measured by benchmarks/data_selection.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ontarget.data.stream_texts import BATCH_BYTES, stream_texts, text_files
from ontarget.errors import DataError, RunError, SettingError
from ontarget.plan.run_folder import to_json, write_atomic
from ontarget.select.choose_documents import choose_documents, order_documents
from ontarget.select.document_scores import score_documents, texts_at, write_parquet
from ontarget.select.length_guard import BANDS, refuse_length_scores
from ontarget.select.zipfit import AGGREGATES, compress_targets
from ontarget.values import Context

SELECTION_METHODS: tuple[str, ...] = ("zipfit", "dsir", "random", "random-by-length")
MAX_TARGETS = 200  # examples that are used at most, a seeded sample of more (the paper uses 50 to 200)


@dataclass(frozen=True)
class Selection:
    """What came of it. In ``folder``: selected.parquet (rank, file, row, score, bytes, text), scores.parquet (the
    same of every document but rank and text, in the pool's order), selection.json (this), selection.html (its picture).

    documents, empty: of the pool. chosen: how many were selected, selected_bytes: their size. exact_duplicates,
    near_duplicates: passed over for a better document. length_share: of the spread of the scores, what length alone
    explains. agreement: Spearman of fast scores with exact ones on held-out documents, None where scores are exact.
    mean, mean_selected, lowest_selected: of the scores. seconds: wall-clock, of this call.
    """

    folder: str
    method: str
    mode: str
    documents: int
    empty: int
    chosen: int
    selected_bytes: int
    exact_duplicates: int
    near_duplicates: int
    length_share: float
    agreement: float | None
    mean: float
    mean_selected: float
    lowest_selected: float
    seconds: float


def select_data(
    pool: str | Path,
    targets: Sequence[str] | str | Path,
    *,
    output: str | Path,
    count: int | None = None,
    megabytes: float | None = None,
    method: Literal["zipfit", "dsir", "random", "random-by-length"] = "zipfit",
    mode: Literal["exact", "fast"] = "exact",
    aggregate: Literal["mean", "nearest"] = "mean",
    compressor: Literal["gzip", "lz4"] = "gzip",
    level: int | None = None,
    column: str = "text",
    target_column: str | None = None,
    length_bands: int = BANDS,
    drop_near_duplicates: bool = True,
    processes: int | None = None,
    batch_bytes: int = BATCH_BYTES,
    context: Context = Context(),
) -> Selection:
    """Score every document of ``pool`` against the target examples and write the best to ``output``.

    pool: a file or folder as `stream_texts` takes. targets: texts, or such a file. One of count (documents) and
    megabytes (2**20 bytes of UTF-8) says how much to select. method: zipfit; dsir (drawn by importance weight); random;
    random-by-length, which draws evenly from the bands of length as zipfit does. mode: of zipfit; "exact" is the
    definition, "fast" estimates it and says how well. aggregate, compressor, level: see `zipfit`; the fast mode
    estimates means only. length_bands: 1 compares
    documents of all lengths. processes: all cores by default. batch_bytes: of text that a worker gets at once.
    A folder that holds the same request is continued, one that holds another is refused. Documents without text are
    never chosen.
    Raises DataError, SettingError, RunError before any work.
    """
    from ontarget.report.selection_page import write_selection_page
    from ontarget.select.selection_scorers import make_scorer

    started = time.monotonic()
    if method not in SELECTION_METHODS:
        raise SettingError(f"There is no method '{method}'.", allowed=", ".join(SELECTION_METHODS), option="--method")
    if mode not in ("exact", "fast"):
        raise SettingError(f"There is no mode '{mode}'.", allowed="exact, fast", option="--mode")
    if aggregate not in AGGREGATES:
        raise SettingError(f"There is no aggregate '{aggregate}'.", allowed=", ".join(AGGREGATES), option="--aggregate")
    if aggregate != "mean" and (method != "zipfit" or mode == "fast"):
        raise SettingError(
            f"'{aggregate}' needs the exact scores of zipfit.", option="--aggregate", next_step="use --mode exact"
        )
    if (count is None) == (megabytes is None):
        raise SettingError("Say how much to select.", allowed="one of --count and --megabytes", option="--count")
    if (count is not None and count < 1) or (megabytes is not None and megabytes <= 0):
        raise SettingError("The selection would be empty.", allowed="more than 0", option="--count, --megabytes")
    examples = _examples(targets, target_column or column, context.seed)
    compressed = compress_targets(examples, compressor=compressor, level=level) if method == "zipfit" else None
    files = text_files(pool)
    folder, workers = Path(output), processes or os.cpu_count() or 1
    mode = mode if method == "zipfit" else "exact"
    _claim(folder, {
        "pool": [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in files],
        "targets": _digest(examples), "column": column, "method": method, "mode": mode, "aggregate": aggregate,
        "compressor": compressor, "level": level, "seed": context.seed, "batch_bytes": batch_bytes,
    })  # fmt: skip
    scorer, agreement = make_scorer(
        pool, examples, compressed, method=method, mode=mode, aggregate=aggregate, column=column, processes=workers,
        folder=folder, context=context,
    )  # fmt: skip
    scores = score_documents(
        pool, scorer, folder / "parts", column=column, processes=workers, batch_bytes=batch_bytes, context=context
    )
    filled = scores.bytes > 0
    if not filled.any():
        raise DataError(f"'{pool}' holds no document with text.", next_step="check the column")
    informed = method in ("zipfit", "dsir")
    share = refuse_length_scores(scores.score[filled], scores.bytes[filled]) if informed else 0.0
    order = order_documents(scores, method=method, bands=length_bands, seed=context.seed)
    chosen = choose_documents(
        scores, order, lambda positions: texts_at(pool, positions, column=column), count=count, megabytes=megabytes,
        drop_near=drop_near_duplicates,
    )  # fmt: skip
    kept = chosen.positions
    ranks = {"rank": np.arange(1, len(kept) + 1), **scores.table(kept), "text": list(chosen.texts)}
    write_parquet(folder / "selected.parquet", pa.table(ranks))
    write_parquet(folder / "scores.parquet", pa.table(scores.table()))
    found = Selection(
        str(folder), method, mode, len(scores), int((~filled).sum()), len(kept), int(scores.bytes[kept].sum()),
        chosen.exact_duplicates, chosen.near_duplicates, share, agreement, float(scores.score[filled].mean()),
        float(scores.score[kept].mean()), float(scores.score[kept].min()), time.monotonic() - started,
    )  # fmt: skip
    write_atomic(folder / "selection.json", to_json(asdict(found)))
    places = np.cumsum(filled)[kept] - 1  # among the documents with text
    page = folder / "selection.html"
    write_selection_page(page, found, scores.score[filled], scores.bytes[filled], places, chosen.texts)
    return found


def _examples(targets: Sequence[str] | str | Path, column: str, seed: int) -> list[str]:
    if isinstance(targets, (str, Path)):
        texts = [text for batch in stream_texts(targets, column=column) for text in batch.texts]
    else:
        texts = list(targets)
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise DataError("There is no target example with text.", allowed="one or more", option="--target")
    if len(texts) > MAX_TARGETS:
        kept = np.sort(np.random.default_rng(seed).permutation(len(texts))[:MAX_TARGETS])
        texts = [texts[at] for at in kept]
    return texts


def _digest(texts: Sequence[str]) -> str:
    found = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        found.update(len(content).to_bytes(8, "little") + content)
    return found.hexdigest()


def _claim(folder: Path, request: Mapping[str, Any]) -> None:
    """Make the folder this request's, or check that it is."""
    path = folder / "request.json"
    if path.exists():
        same = json.loads(path.read_text()) == json.loads(to_json(request))
        if not same and (folder / "parts").exists():
            raise RunError(
                f"The folder {folder} holds the selection of another pool, target or method.",
                option="--output",
                next_step="choose another folder, or remove this one",
            )
        if not same:  # nothing was scored: the earlier request stopped at its first error
            write_atomic(path, to_json(request))
        return
    if folder.exists() and any(folder.iterdir()):
        raise RunError(f"The folder {folder} is not empty.", option="--output", next_step="choose another folder")
    write_atomic(path, to_json(request))
