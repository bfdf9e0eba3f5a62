"""Reading every format, and every way in which a source can be broken."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ontarget.data import read_inputs, read_table
from ontarget.data.read import read
from ontarget.errors import DataError, MissingExtra

TEXTS = ["good, really", 'she said "no"', "two\nlines", "", "naïve café 漢字"]
LABELS = ["pos", "neg", "neg", "pos", "pos"]


def frame() -> pd.DataFrame:
    return pd.DataFrame({"text": TEXTS, "label": LABELS})


def write(path: Path, kind: str) -> Path:
    path = path / f"data.{kind}"
    if kind == "csv":
        frame().to_csv(path, index=False)
    elif kind == "csv.gz":
        path.write_bytes(gzip.compress(frame().to_csv(index=False).encode()))
    elif kind == "tsv":
        frame().to_csv(path, index=False, sep="\t")
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in frame().to_dict("records")))
    elif kind == "json":
        path.write_text(json.dumps(frame().to_dict("records")))
    elif kind == "parquet":
        frame().to_parquet(path)
    elif kind == "feather":
        frame().to_feather(path)
    elif kind == "arrow":  # the stream form, as `datasets` writes
        table = pa.Table.from_pandas(frame())
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "tsv", "jsonl", "json", "parquet", "feather", "arrow"])
def test_every_table_format_gives_the_same_cells(tmp_path, kind):
    found = read_table(write(tmp_path, kind))
    assert list(found.columns) == ["text", "label"]
    assert found["text"].tolist() == TEXTS
    assert found["label"].tolist() == LABELS


def test_sources_in_memory_give_the_same_cells():
    import datasets

    records = frame().to_dict("records")
    for source in (
        frame().set_index(pd.Index(range(7, 12))),
        frame().to_dict("list"),
        records,
        datasets.Dataset.from_list(records),
    ):
        found = read_table(source)
        assert found["text"].tolist() == TEXTS
        assert found["label"].tolist() == LABELS
        assert found.index.tolist() == list(range(5))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(*[st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"))] * 2), min_size=1)
)
def test_a_csv_cell_comes_back_as_it_was_written(tmp_path, rows):
    import csv

    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerows([("a", "b"), *rows])
    (tmp_path / "x.csv").write_text(text.getvalue(), encoding="utf-8", newline="")
    found = read_table(tmp_path / "x.csv")
    assert list(found.itertuples(index=False, name=None)) == rows


def test_csv_cells_stay_text_and_no_word_means_missing(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n007,NA\n1.50,null\n")
    assert read_table(tmp_path / "x.csv").to_dict("list") == {"a": ["007", "1.50"], "b": ["NA", "null"]}


def test_semicolons_and_a_byte_order_mark_are_understood(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbftext; label\na;1\nb;2\n")
    assert read_table(tmp_path / "x.csv").to_dict("list") == {"text": ["a", "b"], "label": ["1", "2"]}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"", ["a.csv", "empty"]),
        ("a.csv", b" \n\n", ["a.csv", "empty"]),
        ("a.csv", b"text,label\n", ["a.csv", "no rows"]),
        ("a.csv", b"text,label\na,1\nb\nc,2\nd,e,3\n", ["a.csv", "2 columns", "row 1 has 1", "row 3 has 3"]),
        ("a.csv", b'text,label\na,1\n"b,2\nc,3\n', ["a.csv", "row 1", "quote"]),
        ("a.csv", b"text,label\na,1\ncaf\xe9,1\n", ["a.csv", "line 3", "row 1", "0xe9", "UTF-8"]),
        ("a.csv", "text,label\na,1\n".encode("utf-16"), ["a.csv", "UTF-16"]),
        ("a.csv", b"text,label\na,\x001\n", ["a.csv", "NUL", "line 2"]),
        ("a.csv", b"text,text\na,1\n", ["a.csv", "text", "more than one"]),
        ("a.csv", b"text,,label,\na,1,2,3\n", ["a.csv", "without a name", "1, 3"]),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', ["a.jsonl", "line 2"]),
        ("a.jsonl", b'{"a": 1}\n[1]\n', ["a.jsonl", "line 2", "no object"]),
        ("a.json", b'[{"a": 1}, 3]', ["a.json", "row 1"]),
        ("a.parquet", b"nothing of the kind", ["a.parquet", "parquet"]),
        ("a.arrow", b"nothing of the kind", ["a.arrow", "arrow"]),
        ("a.npz", b"nothing of the kind", ["a.npz", "npz"]),
        ("a.docx", b"x", ["a.docx", ".csv"]),
    ],
)  # fmt: skip
def test_a_broken_file_is_named_with_the_place(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_table(tmp_path / name)
    for word in words:
        assert word in str(caught.value)


def test_a_misspelt_path_is_answered_with_the_nearest(tmp_path):
    write(tmp_path, "csv")
    with pytest.raises(DataError, match=r"did you mean 'data\.csv'"):
        read_table(tmp_path / "dta.csv")


def test_duplicate_columns_of_a_dataframe_are_refused():
    with pytest.raises(DataError, match="more than one column named 'a'"):
        read_table(pd.DataFrame([[1, 2]], columns=["a", "a"]))


@pytest.mark.parametrize("source", [3, None, {"a": [1], "b": [1, 2]}, {"a": 3}, (["a"], ["b", "c"]), [],
                                    np.zeros((2, 3, 4)), (["a", "b"], np.zeros((2, 2)))])  # fmt: skip
def test_what_is_no_data_is_refused(source):
    with pytest.raises(DataError):
        read(source)


# --- arrays ----------------------------------------------------------------------------------------------


def test_npz_holds_features_and_labels_without_pickles(tmp_path):
    features = np.arange(12, dtype=np.float64).reshape(4, 3)
    np.savez(tmp_path / "a.npz", X=features, y=np.array(["b", "a", "b", "a"]), part=np.arange(4))
    table = read(tmp_path / "a.npz")
    assert table.modality == "features"
    assert (table.input, table.target) == (("X",), "y")
    np.testing.assert_array_equal(np.stack(table.frame["X"].to_list()), features)
    assert table.frame["y"].tolist() == ["b", "a", "b", "a"]
    np.savez(tmp_path / "b.npz", X=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match=r"b\.npz"):
        read(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", X=features, y=np.arange(3))
    with pytest.raises(DataError, match="'y'"):
        read(tmp_path / "c.npz")
    np.savez(tmp_path / "d.npz", data=features)
    with pytest.raises(DataError, match="no array X"):
        read(tmp_path / "d.npz")


@pytest.mark.parametrize(
    ("inputs", "modality", "columns"),
    [
        (["a", "b"], "text", ("text",)),
        (np.array(["a", "b"]), "text", ("text",)),
        (pd.Series(["a", "b"], index=[5, 6]), "text", ("text",)),
        ([("a", "b"), ["c", "d"]], "text", ("first", "second")),
        (["x/1.png", "x/2.JPG"], "image", ("image",)),
        (["x/1.png", "no image"], "text", ("text",)),
        ([Path("x/1.png")], "image", ("image",)),
        ([Image.new("L", (3, 3))], "image", ("image",)),
        (np.zeros((2, 5, 4), np.uint8), "image", ("image",)),
        (np.zeros((2, 5, 4, 3), np.uint8), "image", ("image",)),
        (np.zeros((2, 5), np.uint8), "features", ("features",)),
        (np.zeros((2, 5)), "features", ("features",)),
        ([[1.0, 2.0], [3.0, 4.0]], "features", ("features",)),
    ],
)
def test_the_modality_of_inputs_without_names(inputs, modality, columns):
    table = read((inputs, [0] * len(inputs)))
    assert (table.modality, table.input, table.target) == (modality, columns, "target")
    assert len(table.frame) == len(inputs)


def test_torch_tensors_are_read_as_arrays():
    torch = pytest.importorskip("torch")
    table = read((torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 0])))
    assert table.modality == "features"
    assert table.frame["target"].tolist() == [0, 1, 0]


# --- folders and hub -------------------------------------------------------------------------------------


def save(path: Path, value: int = 100, size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)
    return path


def test_a_folder_of_classes(tmp_path):
    save(tmp_path / "cat" / "1.png")
    save(tmp_path / "cat" / "deep" / "2.JPG")
    save(tmp_path / "dog" / "1.png")
    save(tmp_path / "loose.png")
    (tmp_path / "dog" / "notes.txt").write_text("x")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "empty").mkdir()
    table = read(tmp_path)
    rows = {(str(path.relative_to(tmp_path)), label) for path, label in table.frame.itertuples(index=False, name=None)}
    assert rows == {("cat/1.png", "cat"), ("cat/deep/2.JPG", "cat"), ("dog/1.png", "dog"), ("loose.png", None)}
    assert (table.modality, table.input, table.target, table.split) == ("image", ("image",), "label", None)
    assert "empty" in table.warnings[0]


def test_a_folder_of_splits(tmp_path):
    for split in ("train", "val", "test"):
        for label in ("a", "b"):
            save(tmp_path / split / label / "1.png")
    table = read(tmp_path)
    assert table.split == "split"
    assert sorted(table.frame["split"].unique()) == ["test", "train", "validation"]
    assert len(table.frame) == 6


def test_a_class_may_be_called_test(tmp_path):
    for label in ("test", "other"):
        save(tmp_path / label / "1.png")
    assert sorted(read(tmp_path).frame["label"]) == ["other", "test"]


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no images"):
        read(tmp_path)


def test_hub_splits_become_a_column(tmp_path, monkeypatch):
    # `datasets` reads a local folder of that name as it reads one on the hub.
    folder = tmp_path / "org" / "name"
    folder.mkdir(parents=True)
    frame().to_csv(folder / "train.csv", index=False)
    frame()[:2].to_csv(folder / "test.csv", index=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    table = read("hub:org/name")
    assert table.split == "split"
    assert table.frame["split"].tolist() == ["train"] * 5 + ["test"] * 2
    assert len(read_table("hub:org/name:test")) == 2
    with pytest.raises(DataError, match="hub:org/name:nosuch"):
        read_table("hub:org/name:nosuch")


def test_class_labels_and_images_of_a_dataset():
    import datasets

    content = io.BytesIO()
    Image.new("L", (4, 4), 7).save(content, "PNG")
    found = datasets.Dataset.from_dict(
        {"image": [{"bytes": content.getvalue(), "path": None}] * 3, "label": [1, 0, -1]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])}),
    )
    table = read(found)
    assert table.frame["label"].tolist() == ["yes", "no", None]
    inputs, _ = read_inputs(found, input_columns=("image",), modality="image")
    assert inputs == [content.getvalue()] * 3


def test_without_datasets_the_extra_is_named():
    code = (
        "import sys; sys.modules['datasets'] = None; sys.meta_path.insert(0, type('No', (), {'find_spec': "
        "staticmethod(lambda n, p=None, t=None: None)})())\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'datasets' else find(name, *a)\n"
        "from ontarget.data import read_table\n"
        "from ontarget.errors import MissingExtra\n"
        "try: read_table('hub:a/b')\n"
        "except MissingExtra as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ontarget[hub]" in done.stdout
    assert issubclass(MissingExtra, ImportError)


# --- inputs to predict -----------------------------------------------------------------------------------


def test_inputs_of_new_rows(tmp_path):
    inputs, rows = read_inputs(write(tmp_path, "csv"), input_columns=("text",), modality="text")
    assert inputs == TEXTS
    assert rows.tolist() == [0, 1, 2, 3, 4]
    pairs, _ = read_inputs(write(tmp_path, "csv"), input_columns=("text", "label"), modality="text")
    assert pairs == list(zip(TEXTS, LABELS, strict=True))
    assert read_inputs(["a"], input_columns=("text",), modality="text")[0] == ["a"]
    (tmp_path / "one.csv").write_text("text\n12\n")
    assert read_inputs(tmp_path / "one.csv", modality="text")[0] == ["12"]
    features, _ = read_inputs(pd.DataFrame({"a": [1, 2], "b": [3, 4]}), input_columns=("b", "a"), modality="features")
    np.testing.assert_array_equal(features, np.array([[3, 1], [4, 2]], np.float32))
    assert features.dtype == np.float32
    with pytest.raises(DataError, match="did you mean 'text'"):
        read_inputs(write(tmp_path, "csv"), input_columns=("txt",), modality="text")


def test_image_paths_start_at_the_table(tmp_path):
    path = save(tmp_path / "pictures" / "1.png")
    (tmp_path / "t.csv").write_text(f"image\npictures/1.png\n{path.resolve()}\n")
    inputs, _ = read_inputs(str(tmp_path / "t.csv"))
    assert inputs == [path, path.resolve()]
    assert read_inputs(tmp_path / "pictures", modality="image")[0] == [path]
    (tmp_path / "u.csv").write_text("image\nhttps://example.org/1.png\n")
    with pytest.raises(DataError, match="URL"):
        read_inputs(tmp_path / "u.csv", modality="image")


def test_importing_the_room_is_light():
    code = "import sys, ontarget.data; print([m for m in ('pandas', 'torch', 'pyarrow', 'scipy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
