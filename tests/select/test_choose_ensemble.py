"""Ensembles of sources: complementary ones gain, the gain has an interval, the command prints it."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from ontarget.cli import app
from ontarget.errors import DataError, SettingError
from ontarget.select.choose_ensemble import choose_ensemble


def pool(rows=400, seed=0):
    """Three sources that see different columns of the same rows, and one of noise."""
    random = np.random.default_rng(seed)
    targets = np.arange(rows) % 3
    means = random.normal(size=(3, 30))
    columns = random.normal(size=(rows, 30)) * 1.6 + means[targets]
    features = {f"part {at}": columns[:, 10 * at : 10 * at + 10] for at in range(3)}
    return {**features, "noise": random.normal(size=(rows, 10))}, targets


def test_complementary_sources_are_better_together():
    features, targets = pool()
    found = choose_ensemble(features, targets, outputs=3, size=3)
    assert set(found.chosen) == {"part 0", "part 1", "part 2"}
    assert found.value.value > found.best_value + 0.03
    assert found.gain.low > 0
    assert found.gain.low <= found.gain.value <= found.gain.high
    assert found.single["noise"] < 0.45
    assert found.best_value == max(found.single.values())
    assert any("W_D is 0" in note for note in found.notes)


def test_given_predictions_decide():
    features, targets = pool()
    # "part 2" says nothing of its own, so its labels mismatch and it is not chosen.
    own = {
        "part 0": targets,
        "part 1": targets,
        "part 2": np.random.default_rng(0).integers(0, 9, 400),
        "noise": targets,
    }
    found = choose_ensemble(features, targets, outputs=3, size=2, predictions=own)
    assert "part 2" not in found.chosen


def test_errors():
    features, targets = pool()
    with pytest.raises(DataError, match="4 sources"):
        choose_ensemble(features, targets, outputs=3, size=5)
    with pytest.raises(SettingError, match="size is 1"):
        choose_ensemble(features, targets, outputs=3, size=1)


def test_command(tmp_path):
    random = np.random.default_rng(0)
    words = {"a": ["red", "warm", "fire"], "b": ["blue", "cold", "ice"]}
    rows = [(" ".join([*random.choice(words[label], 2), str(row)]), label) for row, label in enumerate("ab" * 40)]
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(tmp_path / "data.csv", index=False)
    arguments = ["rank", str(tmp_path / "data.csv"), "-i", "text", "-t", "label", "-q", "--ensemble", "2",
                 "-p", "zoo:wordllama", "-p", "zoo:minilm"]  # fmt: skip
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "ensemble (OSBORN): " in shown.output
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)
    assert sorted(found["ensemble"]["chosen"]) == ["zoo:minilm", "zoo:wordllama"]
