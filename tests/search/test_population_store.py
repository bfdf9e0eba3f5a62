"""The population store and the folders of earlier searches: what is written is read, damage is named, none is lost."""

from __future__ import annotations

import json
import multiprocessing
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ontarget.errors import RunError, SettingError
from ontarget.search.population_store import EarlierSearch, PopulationStore, describe_space
from ontarget.search.space import Code, Slot

DEVICE = {"cpu": "a processor", "cores": 4}
SETTING = {"runtime": "onnxruntime", "threads": 1, "batch_size": 1, "precision": "float32"}


class Widths:
    """A toy of three widths; ``size`` stands for what only the configs tell, such as the images' side."""

    slots = tuple(Slot(f"width {at}", 4) for at in range(3))

    def __init__(self, size: int = 16) -> None:
        self.size = size

    def canonical(self, code: Code) -> Code:
        return tuple(code)

    def slice(self, code: Code) -> Any:
        raise NotImplementedError

    def config(self, code: Code) -> dict[str, Any]:
        return {"size": self.size, "widths": list(code)}

    def operators(self, code: Code) -> tuple[Any, ...]:
        return ()

    def example(self, batch_size: int) -> tuple[Any, ...]:
        return ()


def writer(store: PopulationStore, name: str, *, size: int = 16, task: str = "task", threads: int = 1) -> Any:
    described = describe_space(Widths(size), "widths")
    return store.writer(described, task, name, device=DEVICE, setting={**SETTING, "threads": threads})


def read(store: PopulationStore, *, size: int = 16, task: str = "task") -> Any:
    return store.read(Widths(size), describe_space(Widths(size), "widths"), task)


def test_what_is_written_is_read_by_space_and_task(tmp_path: Path) -> None:
    store = PopulationStore(tmp_path / "store")
    store.check()
    one = writer(store, "a")
    one.begin()
    one.add((0, 1, 2), [0.25, 1.5])
    one.add((3, 3, 3), [0.125, 4.0])
    two = writer(store, "b", threads=4)
    two.write([(1, 1, 1)], np.array([[0.5, 0.75]]))
    first, second = read(store)
    assert first.codes == ((0, 1, 2), (3, 3, 3)) and first.values.tolist() == [[0.25, 1.5], [0.125, 4.0]]
    assert first.device == "a processor" and first.setting == SETTING
    assert second.setting["threads"] == 4 and second.codes == ((1, 1, 1),)
    # Another side of the images or other rows: other files.
    assert read(store, size=32) == [] and read(store, task="other") == []
    assert store.others(describe_space(Widths(32), "widths"), "task") == 2
    assert store.others(describe_space(Widths(16), "widths"), "task") == 0


def test_a_stopped_search_goes_on_in_its_file(tmp_path: Path) -> None:
    store = PopulationStore(tmp_path)
    one = writer(store, "a")
    one.begin()
    one.add((0, 1, 2), [0.25, 1.5])
    with open(one.path, "ab") as file:
        file.write(b'{"code": [0, 1')  # a line that a kill cut
    with pytest.warns(UserWarning, match="line 3, was cut"):
        assert read(store)[0].codes == ((0, 1, 2),)
    again = writer(store, "a")
    again.begin()
    again.add((2, 2, 2), [0.5, 1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(store)[0].codes == ((0, 1, 2), (2, 2, 2))


def _write_many(path: str, number: int) -> None:
    one = writer(PopulationStore(path), f"search{number}", threads=number + 1)
    one.begin()
    for at in range(64):
        one.add((at // 16, at // 4 % 4, at % 4), [number + at / 100, 1.0 + at])


def test_searches_that_run_at_once_lose_nothing(tmp_path: Path) -> None:
    workers = [multiprocessing.get_context("fork").Process(target=_write_many, args=(str(tmp_path), number))
               for number in range(4)]  # fmt: skip
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a line that is being written may be cut
            assert all(len(one.codes) <= 64 for one in read(PopulationStore(tmp_path)))
    found = read(PopulationStore(tmp_path))
    assert len(found) == 4 and all(len(set(one.codes)) == 64 for one in found)
    for number, one in enumerate(found):
        assert one.setting["threads"] == number + 1
        assert np.allclose(one.values[:, 0], number + np.arange(64) / 100)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"not json", "Expecting value"),
        (b"[1, 2]", "no JSON object"),
        (b'{"code": [0, 1], "quality": 0.5, "latency_ms": 1}', "The code has 2 integers"),
        (b'{"code": [0, 1, 4], "quality": 0.5, "latency_ms": 1}', "Slot 'width 2' is 4"),
        (b'{"code": [0, 1, 2], "quality": 0.5}', "'latency_ms' is missing"),
        (b'{"code": [0, 1, 2], "quality": NaN, "latency_ms": 1}', "nan"),
        (b'{"code": "\xff"}', "utf-8"),
    ],
)
def test_a_damaged_line_is_named(line: bytes, why: str, tmp_path: Path) -> None:
    store = PopulationStore(tmp_path)
    one = writer(store, "a")
    one.begin()
    one.add((0, 1, 2), [0.25, 1.5])
    good = one.path.read_bytes()
    one.path.write_bytes(good + line + b"\n")  # the last line, but a whole one: no kill has cut it
    with pytest.raises(RunError, match=why) as raised:
        read(store)
    assert f"{one.path}, line 3," in raised.value.given and raised.value.option == "--store"


def test_files_of_another_space_and_without_a_head_are_refused(tmp_path: Path) -> None:
    store = PopulationStore(tmp_path)
    one, other = writer(store, "a"), writer(store, "b", size=32)
    one.begin()
    other.begin()
    moved = one.path.parent / "b.jsonl"
    other.path.rename(moved)
    with pytest.raises(RunError, match="is of another space or task"):
        read(store)
    moved.write_bytes(b"")
    with pytest.raises(RunError, match=r"b.jsonl, line 1, is damaged"):
        read(store)


def test_folders_that_are_no_store_are_refused(tmp_path: Path) -> None:
    (tmp_path / "search" / "stages").mkdir(parents=True)
    with pytest.raises(RunError, match="is the folder of a search"):
        PopulationStore(tmp_path / "search").check()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        PopulationStore(tmp_path / "file").check()
    with pytest.raises(RunError, match="cannot be used as a population store") as raised:
        PopulationStore(tmp_path / "file" / "below").check()
    assert raised.value.option == "--store"


def test_a_store_that_can_no_longer_be_written_does_not_end_a_search(tmp_path: Path) -> None:
    one = writer(PopulationStore(tmp_path / "store"), "a")
    one.begin()
    one.path.unlink()
    one.path.parent.rmdir()
    one.path.parent.parent.rmdir()
    (tmp_path / "store").write_text("")
    with pytest.warns(UserWarning, match="cannot be written"):
        one.add((0, 1, 2), [0.25, 1.5])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one.add((0, 1, 3), [0.25, 1.5])  # told once


def _search_folder(folder: Path, rows: list[Any], *, finished: bool, kept: Any = None, slots: Any = None) -> Path:
    (folder / "stages").mkdir(parents=True)
    stage = {"fingerprint": "task", "setting": SETTING}
    (folder / "stages" / "asked.json").write_text(json.dumps({"value": stage}))
    (folder / "stages" / "taken_over.json").write_text(json.dumps({"value": {"kept": kept}}))
    (folder / "latency_table.json").write_text(json.dumps({"device": DEVICE}))
    if finished:
        evaluated = [{"code": code, "quality": 0.5, "predicted_ms": 1.0} for code in rows]
        (folder / "search.json").write_text(json.dumps({"space": "widths", "evaluated": evaluated}))
    else:
        slots = slots or [[slot.name, slot.choices] for slot in Widths.slots]
        lines = [{"slots": slots, "objectives": 2}, *({"code": code, "values": [0.5, 1.0]} for code in rows)]
        (folder / "evaluated.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize("finished", [True, False])
def test_an_earlier_search_is_read_finished_or_running(finished: bool, tmp_path: Path) -> None:
    folder = _search_folder(tmp_path / "s", [[0, 1, 2], [3, 3, 3]], finished=finished)
    found = EarlierSearch(folder).read(Widths(), "widths", "task")
    assert found.codes == ((0, 1, 2), (3, 3, 3)) and found.values.tolist() == [[0.5, 1.0]] * 2
    assert found.device == "a processor" and found.setting == SETTING and found.note == ""
    assert EarlierSearch(folder).read(Widths(), "widths", "other rows").note == "another task"


def test_a_running_search_of_a_space_cut_down_is_read_in_the_whole_one(tmp_path: Path) -> None:
    kept, slots = [[1, 3], [0, 2], [2]], [["width 0", 2], ["width 1", 2], ["width 2", 1]]
    folder = _search_folder(tmp_path / "s", [[0, 1, 0], [1, 0, 0]], finished=False, kept=kept, slots=slots)
    assert EarlierSearch(folder).read(Widths(), "widths", "task").codes == ((1, 2, 2), (3, 0, 2))


def test_earlier_searches_of_other_spaces_are_refused(tmp_path: Path) -> None:
    other = [["width 0", 4], ["width 1", 5], ["width 2", 4]]
    cases = [
        (_search_folder(tmp_path / "a", [[0, 1, 2]], finished=False, slots=other), "widths", "'width 1', 5"),
        (_search_folder(tmp_path / "b", [[0, 1]], finished=True), "widths", "The code has 2 integers"),
        (_search_folder(tmp_path / "c", [[0, 1, 2]], finished=True), "bert", "of the space 'widths', here of 'bert'"),
        (_search_folder(tmp_path / "d", [], finished=False, slots=other[:1]), "widths", "1 slots there, 3 here"),
    ]
    for folder, name, why in cases:
        with pytest.raises(SettingError, match="is of another space") as raised:
            EarlierSearch(folder).read(Widths(), name, "task")
        assert why in raised.value.given and raised.value.option == "--warm-start"


def test_folders_without_a_search_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="There is no folder"):
        EarlierSearch(tmp_path / "nothing").check()
    with pytest.raises(RunError, match="holds no search"):
        EarlierSearch(tmp_path).check()
    (tmp_path / "begun" / "stages").mkdir(parents=True)
    (tmp_path / "begun" / "stages" / "asked.json").write_text("{}")
    with pytest.raises(RunError, match="has not evaluated any network yet"):
        EarlierSearch(tmp_path / "begun").check()
    writer(PopulationStore(tmp_path / "store"), "a").begin()
    with pytest.raises(RunError, match="if it is a population store: --store") as raised:
        EarlierSearch(tmp_path / "store").check()
    assert raised.value.option == "--warm-start"
