import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ontarget.data import load
from ontarget.data.generation_data import load_generation
from ontarget.errors import DataError, SettingError
from ontarget.task import Task, load_task


def frame(count: int = 60) -> pd.DataFrame:
    return pd.DataFrame(
        {"q": [f"what is {row}" for row in range(count)], "a": [f"it is {row}" for row in range(count)]}
    )


def task(data: Any, **fields: Any) -> Task:
    return Task(data=data, **{"kind": "generation", "input": "q", "target": "a", **fields})


def test_rows_are_split_once_and_for_all() -> None:
    data = load_generation(task(frame()))
    assert (len(data.train), len(data.validation), len(data.test)) == (39, 9, 12)
    rows = [int(row) for part in (data.train, data.validation, data.test) for row in part.rows]
    assert sorted(rows) == list(range(60))
    assert data.test.prompts[0] == f"what is {data.test.rows[0]}"
    assert data.test.references[0] == (f"it is {data.test.rows[0]}",)
    assert data.metric == "exact_match"
    assert load_generation(task(frame())).fingerprint == data.fingerprint
    assert load_generation(task(frame(), seed=1)).fingerprint != data.fingerprint
    assert load_generation(task(frame(), instruction="be brief")).fingerprint != data.fingerprint


def test_long_references_are_compared_by_rouge() -> None:
    table = frame()
    table["a"] = table["a"] + " and this is said at length"
    found = load_generation(task(table))
    assert found.metric == "rouge_l"
    assert any("rouge_l" in warning for warning in found.warnings)


def test_the_same_prompt_never_parts() -> None:
    table = pd.concat([frame(40)] * 3, ignore_index=True)
    table["q"] = [text.upper() if at % 2 else text for at, text in enumerate(table["q"])]
    data = load_generation(task(table))
    sets = [{text.lower() for text in part.prompts} for part in (data.train, data.validation, data.test)]
    assert not sets[0] & sets[1] and not (sets[0] | sets[1]) & sets[2]


def test_lists_of_answers_and_given_splits(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"q": f"q {at}", "a": [f"a {at}", "b"], "part": ("train", "dev", "test")[at % 3]} for at in range(30)]
    path.write_text("\n".join(map(json.dumps, rows)))
    data = load_generation(task(str(path), split="part"))
    assert data.train.references[1] == ("a 3", "b")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [10, 10, 10]


def test_two_columns_are_one_prompt() -> None:
    table = frame().assign(context=[f"seen {at}" for at in range(60)])
    data = load_generation(task(table, input=["context", "q"]))
    row = int(data.train.rows[0])
    assert data.train.prompts[0] == f"seen {row}\nwhat is {row}"


def test_leaks_between_given_splits_are_told() -> None:
    data = load_generation(task(frame(), test=frame(12)))
    assert any("12 of 12 test rows occur among" in warning for warning in data.warnings)


@pytest.mark.parametrize(
    ("change", "fields", "says"),
    [
        ({"a": [None, *["x"] * 59]}, {}, "no answer in 1 row(s): row 0"),
        ({"q": ["  ", *[f"q {at}" for at in range(59)]]}, {}, "empty prompt: row 0"),
        ({"q": [None, *[f"q {at}" for at in range(59)]]}, {}, "row 0"),
        ({"a": [{"x": 1}, *["x"] * 59]}, {}, "neither texts nor lists"),
        ({}, {"target": "answer"}, "no column 'answer'"),
        ({}, {"input": "p"}, "no column 'p'"),
        ({}, {"split": "part"}, "no column 'part'"),
        ({"q": ["same"] * 60}, {}, "0 validation rows"),
    ],
)
def test_wrong_rows_are_named(change: dict[str, Any], fields: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError) as caught:
        load_generation(task(frame().assign(**change), **fields))
    assert says in str(caught.value)


def test_settings_that_do_not_fit() -> None:
    for fields in ({"metric": "accuracy"}, {"metric": "checker"}, {"kind": "regression", "metric": "rouge_l"},
                   {"modality": "image"}, {"corrections": "x.csv"}):  # fmt: skip
        with pytest.raises(SettingError):
            load_generation(task(frame(), **fields))
    with pytest.raises(DataError, match="target"):
        load_generation(task(frame(), target=""))
    with pytest.raises(SettingError, match="generation"):
        load(task(frame()))  # commands that need labels


def test_a_task_file_keeps_its_checker(tmp_path: Path) -> None:
    (tmp_path / "check.py").write_text("def check(prompt, answer, references): return 1")
    (tmp_path / "task.toml").write_text('[task]\ndata = "rows.csv"\nchecker = "check.py"\ninput = "q"\n')
    request = load_task(tmp_path / "task.toml")
    assert request.task.generates
    assert request.task.checker == str(tmp_path / "check.py")
