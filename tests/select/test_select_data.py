"""Selection from a pool on disk: the same scores as in memory, resumed, within bands of length, without duplicates."""

import inspect
import json
import random
import re

import numpy as np
import pandas as pd
import pytest

from ontarget.errors import DataError, RunError, SettingError
from ontarget.select.document_scores import DocumentScores
from ontarget.select.select_data import select_data
from ontarget.select.zipfit import zipfit
from ontarget.values import Context

CODE = inspect.getsource(random) + inspect.getsource(re) + inspect.getsource(inspect)
PROSE = (
    "The town lies on the river below the hill, and its market has been held on Saturdays since the old bridge was "
    "built; travellers used to rest there on their way to the coast. "
)


def texts(kind, count, seed=0):
    generator = random.Random(seed)
    source = CODE if kind == "code" else "".join(
        " ".join(generator.sample(PROSE.split(), 20)) + ". " for _ in range(4000)
    )  # fmt: skip
    starts = [generator.randrange(len(source) - 1500) for _ in range(count)]
    return [source[start : start + generator.randrange(200, 1500)] for start in starts]


@pytest.fixture
def pool(tmp_path):
    documents = [*texts("prose", 150), *texts("code", 50)]
    order = np.random.default_rng(0).permutation(200)
    documents = [documents[at] for at in order]
    (tmp_path / "pool").mkdir()
    for part in range(2):
        rows = [json.dumps({"text": text}) for text in documents[100 * part : 100 * part + 100]]
        (tmp_path / "pool" / f"{part}.jsonl").write_text("\n".join(rows))
    return tmp_path / "pool", documents, order >= 150


TARGETS = texts("code", 6, seed=9)


def test_scores_are_those_of_the_definition(pool, tmp_path):
    path, documents, is_code = pool
    found = select_data(path, TARGETS, output=tmp_path / "out", count=30, processes=1)
    scores = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    assert scores["score"].to_numpy() == pytest.approx(zipfit(documents, TARGETS), abs=1e-6)
    assert scores["bytes"].tolist() == [len(text.encode()) for text in documents]
    assert scores["row"].tolist() == [*range(100)] * 2
    selected = pd.read_parquet(tmp_path / "out" / "selected.parquet")
    positions = [100 * int(file.endswith("1.jsonl")) + row for file, row in zip(selected["file"], selected["row"])]
    assert selected["text"].tolist() == [documents[at] for at in positions]
    assert selected["rank"].tolist() == [*range(1, 31)]
    assert is_code[positions].mean() > 0.9
    assert found.chosen == 30
    assert found.documents == 200
    page = (tmp_path / "out" / "selection.html").read_text()
    assert "Data selection by zipfit" in page
    assert page.count("<li>") == 20


def test_nearest_target(pool, tmp_path):
    select_data(pool[0], TARGETS, output=tmp_path / "out", count=5, processes=1, aggregate="nearest")
    scores = pd.read_parquet(tmp_path / "out" / "scores.parquet")["score"].to_numpy()
    expected = zipfit(pool[1], TARGETS, aggregate="nearest")
    assert scores == pytest.approx(expected, rel=1e-6)


def test_workers_give_the_same(pool, tmp_path):
    for processes in (1, 2):
        select_data(pool[0], TARGETS, output=tmp_path / str(processes), count=10, processes=processes)
    first, second = ((tmp_path / name / "scores.parquet").read_bytes() for name in "12")
    assert first == second


def test_resumed_after_a_stop(pool, tmp_path):
    options = {"count": 10, "processes": 1, "batch_bytes": 20_000}

    class Stopped(Exception):
        pass

    def stop(done, total, what):
        if done == 3:
            raise Stopped

    with pytest.raises(Stopped):
        select_data(pool[0], TARGETS, output=tmp_path / "out", **options, context=Context(progress=stop))
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "parts").glob("*.parquet")}
    assert len(parts) == 3
    select_data(pool[0], TARGETS, output=tmp_path / "out", **options)
    assert all(path.stat().st_mtime_ns == time for path, time in parts.items())
    select_data(pool[0], TARGETS, output=tmp_path / "whole", **options)
    resumed, whole = (pd.read_parquet(tmp_path / name / "selected.parquet") for name in ("out", "whole"))
    assert resumed.equals(whole)


def test_another_request_is_refused(pool, tmp_path):
    select_data(pool[0], TARGETS, output=tmp_path / "out", count=10, processes=1)
    with pytest.raises(RunError, match="another pool, target or method"):
        select_data(pool[0], TARGETS[:2], output=tmp_path / "out", count=10, processes=1)
    with pytest.raises(RunError, match="not empty"):
        select_data(pool[0], TARGETS, output=pool[0], count=10, processes=1)
    more = select_data(pool[0], TARGETS, output=tmp_path / "out", count=20, processes=1)  # the scores are there
    assert more.chosen == 20


def test_duplicates_are_left_out(tmp_path):
    base = texts("code", 40)
    copies = ["  " + text for text in base[:5]] + [text + " # and so on" for text in base[5:15]]
    rows = [json.dumps({"text": text}) for text in [*base, *copies, "", "   "]]
    (tmp_path / "pool.jsonl").write_text("\n".join(rows))
    found = select_data(
        tmp_path / "pool.jsonl", TARGETS, output=tmp_path / "out", count=38, length_bands=1, processes=1
    )
    assert found.exact_duplicates == 5
    assert 5 <= found.near_duplicates <= 10
    assert found.empty == 2
    selected = pd.read_parquet(tmp_path / "out" / "selected.parquet")
    assert selected["text"].str.lower().is_unique
    kept = select_data(
        tmp_path / "pool.jsonl", TARGETS, output=tmp_path / "out", count=50, drop_near_duplicates=False, processes=1
    )
    assert kept.near_duplicates == 0
    with pytest.raises(SettingError, match="50 different ones"):
        select_data(tmp_path / "pool.jsonl", TARGETS, output=tmp_path / "out", count=51, processes=1)


def test_megabytes(pool, tmp_path):
    found = select_data(pool[0], TARGETS, output=tmp_path / "out", megabytes=0.02, processes=1)
    assert 0.9 * 0.02 * 2**20 - 1500 < found.selected_bytes <= 0.02 * 2**20


def test_bands_keep_the_pools_lengths(pool, tmp_path):
    means = {}
    for bands in (1, 8):
        select_data(pool[0], TARGETS, output=tmp_path / str(bands), count=40, length_bands=bands, processes=1)
        means[bands] = pd.read_parquet(tmp_path / str(bands) / "selected.parquet")["bytes"].mean()
    lengths = [len(text.encode()) for text in pool[1]]
    assert abs(means[8] - np.mean(lengths)) < abs(means[1] - np.mean(lengths)) + 1e-9
    assert means[8] == pytest.approx(np.mean(lengths), rel=0.2)


@pytest.mark.parametrize("method", ["dsir", "random", "random-by-length"])
def test_other_methods(pool, tmp_path, method):
    found = select_data(pool[0], TARGETS, output=tmp_path / "out", count=30, method=method, processes=1)
    assert found.chosen == 30
    if method == "dsir":
        selected = pd.read_parquet(tmp_path / "out" / "selected.parquet")
        assert selected["text"].str.contains(r"def |self|return|import|#", regex=True).mean() > 0.5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, SettingError, "how much"),
        ({"count": 3, "megabytes": 1.0}, SettingError, "how much"),
        ({"count": 0}, SettingError, "empty"),
        ({"count": 3, "method": "zip"}, SettingError, "no method"),
        ({"count": 3, "mode": "quick"}, SettingError, "no mode"),
        ({"count": 3, "aggregate": "best"}, SettingError, "no aggregate"),
        ({"count": 3, "aggregate": "nearest", "mode": "fast"}, SettingError, "exact scores"),
        ({"count": 3, "aggregate": "nearest", "method": "dsir"}, SettingError, "exact scores"),
        ({"count": 3, "level": 0}, SettingError, "stores the text"),
        ({"count": 3, "column": "body"}, DataError, "no 'body'"),
        ({"count": 300}, SettingError, "300 documents are wanted"),
    ],
)
def test_errors(pool, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        select_data(pool[0], TARGETS, output=tmp_path / "out", processes=1, **options)


def test_empty_targets(pool, tmp_path):
    with pytest.raises(DataError, match="no target example"):
        select_data(pool[0], ["", "  "], output=tmp_path / "out", count=3)
    with pytest.raises(DataError, match="no file or folder"):
        select_data(tmp_path / "nowhere", TARGETS, output=tmp_path / "out", count=3)


def test_near_duplicates_in_small_fetches(monkeypatch):
    from ontarget.data.near import JACCARD, jaccard
    from ontarget.select import choose_documents as module

    generator = random.Random(3)
    base = texts("code", 60, seed=4) + texts("prose", 20, seed=5)
    copies = [text[:-5] + "xyz" for text in base for _ in range(3)]
    pool = [*base, *copies]
    generator.shuffle(pool)
    listed = [" ".join(text.lower().split()) for text in pool]
    expected: list[int] = []
    for row, text in enumerate(listed):  # all pairs
        if all(jaccard(listed[kept], text) < JACCARD for kept in expected):
            expected.append(row)
    assert module.NearDuplicates().add(pool) == expected
    sizes = np.array([len(text.encode()) for text in pool], dtype=np.int32)
    found = DocumentScores(
        np.arange(len(pool), 0, -1).astype(np.float32), sizes, np.arange(len(pool), dtype=np.uint64),
        np.arange(len(pool)), np.zeros(len(pool), np.int32), ("pool",),
    )  # fmt: skip
    fetched = []

    def fetch(positions):
        fetched.append(sum(int(sizes[at]) for at in positions))
        return {int(at): pool[at] for at in positions}

    monkeypatch.setattr(module, "FETCH_BYTES", 9000)
    chosen = module.choose_documents(found, np.arange(len(pool)), fetch, count=len(expected) - 2)
    assert chosen.positions.tolist() == expected[:-2]
    assert list(chosen.texts) == [pool[at] for at in expected[:-2]]
    assert len(fetched) > 5
    assert max(fetched) <= 9000 + sizes.max()
    # By size: the first of these that fit.
    room = int(sizes[expected[:30]].sum())
    chosen = module.choose_documents(found, np.arange(len(pool)), fetch, megabytes=room / 2**20)
    assert chosen.positions.tolist() == expected[:30]
