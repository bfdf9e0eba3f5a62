from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ontarget.errors import SettingError
from ontarget.merge.tune_weights import finished_merges, tune_weights
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


def test_the_command_merges_by_a_tasks_rows(tiny_language_model: Path, tmp_path: Path) -> None:
    import json

    import torch
    from transformers import AutoModelForCausalLM
    from typer.testing import CliRunner

    from ontarget.cli import app

    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"q": f"say {at}", "a": f"{at % 7}"}) for at in range(60)))
    models = []
    for name, side in (("one", 1), ("two", -1)):  # the base lies between them, and is better than both
        model = AutoModelForCausalLM.from_pretrained(tiny_language_model)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.2 * side * torch.randn_like(parameter)
        model.save_pretrained(tmp_path / name)
        for path in tiny_language_model.glob("tokenizer*"):
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
        models.append(str(tmp_path / name))
    common = ["merge", *models, "--base", str(tiny_language_model), "--tune-on", str(rows), "-i", "q", "-t", "a", "-q"]
    made = CliRunner().invoke(
        app, [*common, "--metric", "neg_perplexity", "--trials", "5", "-o", str(tmp_path / "merged")]
    )
    assert made.exit_code == 0, made.output
    assert "the best of 5 merges" in made.output
    assert (tmp_path / "merged" / "mergekit_config.yml").exists()
    # No merge of random models answers anything: nothing is better than the best of them, and nothing is written.
    other = CliRunner().invoke(
        app, [*common, "--metric", "exact_match", "--trials", "2", "-o", str(tmp_path / "other")]
    )
    assert "Nothing is written: no merge of 2 is better" in str(other.exception)
    assert not (tmp_path / "other").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    both = CliRunner().invoke(app, [*common, "-w", "0.5", "-w", "0.5", "-o", str(tmp_path / "third")])
    assert "are not given" in str(both.exception)


@pytest.mark.parametrize("stop", [1, 3, 7])
def test_a_killed_search_goes_on_where_it_was(three: tuple[str, list[str]], tmp_path: Path, stop: int) -> None:
    base, models = three
    parents = {name: score(Path(name)) for name in models}
    whole = tune_weights(parents, base, score, tmp_path / "whole", trials=10)
    calls: list[Path] = []

    def interrupted(folder: Path) -> Array:
        if len(calls) == stop:
            raise KeyboardInterrupt
        calls.append(folder)
        return score(folder)

    with pytest.raises(KeyboardInterrupt):
        tune_weights(parents, base, interrupted, tmp_path / "work", trials=10)
    assert finished_merges(tmp_path / "work") == stop
    with open(tmp_path / "work" / "tried.jsonl", "a") as file:
        file.write('{"key": "half a li')
    again: list[Path] = []
    found = tune_weights(parents, base, lambda folder: again.append(folder) or score(folder), tmp_path / "work",
                         trials=10)  # fmt: skip
    assert len(again) == 10 - stop
    assert found.tried == whole.tried and found.plan == whole.plan
    np.testing.assert_array_equal(found.rows, whole.rows)
    np.testing.assert_allclose(score(tmp_path / "work" / "merged"), whole.rows)
    # Ended, and asked again: nothing is scored; the best is there, also where it was taken away.
    (tmp_path / "work" / "merged").rename(tmp_path / "away")
    tune_weights(parents, base, interrupted, tmp_path / "work", trials=10)
    np.testing.assert_allclose(score(tmp_path / "work" / "merged"), whole.rows)


def test_other_parents_do_not_take_what_was_scored(three: tuple[str, list[str]], tmp_path: Path) -> None:
    base, models = three
    parents = {name: score(Path(name)) for name in models}
    tune_weights(parents, base, score, tmp_path / "work", trials=4)
    calls: list[Path] = []
    other = {name: rows - 1 for name, rows in parents.items()}
    tune_weights(other, base, lambda folder: calls.append(folder) or score(folder), tmp_path / "work", trials=4)
    assert len(calls) == 4
