"""Several image tasks named by one TOML file: classification, segmentation and detection, read and checked.

    image_size = 64                      # every image is resized to image_size x image_size, masks and boxes with it

    [[tasks]]
    name = "garment"
    kind = "classification"
    data = "photos"                      # a folder for each class, or a table with input = and target = columns
    latency_ms = 2                       # of this task's network; optional, for every kind

    [[tasks]]
    name = "parts"
    kind = "segmentation"
    images = "scenes"                    # scenes/1.jpg has the mask masks/1.png
    masks = "masks"                      # pixel value = class, 255 = ignored
    classes = ["background", "sleeve"]

    [[tasks]]
    name = "boxes"
    kind = "detection"
    images = "scenes"
    annotations = "instances.json"       # COCO: images, annotations with bbox [x, y, w, h], categories
    split = "splits.csv"                 # optional: columns image and split (train, validation, test)

For classification, split names a column of the table; a folder of the folders train, validation and test needs none.
For the other kinds it names a table of file names. Without it, splits are drawn (`vision_splits`).
Masks and boxes are of images as shown: a photo's EXIF rotation is applied. Paths are meant from where the TOML file
is. All mistakes of the file, and up to ten of each task, are told at once.
Checked in tests/search/test_search_tasks.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ontarget.data.problems import SHOWN
from ontarget.errors import DataError, SettingError, nearest
from ontarget.values import Array

IGNORED = 255  # a mask's pixel without a class
KEYS = {
    "classification": {"data": True, "input": False, "target": False, "split": False},
    "segmentation": {"images": True, "masks": True, "classes": True, "split": False},
    "detection": {"images": True, "annotations": True, "split": False},
}  # kind -> key -> whether it must be there
FEWEST = 10  # images of a task: four splits of them must hold something (choice)


@dataclass(frozen=True)
class Masks(Sequence[Array]):
    """Masks (size, size) uint8, read from their files when they are asked for."""

    paths: tuple[Path, ...]
    size: int

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: Any) -> Any:
        from PIL import Image

        with Image.open(self.paths[position]) as mask:
            values = Image.fromarray(np.asarray(mask).astype(np.uint8))
            return np.asarray(values.resize((self.size, self.size), Image.Resampling.NEAREST))


@dataclass(frozen=True)
class VisionTask:
    """images: N paths. targets: N entries: class index; mask (size, size) uint8; boxes (K, 5) float64.

    A box is class index, left, top, right, bottom in pixels of the resized image. Masks are read when asked for.
    digests: of each image's file. given: each image's split, train, validation or test; empty where the data say none.
    latency_ms: the task's own limit.
    """

    name: str
    kind: str
    classes: tuple[str, ...]
    images: tuple[Path, ...]
    targets: Sequence[Any]
    digests: tuple[str, ...]
    given: tuple[str, ...] = ()
    latency_ms: float | None = None


@dataclass(frozen=True)
class VisionTasks:
    """What the TOML file asks for. fingerprint: hex digest of its content and of all images and targets."""

    image_size: int
    tasks: tuple[VisionTask, ...]
    fingerprint: str


def read_vision_tasks(path: Path | str) -> VisionTasks:
    """Read and check the file and everything that it names; see the module's head.

    Raises SettingError for unknown or missing keys, kinds and values; DataError naming file and image for the data.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(f"There is no file '{path}'.", option="tasks", next_step="check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' is no valid TOML: {error}.", next_step="mend the file") from error
    _check_keys(content, path)
    size = content.get("image_size", 64)
    tasks = tuple(_read(entry, path.parent, size) for entry in content["tasks"])
    digest = hashlib.sha256(repr(content).encode())
    for task in tasks:
        digest.update(repr(task.given).encode())
        for image, target in zip(task.digests, task.targets, strict=True):
            digest.update(image.encode())
            digest.update(np.asarray(target).tobytes())
    return VisionTasks(size, tasks, digest.hexdigest())


def _check_keys(content: Mapping[str, Any], path: Path) -> None:
    problems = [_unknown(name, ("image_size", "tasks")) for name in content if name not in ("image_size", "tasks")]
    size = content.get("image_size", 64)
    if not isinstance(size, int) or isinstance(size, bool) or size < 16 or size % 8 or size > 512:
        problems.append(f"image_size is {size!r}, allowed are multiples of 8 from 16 to 512")
    tasks = content.get("tasks")
    if not isinstance(tasks, list) or not tasks or not all(isinstance(task, dict) for task in tasks):
        problems.append("there is no [[tasks]] section")
        tasks = []
    names: set[str] = set()
    for number, task in enumerate(tasks, 1):
        name, kind = task.get("name"), task.get("kind")
        where = f"task {number}" + (f" '{name}'" if name else "")
        if not isinstance(name, str) or not name.isidentifier():
            problems.append(f"{where}: name is {name!r}, allowed are letters, digits and _")
        elif name in names:
            problems.append(f"{where}: the name is given twice")
        names.add(str(name))
        if kind not in KEYS:
            problems.append(f"{where}: kind is {kind!r}, allowed are {', '.join(KEYS)}")
            continue
        allowed = ("name", "kind", "latency_ms", *KEYS[kind])
        problems += [f"{where}: {_unknown(key, allowed)}" for key in task if key not in allowed]
        problems += [f"{where}: '{key}' is missing" for key, must in KEYS[kind].items() if must and key not in task]
        limit = task.get("latency_ms", 1)
        if not isinstance(limit, int | float) or isinstance(limit, bool) or not limit > 0:
            problems.append(f"{where}: latency_ms is {limit!r}, allowed are numbers above 0")
        classes = task.get("classes", ["a", "b"])
        if not (isinstance(classes, list) and 2 <= len(set(map(str, classes))) == len(classes) < IGNORED):
            problems.append(f"{where}: classes is {classes!r}, allowed is a list of 2 to 254 different names")
        problems += [
            f"{where}: {key} is {value!r}, allowed is text"
            for key, value in task.items()
            if key in KEYS[kind] and key != "classes" and not isinstance(value, str)
        ]
    if problems:
        raise SettingError(
            f"{path} cannot be used: " + "; ".join(problems) + ".", option=str(path),
            next_step="see `ontarget search-tasks --help` for an example",
        )  # fmt: skip


def _unknown(name: str, allowed: Sequence[str]) -> str:
    close = nearest(name, allowed)
    return f"unknown setting '{name}'" + (f" ({close})" if close else f", allowed are {', '.join(allowed)}")


def _read(entry: Mapping[str, Any], folder: Path, size: int) -> VisionTask:
    reader = {"classification": _labels, "segmentation": _masks, "detection": _boxes}[entry["kind"]]
    problems: list[str] = []
    images, targets, classes, given = reader(entry, folder, size, problems)
    if not problems and len(images) < FEWEST:
        problems.append(f"{len(images)} labelled images are too few, {FEWEST} are needed")
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise DataError(
            f"Task '{entry['name']}': " + "; ".join(problems[:SHOWN]) + more + ".",
            option=f"[[tasks]] {entry['name']}", next_step="mend the data",
        )  # fmt: skip
    digests = tuple(hashlib.sha256(image.read_bytes()).hexdigest() for image in images)
    return VisionTask(
        entry["name"], entry["kind"], tuple(classes), tuple(images), targets, digests, tuple(given),
        entry.get("latency_ms"),
    )  # fmt: skip


Found = tuple[list[Path], Sequence[Any], list[str], list[str]]  # images, targets, classes, splits


def _splits(values: Sequence[Any], images: Sequence[Path], problems: list[str]) -> list[str]:
    """The values as train, validation and test; problems name the image."""
    from ontarget.data.read import SPLIT_NAMES

    found = [SPLIT_NAMES.get(str(value).strip().lower(), "") for value in values]
    for image, value, name in zip(images, values, found, strict=True):
        if not name:
            problems.append(f"split of '{image}' is {value!r}, allowed are train, validation, test")
    if not problems and "train" not in found:
        problems.append("split: no image is of the split train")
    return found


def _listed_splits(entry: Mapping[str, Any], folder: Path, images: Sequence[Path], problems: list[str]) -> list[str]:
    """The splits that a table with the columns image and split says; nothing where none is named."""
    if "split" not in entry:
        return []
    from ontarget.data.read import read

    table = read(folder / entry["split"])
    if missing := {"image", "split"} - set(map(str, table.frame.columns)):
        problems.append(f"split: {table.name} has no column {', '.join(sorted(missing))}")
        return []
    known = dict(zip(table.frame["image"].astype(str), table.frame["split"].astype(str), strict=True))
    names = [os.path.relpath(image, folder / entry["images"]) for image in images]
    if absent := [name for name in names if name not in known]:
        problems.append(f"split: {table.name} does not list {', '.join(absent[:SHOWN])}")
        return []
    return _splits([known[name] for name in names], images, problems)


def _side(path: Path, problems: list[str]) -> tuple[int, int] | None:
    """Width and height as shown, EXIF rotation applied; None, and a problem, where the image cannot be read."""
    from ontarget.runtime.preprocess import open_image

    try:
        image = open_image(path)
        image.load()
        return int(image.size[0]), int(image.size[1])
    except Exception as error:  # Pillow raises a dozen kinds for damaged files
        reason = f"cannot be read ({error})" if path.exists() else "does not exist"
        problems.append(f"the image '{path}' {reason}")
        return None


def _labels(entry: Mapping[str, Any], folder: Path, size: int, problems: list[str]) -> Found:
    from ontarget.data.read import read

    table = read(folder / entry["data"])
    columns = [str(name) for name in table.frame.columns]
    given = {"input": entry.get("input", table.input[0] if table.input else ""),
             "target": entry.get("target", table.target)}  # fmt: skip
    split = entry.get("split", table.split)
    if split is not None:
        given["split"] = split
    for key, name in given.items():
        if name not in columns:
            problems.append(f"{table.name} has no column '{name}' for {key}, it has {', '.join(columns)}")
    if problems:
        return [], [], [], []
    rows = table.frame[table.frame[given["target"]].notna() & (table.frame[given["target"]].astype(str) != "")]
    names = rows[given["target"]].astype(str).tolist()
    classes = sorted(set(names))
    if len(classes) < 2:
        problems.append(f"{table.name} has {len(classes)} class(es), 2 or more are needed")
    images = [table.folder / str(name) for name in rows[given["input"]]]
    for image in images:
        _side(image, problems)
    splits = [] if split is None else _splits(rows[split].tolist(), images, problems)
    return images, [classes.index(name) for name in names], classes, splits


def _folder_images(entry: Mapping[str, Any], folder: Path, problems: list[str]) -> list[Path]:
    from ontarget.data.read import IMAGE_SUFFIXES

    place = folder / entry["images"]
    if not place.is_dir():
        problems.append(f"images: there is no folder '{place}'")
        return []
    found = sorted(path for path in place.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not found:
        problems.append(f"images: the folder '{place}' holds no images")
    return found


def _masks(entry: Mapping[str, Any], folder: Path, size: int, problems: list[str]) -> Found:
    from PIL import Image

    images, paths = _folder_images(entry, folder, problems), []
    for image in images:
        path = folder / entry["masks"] / f"{image.stem}.png"
        sides = _side(image, problems)
        if not path.is_file():
            problems.append(f"the image '{image}' has no mask '{path}'")
            continue
        if sides is None or (mask_sides := _side(path, problems)) is None:
            continue
        with Image.open(path) as mask:
            if mask.mode not in ("L", "P", "1"):
                problems.append(f"the mask '{path}' has mode {mask.mode}, allowed are 8 bits a pixel (L or P)")
                continue
            values = np.asarray(mask).astype(np.uint8)
            if mask_sides != sides:
                problems.append(
                    f"the mask '{path}' is {mask_sides[0]} x {mask_sides[1]}, its image {sides[0]} x {sides[1]}"
                )
                continue
            over = values[(values >= len(entry["classes"])) & (values != IGNORED)]
            if len(over):
                problems.append(
                    f"the mask '{path}' holds {over.max()}, allowed are 0 to {len(entry['classes']) - 1} and {IGNORED}"
                )
                continue
            paths.append(path)
    splits = _listed_splits(entry, folder, images, problems)
    return images, Masks(tuple(paths), size), [str(name) for name in entry["classes"]], splits


def _boxes(entry: Mapping[str, Any], folder: Path, size: int, problems: list[str]) -> Found:
    path = folder / entry["annotations"]
    place = folder / entry["images"]
    if not place.is_dir():
        problems.append(f"images: there is no folder '{place}'")
        return [], [], [], []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {int(row["id"]): str(row["name"]) for row in content["categories"]}
        listed = {int(row["id"]): str(row["file_name"]) for row in content["images"]}
        rows = [
            (int(row["image_id"]), int(row["category_id"]), [float(value) for value in row["bbox"]])
            for row in content["annotations"]
        ]
    except OSError as error:
        problems.append(f"annotations: '{path}' cannot be read ({error.strerror})")
        return [], [], [], []
    except (ValueError, KeyError, TypeError) as error:
        problems.append(f"annotations: '{path}' is no COCO file ({type(error).__name__}: {error})")
        return [], [], [], []
    if not names or not listed or not rows:
        problems.append(
            f"annotations: '{path}' has {len(listed)} images, {len(rows)} annotations, {len(names)} categories"
        )
    kinds = {number: at for at, number in enumerate(sorted(names))}
    sides = {number: _side(place / name, problems) for number, name in listed.items()}
    for row in content["images"]:
        side, told = sides[int(row["id"])], (row.get("width"), row.get("height"))
        if side is not None and None not in told and told != side:  # boxes of a rotated or resized copy
            problems.append(
                f"'{path}' says that '{row['file_name']}' is {told[0]} x {told[1]}, as shown {side[0]} x {side[1]}"
            )
    boxes: dict[int, list[list[float]]] = {number: [] for number in listed}
    for at, (image, category, box) in enumerate(rows):
        what = f"annotation {at} of '{path}'"
        if image not in listed:
            problems.append(f"{what} has the unknown image_id {image}")
        elif category not in kinds:
            problems.append(f"{what} has the unknown category_id {category}, known are {sorted(kinds)[:SHOWN]}")
        elif len(box) != 4:
            problems.append(f"{what} has a bbox of {len(box)} numbers, allowed is [x, y, w, h]")
        elif (side := sides[image]) is not None:
            left, top, wide, high = box
            inside = left >= 0 and top >= 0 and left + wide <= side[0] + 0.5 and top + high <= side[1] + 0.5
            if not (inside and wide > 0 and high > 0):
                problems.append(f"{what} has the box {box} outside of '{listed[image]}' ({side[0]} x {side[1]})")
                continue
            across, down = size / side[0], size / side[1]
            boxes[image].append(
                [kinds[category], left * across, top * down, (left + wide) * across, (top + high) * down]
            )
    images = [place / name for name in listed.values()]
    targets = [np.array(boxes[number]).reshape(-1, 5) for number in listed]
    splits = _listed_splits(entry, folder, images, problems)
    return images, targets, [names[key] for key in sorted(names)], splits
