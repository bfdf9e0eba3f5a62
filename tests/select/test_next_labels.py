"""Which label next, on a task: planted errors are listed, the list goes back into the data."""

import csv

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from ontarget.cli import app
from ontarget.data import load
from ontarget.select.next_labels import next_labels
from ontarget.task import Task


@pytest.fixture
def noisy(tmp_path):
    features, labels = load_digits(return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(labels))[:500]
    wrong = np.random.default_rng(1).permutation(500)[:60]
    given = labels[rows].copy()
    given[wrong] = (given[wrong] + 3) % 10
    frame = pd.DataFrame(features[rows], columns=[f"p{at}" for at in range(64)])
    frame["digit"] = [f"d{label}" for label in given]
    frame.to_csv(tmp_path / "digits.csv", index=False)
    return tmp_path / "digits.csv", labels[rows], wrong


def columns():
    return [f"p{at}" for at in range(64)]


def test_planted_errors_are_listed_and_can_be_corrected(noisy, tmp_path):
    path, truth, wrong = noisy
    found = next_labels(str(path), count=40, output=tmp_path / "list.csv", input=columns(), target="digit")
    rows = [entry["row"] for entry in found.recheck]
    assert len(rows) == 40
    assert np.isin(rows, wrong).mean() > 0.3  # of all rows, 0.12 are wrong
    suggested = [entry["suggested"] == f"d{truth[entry['row']]}" for entry in found.recheck]
    assert np.mean(suggested) > 0.6
    assert found.worth is not None
    assert found.worth.after[1000].value > found.worth.now.value

    with (tmp_path / "list.csv").open() as file:
        listed = list(csv.DictReader(file))
    assert {row["corrected"] for row in listed} == {""}
    for row in listed:
        row["corrected"] = f"d{truth[int(row['row'])]}"
    pd.DataFrame(listed).to_csv(tmp_path / "filled.csv", index=False)
    data = load(Task(data=str(path), input=tuple(columns()), target="digit", corrections=str(tmp_path / "filled.csv")))
    assert any("were corrected" in text for text in data.warnings)


def test_command(noisy, tmp_path):
    path, _, _ = noisy
    frame = pd.read_csv(path)
    frame[["p20", "p21", "p28", "p36", "digit"]].head(200).to_csv(tmp_path / "small.csv", index=False)
    inputs = [part for name in ("p20", "p21", "p28", "p36") for part in ("-i", name)]
    result = CliRunner().invoke(
        app, ["labels", str(tmp_path / "small.csv"), *inputs, "-t", "digit", "-q", "-o", str(tmp_path / "list.csv")]
    )
    assert result.exit_code == 0, result.output
    assert "rows to check again" in result.output
    assert (tmp_path / "list.csv").exists()
