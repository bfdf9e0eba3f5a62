from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ontarget.errors import SettingError
from ontarget.merge.tune_weights import tune_weights
from ontarget.values import Array, Context

GOAL = np.array([0.5, 0.25, 1.0, -1.0], dtype=np.float32)


def model(folder: Path, values: list[float]) -> str:
    folder.mkdir()
    save_file({"model.layers.0.weight": np.array(values, dtype=np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return str(folder)


def score(folder: Path) -> Array:
    """The nearer to the goal the better, a row for each number."""
    found = load_file(folder / "model.safetensors")["model.layers.0.weight"]
    return -np.abs(found - GOAL).astype(np.float64)


@pytest.fixture
def three(tmp_path: Path) -> tuple[str, list[str]]:
    base = model(tmp_path / "base", [0, 0, 0, 0])
    return base, [model(tmp_path / "a", [1, 0, 2, 0]), model(tmp_path / "b", [0, 1, 0, -4])]


@pytest.mark.parametrize("method", ["task_arithmetic", "breadcrumbs", "linear"])
def test_a_merge_is_taken_where_it_is_better(three: tuple[str, list[str]], tmp_path: Path, method: str) -> None:
    base, models = three
    parents = {name: score(Path(name)) for name in models}
    found = tune_weights(parents, base, score, tmp_path / "work", method=method, trials=12)
    assert found.plan is not None
    assert found.rows.mean() > max(rows.mean() for rows in parents.values())
    np.testing.assert_allclose(score(tmp_path / "work" / "merged"), found.rows)
    assert found.rows.mean() == max(one["score"] for one in found.tried)
    assert not (tmp_path / "work" / "attempt").exists()


def test_it_finds_the_weights_that_are_best(three: tuple[str, list[str]], tmp_path: Path) -> None:
    base, models = three
    found = tune_weights({name: score(Path(name)) for name in models}, base, score, tmp_path / "work", trials=40)
    assert found.plan is not None
    weights = [float(one.parameters["weight"]) for one in found.plan.models]
    np.testing.assert_allclose(weights, [0.5, 0.25], atol=0.12)  # half of a and a quarter of b is the goal


def test_the_best_parent_stays_where_no_merge_is_better(three: tuple[str, list[str]], tmp_path: Path) -> None:
    base, models = three
    parents = {models[0]: np.zeros(4), models[1]: score(Path(models[1]))}  # nothing can be above 0
    found = tune_weights(parents, base, score, tmp_path / "work", trials=6)
    assert found.plan is None and found.best_parent == models[0]
    assert found.rows.tolist() == [0, 0, 0, 0]
    assert "no merge of 6 is better" in found.says
    assert not (tmp_path / "work" / "merged").exists()


def test_the_deadline_and_wrong_settings(three: tuple[str, list[str]], tmp_path: Path) -> None:
    base, models = three
    parents = {name: score(Path(name)) for name in models}
    assert tune_weights(parents, base, score, tmp_path / "w", context=Context(deadline=0.0)).tried == ()
    with pytest.raises(SettingError, match="base"):
        tune_weights(parents, None, score, tmp_path / "w")
    with pytest.raises(SettingError, match="task_arithmetic"):
        tune_weights(parents, base, score, tmp_path / "w", method="layer_swapping")
