"""Corrected labels come back into the data, and lists that do not fit it are refused with their lines."""

import pandas as pd
import pytest

from ontarget.data import load
from ontarget.data.corrections import with_corrections
from ontarget.errors import DataError
from ontarget.task import Task, load_task, write_toml

FRAME = pd.DataFrame({"text": [f"text {row}" for row in range(40)], "label": ["a", "b"] * 20})


def listing(path, rows, columns=("row", "label", "corrected")):
    pd.DataFrame(rows, columns=list(columns)).to_csv(path, index=False)
    return path


def test_labels_are_replaced(tmp_path):
    path = listing(tmp_path / "list.csv", [[0, "a", "b"], [3, "b", ""], [5, "b", " b "]])
    found, changed = with_corrections(FRAME, "label", path)
    assert changed == 1
    assert found["label"].tolist() == ["b", "b", *FRAME["label"][2:]]
    assert FRAME["label"][0] == "a"


def test_numbers_stay_numbers(tmp_path):
    frame = pd.DataFrame({"x": range(4), "y": [1.5, 2.5, 3.5, 4.5]})
    found, _ = with_corrections(frame, "y", listing(tmp_path / "list.csv", [[1, "2.5", "9"]]))
    assert found["y"].tolist() == [1.5, 9.0, 3.5, 4.5]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[99, "a", "b"]], "'99' is no row of the data .0 to 39"),
        ([["x", "a", "b"]], "'x' is no row"),
        ([[1, "a", "b"]], "row 1 is 'b' in the data, not 'a'"),
        ([[0, "a", "b"], [0, "a", "c"]], "row 0 is corrected twice"),
    ],
)
def test_lists_that_do_not_fit(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        with_corrections(FRAME, "label", listing(tmp_path / "list.csv", rows))


def test_missing_file_and_columns(tmp_path):
    with pytest.raises(DataError, match="no file"):
        with_corrections(FRAME, "label", tmp_path / "none.csv")
    with pytest.raises(DataError, match="no column 'corrected'"):
        with_corrections(FRAME, "label", listing(tmp_path / "list.csv", [[0, "a"]], columns=("row", "label")))


def test_in_a_task(tmp_path):
    FRAME.to_csv(tmp_path / "data.csv", index=False)
    listing(tmp_path / "list.csv", [[row, "a", "b"] for row in range(0, 8, 2)])
    plain = load(Task(data=str(tmp_path / "data.csv"), input="text", target="label"))
    request = load_task(
        str(tmp_path / "data.csv"),
        {"input": "text", "target": "label", "corrections": tmp_path / "list.csv"},
    )
    write_toml(request, tmp_path / "task.toml")
    found = load(load_task(tmp_path / "task.toml").task)
    assert found.fingerprint != plain.fingerprint
    assert any("4 label(s) were corrected" in text for text in found.warnings)
    assert sum((part.targets == 1).sum() for part in (found.train, found.test)) == 24
