import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from ontarget.pool.cache import cached_array, key_of
from ontarget.pool.features import cached_features


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONTARGET_CACHE", str(tmp_path / "cache"))


def test_computed_once_and_memory_mapped() -> None:
    calls: list[int] = []

    def compute() -> np.ndarray:
        calls.append(1)
        return np.arange(6.0).reshape(2, 3)

    first, was_there = cached_array("ab" * 32, compute)
    second, was_there_again = cached_array("ab" * 32, compute)
    assert (calls, was_there, was_there_again) == ([1], False, True)
    assert isinstance(second, np.memmap)
    np.testing.assert_array_equal(first, second)


def test_a_damaged_file_is_computed_anew(tmp_path: Path) -> None:
    key = "cd" * 32
    cached_array(key, lambda: np.ones(1000))
    [path] = (tmp_path / "cache").rglob("*.npy")
    for content in (path.read_bytes()[:200], b"", b"no array"):
        path.write_bytes(content)
        value, was_there = cached_array(key, lambda: np.full(1000, 2.0))
        assert not was_there
        assert value[-1] == 2.0


def test_a_full_disk_costs_time_and_not_the_result(tmp_path: Path) -> None:
    """A child whose files may not grow over 4 kB writes what cannot be written."""
    code = """
import resource, signal, warnings, numpy as np
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
from ontarget.pool.cache import cached_array
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    value, there = cached_array("ef" * 32, lambda: np.ones(100_000))
print(value.sum(), there, len(caught), "cannot be written" in str(caught[0].message))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["100000.0", "False", "1", "True"]
    assert not list((tmp_path / "cache").rglob("*.npy"))
    assert not list((tmp_path / "cache").rglob(".part-*"))


def test_concurrent_processes_compute_once(tmp_path: Path) -> None:
    code = """
import os, sys, time, numpy as np
from ontarget.pool.cache import cached_array
def compute():
    open(os.path.join(sys.argv[1], f"computed-{os.getpid()}"), "w").close()
    time.sleep(0.5)
    return np.arange(1000.0)
value, _ = cached_array("12" * 32, compute)
print(value.sum())
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert {process.communicate()[0].strip() for process in processes} == {"499500.0"}
    assert len(list(tmp_path.glob("computed-*"))) == 1


def test_least_recently_used_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONTARGET_CACHE_GB", str(20_000 / 2**30))
    keys = [key_of(number) for number in range(3)]
    for age, key in enumerate(keys):
        cached_array(key, lambda: np.ones(1000))
        for path in (tmp_path / "cache").rglob(f"{key}.npy"):
            os.utime(path, (1000 + age, 1000 + age))
    kept = {path.stem for path in (tmp_path / "cache").rglob("*.npy")}
    assert kept == set(keys[1:])


def test_features_are_found_by_content_and_not_by_name() -> None:
    from ontarget.pool import load, resolve

    source = resolve("zoo:wordllama")
    loaded = load(source)
    _, seconds, there = cached_features(source, loaded, ["one text", "another"])
    assert not there
    assert seconds > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        features, seconds, there = cached_features(source, load(source), ["one text", "another"])
    assert there
    assert seconds == 0
    assert features.shape == (2, 256)
    assert not cached_features(source, loaded, ["one text", "another."])[2]
    assert not cached_features(source, load(source, max_length=4), ["one text", "another"])[2]
