import time
from pathlib import Path

import pytest

import ontarget
from ontarget.errors import SettingError
from ontarget.pool.source import resolve, stamp

ROWS = {"text": [f"{'good' if row % 2 else 'bad'} thing {row}" for row in range(60)], "label": ["a", "b"] * 30}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONTARGET_CACHE", str(tmp_path / "cache"))


def test_sources_are_ranked_and_a_second_time_read_back() -> None:
    pool = ["zoo:wordllama", "control:random-minilm"]
    start = time.perf_counter()
    first = ontarget.rank(ROWS, pool, input="text", target="label")
    middle = time.perf_counter()
    second = ontarget.rank(ROWS, pool, input="text", target="label")
    end = time.perf_counter()
    assert first == second
    assert {entry.source for entry in first.entries} == set(pool)
    assert first.decided_by == "parc"
    assert end - middle < middle - start


def test_other_rows_are_ranked_anew() -> None:
    first = ontarget.rank(ROWS, "zoo:wordllama", input="text", target="label")
    other = ontarget.rank({**ROWS, "label": ["a"] * 30 + ["b"] * 30}, "zoo:wordllama", input="text", target="label")
    assert first.entries[0].scores["linear_probe"].value > other.entries[0].scores["linear_probe"].value


def test_a_misspelt_source_is_an_error() -> None:
    with pytest.raises(SettingError, match="did you mean 'zoo:wordllama'"):
        ontarget.rank(ROWS, "zoo:wordlama", input="text", target="label")


def test_stamps_change_with_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    source = resolve(f"file:{tmp_path}")
    before = stamp(source)
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert stamp(source) != before
    assert stamp(resolve("hub:org/name")) is None
