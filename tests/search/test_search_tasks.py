"""`ontarget search-tasks`: readers against hand-worked values, bad input, and a search from folders to networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from ontarget.cli import app
from ontarget.data.vision_splits import split_tasks
from ontarget.data.vision_tasks import read_vision_tasks
from ontarget.errors import DataError, LimitError, RunError, SettingError
from ontarget.latency_table import Agreement, LatencyTable, Setting, operators_of
from ontarget.pool import load as load_source
from ontarget.pool import resolve
from ontarget.pool.found_networks import load_network
from ontarget.search import search_tasks as module
from ontarget.search import task_latency
from ontarget.search.detection_maps import (
    PRIOR,
    box_maps,
    boxes_of,
    detection_loss,
    mean_average_precision,
    mean_overlap,
    overlap,
)
from ontarget.search.train_found import train_found
from ontarget.values import Context, Examples

TOML = """image_size = 16
[[tasks]]
name = "side"
kind = "classification"
data = "sides"
[[tasks]]
name = "pixels"
kind = "segmentation"
images = "scenes"
masks = "masks"
classes = ["background", "square"]
[[tasks]]
name = "boxes"
kind = "detection"
images = "scenes"
annotations = "instances.json"
"""
COUNT = 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """20 black images of 32 x 16 with one white square of 8 pixels, left or right."""
    for name in ("scenes", "masks", "sides/left", "sides/right"):
        (tmp_path / name).mkdir(parents=True)
    images, annotations = [], []
    for at in range(COUNT):
        left, top = (at % 2) * 16 + at % 5, at % 8
        pixels = np.zeros((16, 32), np.uint8)
        pixels[top : top + 8, left : left + 8] = 1
        Image.fromarray(pixels).save(tmp_path / "masks" / f"{at}.png")
        for place in (tmp_path / "scenes", tmp_path / "sides" / ("right" if at % 2 else "left")):
            Image.fromarray(pixels * (200 + at)).save(place / f"{at}.png")
        images.append({"id": 100 + at, "file_name": f"{at}.png"})
        annotations.append({"image_id": 100 + at, "category_id": 7, "bbox": [left, top, 8, 8]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "square"}]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    (tmp_path / "tasks.toml").write_text(TOML)
    return tmp_path


def test_images_masks_and_boxes_are_read_and_resized(folder: Path) -> None:
    found = read_vision_tasks(folder / "tasks.toml")
    side, pixels, boxes = found.tasks
    assert found.image_size == 16 and side.classes == ("left", "right")
    assert [side.classes[target] for target in side.targets] == [path.parent.name for path in side.images]
    at = [path.name for path in pixels.images].index("3.png")  # left 19, top 3, halved across
    assert pixels.targets[at].shape == (16, 16) and pixels.targets[at].sum() == 32
    assert boxes.targets[3].tolist() == [[0, 9.5, 3, 13.5, 11]]
    assert read_vision_tasks(folder / "tasks.toml").fingerprint == found.fingerprint


def edit(folder: Path, change: Any) -> None:
    path = folder / "instances.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "masks/4.png").unlink(), "has no mask .*4.png"),
        (lambda f: Image.new("L", (9, 9)).save(f / "masks/4.png"), "4.png' is 9 x 9, its image 32 x 16"),
        (lambda f: Image.new("L", (32, 16), 2).save(f / "masks/4.png"), "4.png' holds 2, allowed are 0 to 1 and 255"),
        (lambda f: Image.new("RGB", (32, 16)).save(f / "masks/4.png"), "4.png' has mode RGB"),
        (lambda f: (f / "scenes/4.png").write_bytes(b""), "the image .*4.png' cannot be read"),
        (lambda f: (f / "instances.json").write_text(""), "instances.json' is no COCO file"),
        (lambda f: (f / "instances.json").unlink(), "instances.json' cannot be read"),
        (lambda f: edit(f, lambda c: c["annotations"][2].update(bbox=[30, 0, 8, 8])), "annotation 2 .* outside of"),
        (lambda f: edit(f, lambda c: c["annotations"][2].update(bbox=[1, 0, 8])), "annotation 2 .* of 3 numbers"),
        (lambda f: edit(f, lambda c: c["annotations"][2].update(category_id=1)), "unknown category_id 1, known.*7"),
        (
            lambda f: edit(f, lambda c: c["images"][2].update(width=16, height=32)),
            "2.png' is 16 x 32, as shown 32 x 16",
        ),
        (lambda f: edit(f, lambda c: c["annotations"][2].update(image_id=1)), "unknown image_id 1"),
    ],
)
def test_bad_data_is_refused_naming_the_file(folder: Path, break_it: Any, message: str) -> None:
    break_it(folder)
    with pytest.raises(DataError, match=message):
        read_vision_tasks(folder / "tasks.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('data = "sides"', 'data = "sides"\nlatency_ms = 0', "latency_ms is 0, allowed are numbers above 0"),
        ('kind = "detection"', 'kind = "detect"', "kind is 'detect', allowed are classification"),
        ("masks =", "mask =", "unknown setting 'mask'.*did you mean 'masks'.*'masks' is missing"),
        ("image_size = 16", "image_size = 17", "image_size is 17"),
        ("image_size = 16", "image_sice = 16", "did you mean 'image_size'"),
        ('name = "boxes"', 'name = "side"', "the name is given twice"),
        ('["background", "square"]', '["background"]', "allowed is a list of 2 to 254"),
    ],
)
def test_a_bad_toml_is_refused(folder: Path, old: str, new: str, message: str) -> None:
    (folder / "tasks.toml").write_text(TOML.replace(old, new))
    with pytest.raises(SettingError, match=message):
        read_vision_tasks(folder / "tasks.toml")


def test_maps_give_their_boxes_back() -> None:
    boxes = np.array([[1, 2, 4, 10, 12], [0, 20, 6, 28, 30]], dtype=float)
    maps = box_maps(boxes, 2, 32)
    assert maps[1, 4, 3] == 1 and maps[:2].max() == 1 and maps[-1].sum() == 2
    assert maps[2:6, 4, 3].tolist() == [0.25, 0.25, 0, 0]
    outputs = torch.cat([(20 * maps[:2] - 10 + PRIOR), maps[2:6]])[None]
    found = boxes_of(outputs, 32)[0]
    best = found[found[:, 0] > 0.99]
    assert sorted(map(tuple, best[:, 1:].tolist())) == sorted(map(tuple, boxes.tolist()))
    assert float(detection_loss(outputs, maps[None])) < 0.1 < float(detection_loss(-outputs, maps[None]))


def test_metrics_against_hand_worked_values() -> None:
    assert overlap(np.array([[0.0, 0, 2, 2], [4, 4, 5, 5]]), np.array([1.0, 0, 3, 2])).tolist() == [1 / 3, 0]
    truth = [np.array([[0, 0, 0, 2, 2], [0, 4, 4, 6, 6]])]
    found = [np.array([[0.9, 0, 0, 0, 2, 2], [0.8, 0, 0, 0, 2, 2], [0.7, 0, 4, 4, 6, 6]])]
    assert mean_average_precision(found, truth, 2) == pytest.approx((1 + 2 / 3) / 2)  # the second finds a taken box
    assert mean_average_precision([np.zeros((0, 6))], truth, 2) == 0
    predicted, real = np.array([[0, 1, 1, 0]]), np.array([[0, 1, 0, 255]])
    assert mean_overlap(predicted, real, 3) == pytest.approx(0.5)  # 1 / 2 and 1 / 2; the third class does not occur


CALL = {"steps": 3, "epochs": 2, "batch_size": 4, "threads": 1}


def test_a_search_through_the_command_line_is_resumed_and_its_networks_rebuilt(folder: Path) -> None:
    out = folder / "out"
    call = ["search-tasks", str(folder / "tasks.toml"), "-o", str(out), "--steps", "3", "--epochs", "2",
            "--batch-size", "4", "--threads", "1", "-q"]  # fmt: skip
    first = CliRunner().invoke(app, call)
    assert first.exit_code == 0, first.output
    assert "side: accuracy" in first.output and "boxes: mean AP at IoU 0.5" in first.output
    written = {path: path.stat().st_mtime_ns for path in out.rglob("network.safetensors")}
    result = json.loads((out / "search.json").read_text())
    again = CliRunner().invoke(app, [*call, "--json"])
    assert json.loads(again.output)["networks"] == result["networks"]
    assert {path: path.stat().st_mtime_ns for path in written} == written and len(written) == 3
    tasks = read_vision_tasks(folder / "tasks.toml").tasks
    for task, part, row in zip(tasks, split_tasks(tasks, 0), result["networks"], strict=True):
        network, preprocess, info = load_network(Path(row["folder"]))
        for name in ("validation", "test"):
            positions = getattr(part, name)
            inputs = torch.from_numpy(preprocess([task.images[at] for at in positions])["pixels"])
            with torch.inference_mode():
                outputs, truth = network(inputs), [task.targets[at] for at in positions]
            expected = {
                "classification": lambda o, t: float((o.argmax(1).numpy() == np.asarray(t)).mean()),
                "segmentation": lambda o, t: mean_overlap(o.argmax(1).numpy(), np.asarray(t), 2),
                "detection": lambda o, t: mean_average_precision(boxes_of(o, 16), t, 1),
            }[task.kind](outputs, truth)  # fmt: skip
            assert row[name]["value"] == pytest.approx(expected) and row[name]["images"] == len(positions) == 3
            assert row[name]["low"] <= row[name]["value"] <= row[name]["high"]
        assert info["classes"] == list(task.classes) and row["measured_ms"] > 0 and row["limit_ms"] is None
        assert row["learnt"] == len(part.learnt) == 14 and row["left_out"] == 0
    page = (out / "search.html").read_text()
    assert page.count("<svg") == 9 and "<script" not in page and "<th>test</th>" in page
    with pytest.raises(RunError, match="other tasks or with other settings"):
        module.search_tasks(folder / "tasks.toml", output=out, **{**CALL, "steps": 4})
    classifier = load_source(resolve(f"file:{out / 'networks' / 'side'}"))
    assert classifier.encoder(torch.zeros(2, 1, 16, 16)).shape == (2, classifier.dim)
    network, preprocess, info = load_network(out / "networks" / "side")
    learnt = split_tasks(tasks, 0)[0].learnt
    rows = Examples([tasks[0].images[at] for at in learnt], np.array(tasks[0].targets)[learnt], learnt)
    anew = train_found(info, preprocess, rows).state_dict()  # as a fit trains its winner again
    assert all(torch.equal(anew[name], value) for name, value in network.state_dict().items())
    with pytest.raises(RunError, match="one for detection, which is no source of fit"):
        load_source(resolve(f"file:{out / 'networks' / 'boxes'}"))


class Killed(Exception):
    pass


@pytest.mark.parametrize(("what", "count"), [("searching topologies", 2), ("training the network for pixels", 2)])
def test_a_killed_search_goes_on_to_the_same_networks(folder: Path, what: str, count: int) -> None:
    def search(name: str, progress: Any = None, **more: Any) -> Any:
        context = Context(progress=progress)
        return module.search_tasks(
            folder / "tasks.toml", output=folder / name, **{**CALL, **more, "epochs": 3}, context=context
        )

    calls = []

    def kill(done: int, total: int, now: str) -> None:
        calls.append(now)
        if calls.count(what) == count:
            raise Killed

    whole = search("whole")
    with pytest.raises(Killed):
        search("killed", kill)
    again = []
    resumed = search("killed", lambda done, total, now: again.append((now, done)))
    assert next(done for now, done in again if now == what) == count + (what != "searching topologies")
    assert (resumed.curve, resumed.training) == (whole.curve, whole.training)
    for before, after in zip(whole.networks, resumed.networks, strict=True):
        assert (before["code"], before["validation"], before["test"]) == (
            after["code"], after["validation"], after["test"],
        )  # fmt: skip
    assert not list(folder.rglob("*.state"))


def constant_table(space: Any, setting: Setting, **_: Any) -> LatencyTable:
    return LatencyTable(
        {}, setting, dict.fromkeys(operators_of(space), 0.01), agreement=Agreement((1, 2, 3), (1, 2, 4))
    )


def test_an_unreachable_limit_is_refused_before_training_with_the_fastest_figure(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "tasks.toml").write_text(TOML.replace('name = "pixels"', 'name = "pixels"\nlatency_ms = 0.5'))
    monkeypatch.setattr(task_latency, "measure_found", lambda places, setting: [0.75 for _ in places])
    with pytest.raises(LimitError, match=r"0.5 ms for 'pixels' cannot be reached: the fastest .* takes 0.75 ms\."):
        module.search_tasks(folder / "tasks.toml", output=folder / "out", latency_ms=0.8, **CALL)
    assert not (folder / "out" / "networks").exists() and not (folder / "out" / "latency_table.json").exists()


def test_a_network_over_its_limit_when_measured_again_is_not_returned(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before training all keep the limits; after it the first of 'pixels' does not, and then none does."""
    (folder / "tasks.toml").write_text(TOML.replace('name = "pixels"', 'name = "pixels"\nlatency_ms = 0.5'))
    monkeypatch.setattr(task_latency, "profile", constant_table)
    monkeypatch.setattr(task_latency, "measure_found", lambda places, setting: [0.4 for _ in places])
    over = {"pixels-0"}
    monkeypatch.setattr(
        module, "measure_found", lambda places, setting: [0.6 if place.name in over else 0.4 for place in places]
    )
    found = module.search_tasks(folder / "tasks.toml", output=folder / "out", latency_ms=0.45, **CALL)
    rows = {row["task"]: row for row in found.networks}
    assert {name: row["limit_ms"] for name, row in rows.items()} == {"side": 0.45, "pixels": 0.5, "boxes": 0.45}
    chosen = json.loads((folder / "out/stages/chosen.json").read_text())["value"]["pixels"]
    assert list(rows["pixels"]["code"]) == chosen[1] != chosen[0] and rows["pixels"]["measured_ms"] == 0.4
    assert found.agreement["kendall"] == pytest.approx(1) and rows["side"]["predicted_ms"] > 0
    page = (folder / "out/search.html").read_text()
    assert page.count("<svg") == 10 and "median error" in page
    over |= {f"pixels-{number}" for number in range(10)}
    with pytest.raises(LimitError, match=r"'pixels' stays within 0.5 ms: the fastest takes 0.6 ms"):
        module.search_tasks(folder / "tasks.toml", output=folder / "other", latency_ms=0.45, **CALL)
    assert not (folder / "other" / "networks").exists()


def test_steps_and_epochs_follow_from_the_budget(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.affordable_steps(100.0, 0.1, 10.0, 5.0) == 400  # (100 / 2 - 10) / 0.1
    assert module.affordable_steps(100.0, 0.1, 10.0, 5.0, epochs=4) == 700  # (100 - 4 * 5 - 10) / 0.1
    assert module.affordable_steps(38.0, 0.1, 10.0, 5.0) == module.LEAST_STEPS
    assert module.affordable_steps(1e6, 0.1, 10.0, 5.0) == module.MOST_STEPS
    with pytest.raises(LimitError, match="100 steps of the search and 3 epochs of training take about 35 s here, 34 s"):
        module.affordable_steps(34.0, 0.1, 10.0, 5.0)
    for name, value in (("LEAST_STEPS", 2), ("MOST_STEPS", 3), ("LEAST_EPOCHS", 1), ("MOST_EPOCHS", 2)):
        monkeypatch.setattr(module, name, value)
    found = module.search_tasks(folder / "tasks.toml", output=folder / "out", budget_s=900, batch_size=4, threads=1)
    assert (found.steps, found.epochs, found.budget_s) == (3, 2, 900)  # all that there may be
    with pytest.raises(LimitError, match="The budget does not suffice"):
        module.search_tasks(folder / "tasks.toml", output=folder / "no", budget_s=0.1, batch_size=4, threads=1)
