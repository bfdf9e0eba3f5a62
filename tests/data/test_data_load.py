"""From a task to checked, split data: every way to give splits, and every mistake that the user can make."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ontarget.data import load
from ontarget.data.snapshot import storable
from ontarget.errors import DataError, SettingError
from ontarget.task import Request, Task

# 26 x 25 different short texts with no shared shingles to speak of.
WORDS = [
    f"{a}{b}{a}{b} {b}{a}{a}{b}" for a in "abcdefghijklmnopqrstuvwxyz" for b in "abcdefghijklmnopqrstuvwxyz" if a != b
]


def table(count: int, classes: int = 2, **more) -> pd.DataFrame:
    return pd.DataFrame({"text": WORDS[:count], "label": [f"c{at % classes}" for at in range(count)], **more})


def task(data, **fields) -> Task:
    return Task(data=data, **{"input": "text", "target": "label", **fields})


def parts(data):
    validation = data.validation if not len(data.folds) else data.validation.take([])
    return {"train": data.train, "validation": validation, "test": data.test, "unlabelled": data.unlabelled}


def message(data, **fields) -> str:
    with pytest.raises(DataError) as caught:
        load(task(data, **fields))
    return str(caught.value)


# --- splits ----------------------------------------------------------------------------------------------


def test_enough_labels_are_split_in_three():
    data = load(task(table(600)))
    assert (len(data.train), len(data.validation), len(data.test)) == (390, 90, 120)
    assert (data.modality, data.kind, data.metric, data.classes) == ("text", "classification", "accuracy", ("c0", "c1"))
    assert data.folds.shape == (0,)
    assert data.warnings == ()
    assert data.train.targets.dtype == data.train.rows.dtype == np.int64
    for part in parts(data).values():
        for text, target, row in zip(part.inputs, part.targets, part.rows):
            assert (text, f"c{target}") == (WORDS[row], f"c{row % 2}")


def test_few_labels_are_cross_fitted():
    data = load(task(table(100)))
    assert (len(data.train), len(data.test)) == (80, 20)
    assert data.validation is data.train
    assert np.bincount(data.folds).tolist() == [16] * 5
    assert np.bincount(data.train.targets).tolist() == [40, 40]


def test_eight_labels_a_class_keep_rows_to_train_on():
    frame = table(4)
    frame.loc[:, "label"] = ["a", "a", "a", "b"]
    assert "'b' (row 3)" in message(frame)
    frame = table(5)
    frame.loc[:, "label"] = ["a", "a", "a", "b", "b"]
    data = load(task(frame))
    assert np.bincount(data.train.targets).tolist() == [2, 2]
    assert sorted(data.folds.tolist()) == [0, 0, 1, 1]
    assert len(data.test) == 1
    assert any("no row of 'b'" in text for text in data.warnings)


cells = st.tuples(st.integers(0, 40), st.sampled_from(["a", "b", "c", None]), st.integers(0, 12))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(cells, min_size=40, max_size=90), st.integers(0, 2), st.booleans())
def test_splits_are_a_partition_and_part_neither_groups_nor_equal_inputs(rows, seed, grouped):
    frame = pd.DataFrame(
        {
            "text": [WORDS[row[0]] for row in rows],
            "label": pd.Series([row[1] for row in rows], dtype=object),
            "group": [row[2] for row in rows],
        }
    )
    wanted = task(frame, seed=seed, group="group" if grouped else None)
    try:
        data = load(wanted)
    except DataError:  # too few rows of a class, or all of them tied together
        return
    found = parts(data)
    assert sorted(np.concatenate([part.rows for part in found.values()]).tolist()) == list(range(len(rows)))
    assert all(rows[row][1] is None for row in found["unlabelled"].rows)
    for key in (0, 2) if grouped else (0,):
        kept = [{rows[row][key] for row in found[name].rows} for name in ("train", "validation", "test")]
        assert sum(map(len, kept)) == len(set.union(*kept))
        for value in kept[0]:
            assert len({fold for fold, row in zip(data.folds, data.train.rows) if rows[row][key] == value}) <= 1
    again = load(wanted)
    assert again.fingerprint == data.fingerprint
    np.testing.assert_array_equal(again.train.rows, data.train.rows)
    np.testing.assert_array_equal(again.folds, data.folds)


def test_the_fingerprint_changes_with_texts_targets_and_splits():
    frame = table(400)
    first = load(task(frame)).fingerprint
    assert load(task(frame.copy())).fingerprint == first
    assert load(task(frame, seed=1)).fingerprint != first
    other = frame.copy()
    other.loc[7, "text"] += "x"
    assert load(task(other)).fingerprint != first
    other = frame.copy()
    other.loc[[0, 1], "label"] = ["c1", "c0"]
    assert load(task(other)).fingerprint != first


def test_a_split_column():
    frame = table(50, where=["train"] * 30 + ["Dev"] * 10 + ["test"] * 10)
    data = load(task(frame, split="where"))
    assert data.train.rows.tolist() == list(range(30))
    assert data.validation.rows.tolist() == list(range(30, 40))
    assert data.test.rows.tolist() == list(range(40, 50))
    assert not len(data.folds)
    frame["where"] = ["train"] * 40 + ["test"] * 10
    data = load(task(frame, split="where"))
    assert data.validation is data.train
    assert len(data.test) == 10
    frame["where"] = ["train"] * 40 + ["val"] * 10
    data = load(task(frame, split="where"))
    assert (len(data.train), len(data.validation), len(data.test)) == (32, 10, 8)
    frame.loc[3, "where"] = "tran"
    assert "'tran'" in message(frame, split="where")


def test_extra_files(tmp_path):
    table(400).to_csv(tmp_path / "train.csv", index=False)
    table(450)[400:].to_csv(tmp_path / "test.csv", index=False)
    data = load(task(str(tmp_path / "train.csv"), test=str(tmp_path / "test.csv")))
    assert (len(data.train), len(data.validation), len(data.test)) == (340, 60, 50)
    assert data.test.inputs == WORDS[400:450]
    assert data.test.rows.tolist() == list(range(50))
    data = load(task(table(400), validation=str(tmp_path / "test.csv")))
    assert (len(data.train), len(data.validation), len(data.test)) == (320, 50, 80)
    with pytest.raises(SettingError, match="twice"):
        load(task(str(tmp_path / "train.csv"), test=str(tmp_path / "test.csv"), split="label"))


def test_a_csv_beside_typed_targets(tmp_path):
    frame = table(40).assign(label=[0, 1] * 20)
    frame[30:].to_csv(tmp_path / "test.csv", index=False)
    data = load(task(frame[:30], test=str(tmp_path / "test.csv")))
    assert data.classes == ("0", "1")
    assert data.test.targets.tolist() == [0, 1] * 5
    frame["label"] = [False, True] * 20
    frame[30:].to_csv(tmp_path / "test.csv", index=False)
    assert load(task(frame[:30], test=str(tmp_path / "test.csv"))).classes == ("False", "True")


def test_unlabelled_rows_are_kept_apart():
    frame = table(100)
    frame.loc[60:, "label"] = None
    data = load(task(frame))
    assert data.unlabelled.rows.tolist() == list(range(60, 100))
    assert data.unlabelled.targets.shape == (0,)
    frame["where"] = ["train"] * 50 + ["test"] * 50
    data = load(task(frame, split="where"))
    assert len(data.test) == 10
    assert len(data.unlabelled) == 0
    assert any("40 test row(s) have no target" in text for text in data.warnings)


def test_a_regression():
    values = np.random.default_rng(0).normal(size=500)
    data = load(task(table(500).assign(label=values)))
    assert (data.kind, data.metric, data.classes, data.outputs) == ("regression", "r2", (), 1)
    assert (len(data.train), len(data.validation), len(data.test)) == (325, 75, 100)
    np.testing.assert_array_equal(data.test.targets, values[data.test.rows])
    assert abs(np.median(data.test.targets) - np.median(values)) < 0.2
    small = load(task(table(100).assign(label=values[:100])))
    assert np.bincount(small.folds).tolist() == [16] * 5


def test_uneven_classes_are_judged_by_macro_f1():
    frame = table(300)
    frame["label"] = ["rare" if at % 20 == 0 else "common" for at in range(300)]
    data = load(task(frame))
    assert data.metric == "macro_f1"
    assert "uneven" in data.warnings[0]
    assert load(task(frame, metric="accuracy")).metric == "accuracy"
    with pytest.raises(SettingError, match="r2"):
        load(task(frame, metric="r2"))
    with pytest.raises(SettingError, match="below 1"):
        load(task(frame, test_fraction=0.6, validation_fraction=0.5))


def test_groups_are_kept_whole_or_refused():
    frame = table(400, person=[f"p{at // 10}" for at in range(400)])
    data = load(task(frame, group="person"))
    people = [set(frame["person"][part.rows]) for part in (data.train, data.validation, data.test)]
    assert sum(map(len, people)) == len(set.union(*people)) == 40
    assert "1 group" in message(frame.assign(person="all"), group="person")
    frame["where"] = ["train", "train", "test", "test"] * 100
    warnings = load(task(frame, group="person", split="where")).warnings
    assert any("40 group(s) are in more than one" in text for text in warnings)


def test_pairs_features_and_arrays():
    frame = table(400, second=WORDS[200:600])
    data = load(task(frame, input=("text", "second")))
    assert data.test.inputs[0] == (WORDS[data.test.rows[0]], WORDS[200 + data.test.rows[0]])
    features = np.random.default_rng(0).normal(size=(400, 5))
    data = load(Task(data=(features, np.arange(400) % 3)))
    assert data.modality == "features"
    assert data.test.inputs.dtype == np.float32
    np.testing.assert_array_equal(data.test.inputs, features[data.test.rows].astype(np.float32))
    named = pd.DataFrame(features, columns=list("abcde")).assign(label=np.arange(400) % 3)
    data = load(Task(data=named, target="label", modality="features"))
    np.testing.assert_array_equal(data.test.inputs, features[data.test.rows].astype(np.float32))
    lists = pd.DataFrame({"vector": list(features), "label": np.arange(400) % 3})
    np.testing.assert_array_equal(load(Task(data=lists, target="label")).test.inputs, data.test.inputs)


def test_numbers_of_a_csv_become_features(tmp_path):
    features = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    pd.DataFrame(features, columns=["a", "b"]).assign(y=[0, 1] * 30).to_csv(tmp_path / "x.csv", index=False)
    data = load(Task(data=str(tmp_path / "x.csv"), input=("a", "b"), target="y"))
    assert data.modality == "features"
    np.testing.assert_allclose(data.train.inputs, features[data.train.rows], rtol=1e-6)


# --- images ----------------------------------------------------------------------------------------------


def pictures(folder: Path, count: int = 12) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = []
    for at in range(count):
        path = folder / ("cat" if at % 2 else "dog") / f"{at}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(path)
        paths.append(path)
    return paths


def test_an_image_folder_and_a_column_of_paths_are_the_same_data(tmp_path):
    paths = pictures(tmp_path / "p")
    data = load(Task(data=str(tmp_path / "p")))
    assert (data.modality, data.classes) == ("image", ("cat", "dog"))
    assert len(data.train) + len(data.test) == 12
    order = sorted(paths, key=lambda path: (path.parent.name, path))
    rows = [f"{path.relative_to(tmp_path)},{path.parent.name}" for path in order]
    (tmp_path / "t.csv").write_text("image,label\n" + "\n".join(rows) + "\n")
    again = load(Task(data=str(tmp_path / "t.csv"), input="image", target="label"))
    assert again.modality == "image"
    assert again.fingerprint == data.fingerprint
    (tmp_path / "p").rename(tmp_path / "q")
    assert load(Task(data=str(tmp_path / "q"))).fingerprint == data.fingerprint


def test_all_broken_images_are_named_at_once(tmp_path):
    paths = pictures(tmp_path, 40)
    paths[0].write_bytes(b"")
    paths[1].write_bytes(b"no image at all")
    paths[2].write_bytes(paths[2].read_bytes()[:300])
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (200, 200, 3), dtype=np.uint8)).save(tmp_path / "x.jpg")
    (tmp_path / "cat" / "cut.jpg").write_bytes((tmp_path / "x.jpg").read_bytes()[:5000])
    with pytest.raises(DataError) as caught:
        load(Task(data=str(tmp_path)))
    text = str(caught.value)
    assert "4 image(s) cannot be read" in text
    for name, reason in (("0.png", "0 bytes"), ("1.png", "no image"), ("2.png", "damaged"), ("cut.jpg", "damaged")):
        assert name in text
        assert reason in text
    for path in paths[3:15]:
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"and 6 more"):
        load(Task(data=str(tmp_path)))


def test_missing_images_and_bad_targets_are_told_together(tmp_path):
    (tmp_path / "t.csv").write_text("image,label\na.png,1.5\nb.png,oops\n")
    with pytest.raises(DataError) as caught:
        load(Task(data=str(tmp_path / "t.csv"), input="image", target="label", kind="regression"))
    text = str(caught.value)
    assert "2 problems" in text
    assert "t.csv" in text
    assert "a.png" in text
    assert "does not exist" in text
    assert "'oops'" in text


# --- mistakes --------------------------------------------------------------------------------------------


def test_all_misspelt_columns_are_told_at_once():
    text = message(table(20), input="txt", target="lable", group="grop", split="splt")
    for word in ("4 problems", "'txt'; did you mean 'text'?", "'lable'; did you mean 'label'?", "'grop'", "'splt'"):
        assert word in text


def test_columns_that_cannot_be_guessed_are_asked_for():
    frame = table(20, more=1)
    with pytest.raises(DataError, match=r"(?s)--target.*--input.*text, label, more"):
        load(Task(data=frame))
    assert load(Task(data=table(20), target="label")).train.inputs[0] in WORDS  # one column is left
    assert "also the target" in message(table(20), input="label")
    assert "named twice" in message(table(20), input=("text", "text"))
    assert "one or two columns" in message(table(20, b="x", c="y"), input=("text", "b", "c"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": "same"}, ["one class only", "'same'"]),
        ({"label": ["a", "b"] * 9 + ["c", "d"]}, ["'c' (row 18)", "'d' (row 19)", "merge or drop"]),
        ({"label": None}, ["every row's target"]),
        ({"text": [None, float("nan"), *WORDS[:18]]}, ["no text (null)", "row 0, 1"]),
        ({"text": ["x", 3, *WORDS[:18]]}, ["int", "row 1"]),
        ({"text": ["\ud800", *WORDS[:19]]}, ["surrogate", "row 0"]),
        ({"label": [1.5, float("inf"), *range(18)]}, ["infinite", "row 1"]),
    ],
)
def test_bad_cells_are_named(change, words):
    frame = table(20)
    for name, value in change.items():
        frame[name] = pd.Series(value if isinstance(value, list) else [value] * 20, dtype=object)
    text = message(frame)
    for word in words:
        assert word in text


def test_bad_features_are_named():
    frame = pd.DataFrame({"a": [1.0, np.nan, 2.0, 3.0], "b": ["1", "x", "2", ""], "label": ["p", "n"] * 2})
    with pytest.raises(DataError) as caught:
        load(Task(data=frame, input=("a", "b"), target="label", modality="features"))
    assert "column 'a'" in str(caught.value)
    assert "row 1, 3" in str(caught.value)
    with pytest.raises(DataError, match=r"vectors of .* numbers"):
        load(Task(data=([[1.0, 2.0], [1.0]], [0, 1])))
    with pytest.raises(DataError, match="different numbers of features"):
        load(Task(data=(np.eye(8), [0, 1] * 4), test=(np.ones((2, 3)), [0, 1])))


def test_a_class_that_is_never_trained_is_refused():
    frame = table(20, where=["train"] * 18 + ["test"] * 2)
    frame.loc[18:, "label"] = "new"
    text = message(frame, split="where")
    assert "'new'" in text
    assert "row 18, 19" in text


def test_too_few_numbers_for_a_regression():
    assert "needs 10" in message(table(6).assign(label=np.arange(6) + 0.5))
    assert "same target, 0.5" in message(table(20).assign(label=0.5))


# --- honest data -----------------------------------------------------------------------------------------


def test_leaks_of_given_splits_are_told_and_kept():
    long = " ".join(WORDS[:20])
    frame = table(30, where=["train"] * 20 + ["test"] * 10)
    frame.loc[[3, 25], "text"] = ["Some TEXT", "some  text"]
    frame.loc[[4, 26], "text"] = [long, long + " x"]
    data = load(task(frame, split="where"))
    assert len(data.test) == 10
    exact, near = (text for text in data.warnings if "test rows" in text)
    assert "1 of 10 test rows occur among the train rows too" in exact
    assert "row 25 and row 3" in exact
    assert "nearly" in near
    assert "row 26 and row 4" in near


def test_conflicting_labels_and_empty_texts_are_told():
    frame = table(30)
    frame.loc[[3, 4], "text"] = "same"
    frame.loc[[7, 9], "text"] = ["", " "]
    warnings = load(task(frame)).warnings
    assert any("row 3 is 'c1', row 4 is 'c0'" in text or "row 4 is 'c0', row 3 is 'c1'" in text for text in warnings)
    assert any("2 row(s) have an empty text: row 7, 9" in text for text in warnings)


def test_equal_images_under_two_names_are_one_unit(tmp_path):
    paths = pictures(tmp_path, 20)
    for path in paths:
        path.with_name("copy-" + path.name).write_bytes(path.read_bytes())
    data = load(Task(data=str(tmp_path)))
    assert not any("occur among" in text for text in data.warnings)
    names = [{path.name.removeprefix("copy-") for path in part.inputs} for part in (data.train, data.test)]
    assert not names[0] & names[1]


# --- a run's own copy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["text", "pair", "features", "image", "regression"])
def test_a_stored_copy_is_read_back_as_the_same_splits(tmp_path, modality):
    frame = table(90)
    frame.loc[80:, "label"] = None
    rng = np.random.default_rng(0)
    inputs = {
        "text": frame["text"].tolist(),
        "pair": [(text, text[::-1]) for text in frame["text"]],
        "features": rng.normal(size=(90, 4)).astype(np.float32),
        "image": rng.integers(0, 255, (90, 9, 9), dtype=np.uint8),
        "regression": frame["text"].tolist(),
    }[modality]
    targets = [None if value != value or value is None else value for value in frame["label"]]
    if modality == "regression":
        targets = [*rng.normal(size=80), *[None] * 10]
    request = Request(task=Task(data=(inputs, targets)))
    data = load(request.task)
    stored = storable(request, data, tmp_path / "copy")
    again = load(stored.task)
    assert (again.kind, again.classes, again.metric) == (data.kind, data.classes, data.metric)
    for name, part in parts(data).items():
        other = parts(again)[name]
        np.testing.assert_array_equal(part.targets, other.targets)
        if modality == "features":
            np.testing.assert_array_equal(part.inputs, other.inputs)
        elif modality != "image":
            assert list(part.inputs) == list(other.inputs)
    assert len(again.folds) == len(data.folds)


def test_it_is_known_who_held_the_validation_rows_out(tmp_path):
    frame = table(400)
    frame["part"] = ["test" if at % 5 == 0 else "train" for at in range(400)]
    two = load(Task(data=frame, input="text", target="label", split="part"))
    assert two.validation_made and len(two.validation)
    frame.loc[frame.index % 5 == 1, "part"] = "dev"
    three = load(Task(data=frame, input="text", target="label", split="part"))
    assert not three.validation_made
    rest, held = frame[frame["part"] != "dev"], frame[frame["part"] == "dev"]
    assert not load(Task(data=rest.drop(columns="part"), validation=held, input="text", target="label")).validation_made
    for data, name in ((two, "two"), (three, "three")):  # a run's own copy remembers it
        request = Request(task=Task(data=frame, input="text", target="label", split="part"))
        assert load(storable(request, data, tmp_path / name).task).validation_made == data.validation_made


def test_many_texts_take_seconds(tmp_path):
    rng = np.random.default_rng(0)
    words = np.array(WORDS)[rng.integers(0, len(WORDS), (50_000, 12))]
    with open(tmp_path / "x.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        writer.writerows((" ".join(row), "pn"[at % 2]) for at, row in enumerate(words))
    started = time.process_time()
    data = load(task(str(tmp_path / "x.csv")))
    assert time.process_time() - started < 12  # about 2 s on an idle core
    assert len(data.test) == 10_000
