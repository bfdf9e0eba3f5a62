from pathlib import Path

import pytest

from ontarget.errors import DataError, SettingError
from ontarget.task import Limits, Task, load_task, write_toml


def test_fields_of_task_limits_and_request_are_told_apart() -> None:
    request = load_task(
        "a.csv", {"input": "text", "target": "y", "latency_ms": 5, "budget_s": 60, "pool": "zoo:minilm"}
    )
    assert request.task.input == ("text",)
    assert request.limits == Limits(latency_ms=5, budget_s=60)
    assert request.pool == ("zoo:minilm",)


def test_toml_round_trip(tmp_path: Path) -> None:
    given = load_task(tmp_path / "a.csv", {"input": ["a", "b"], "target": "y", "seed": 3, "size_mb": 20, "threads": 2})
    write_toml(given, tmp_path / "task.toml")
    assert load_task(tmp_path / "task.toml") == given


def test_paths_in_toml_are_meant_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "task.toml").write_text('[task]\ndata = "rows.csv"\ntarget = "y"\n')
    assert load_task(tmp_path / "task.toml").task.data == str(tmp_path / "rows.csv")


def test_options_override_the_file(tmp_path: Path) -> None:
    (tmp_path / "task.toml").write_text('[task]\ndata = "rows.csv"\nseed = 1\n[limits]\nbudget_s = 5\n')
    request = load_task(tmp_path / "task.toml", {"seed": 2, "budget_s": 9})
    assert (request.task.seed, request.limits.budget_s) == (2, 9)


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(SettingError) as caught:
        load_task("a.csv", {"inputt": "text", "latency_ms": -1, "batch_size": 0})
    message = str(caught.value)
    assert "3 setting(s)" in message
    assert "'inputt' (did you mean 'input'?)" in message
    assert "latency_ms" in message
    assert "batch_size" in message


@pytest.mark.parametrize(("content", "words"), [("[task", "no valid TOML"), (None, "There is no file")])
def test_unreadable_toml(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "task.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=words):
        load_task(path)


def test_task_from_python_keeps_its_data_as_it_is() -> None:
    data = (["a", "b"], [0, 1])
    assert load_task(Task(data=data, target="y"), {"seed": 4}).task.data is data
