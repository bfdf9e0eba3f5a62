"""`fit` end to end on small real data, from Python and from the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import ontarget
from ontarget.errors import DataError, LimitError, RunError, SettingError

PROGRAM = str(Path(sys.executable).with_name("ontarget"))
POOL = ["zoo:wordllama"]


def write_reviews(path: Path, rows: int = 240) -> Path:
    """Texts whose class is a matter of their words, with some noise; a comma and a quote in each."""
    generator = np.random.default_rng(0)
    good = ["excellent", "love it", "works well", "great value", "very happy"]
    bad = ["terrible", "broke quickly", "waste of money", "very disappointed", "do not buy"]
    lines = ["id,text,label"]
    for row in range(rows):
        positive = bool(generator.random() < 0.5)
        words = generator.choice(good if positive else bad, 2, replace=False)
        noise = generator.choice(["today", "for my desk", "from the shop", "it arrived"], 1)[0]
        label = positive if generator.random() < 0.93 else not positive
        lines.append(f'{row},"{words[0]}, ""{noise}"" {words[1]} {row}",{"positive" if label else "negative"}')
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> ontarget.Run:  # type: ignore[name-defined]
    folder = tmp_path_factory.mktemp("fit")
    data = write_reviews(folder / "reviews.csv")
    return ontarget.fit(
        data, input="text", target="label", latency_ms=200, budget_s=40, pool=POOL, run=folder / "run", threads=1
    )


def test_the_result_beats_the_constant_and_says_what_it_is(text_run) -> None:  # type: ignore[no-untyped-def]
    report = text_run.report
    assert report["evidence"]["test"]["value"] > 0.75
    majority = next(row for row in report["evidence"]["baselines"] if row["name"] == "majority")
    assert majority["difference_low"] > 0
    assert {row["name"] for row in report["evidence"]["baselines"]} >= {"majority", "TF-IDF + linear", "zero-shot"}
    assert report["data"]["cross_fitted"]
    assert report["bundle"]["latency_p50_ms"] <= 200
    assert report["costs"]["total_s"] < 120
    assert text_run.report_html.exists()


def test_the_bundle_predicts_from_python_and_from_the_command_line(text_run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    rows = ["excellent, love it", "terrible, a waste of money"]
    assert [row["label"] for row in text_run.predict(rows)] == ["positive", "negative"]
    (tmp_path / "new.csv").write_text("text\n" + "\n".join(f'"{row}"' for row in rows) + "\n")
    command = [PROGRAM, "predict", str(text_run.bundle), str(tmp_path / "new.csv")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line.split(",")[1] for line in done.stdout.splitlines()] == ["label", "positive", "negative"]


def test_doctor_passes_the_bundle_and_fails_a_damaged_one(text_run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import shutil

    from ontarget.doctor import check_bundle

    assert [check["state"] for check in check_bundle(text_run.bundle)][:2] == ["ok", "ok"]
    damaged = Path(shutil.copytree(text_run.bundle, tmp_path / "bundle"))
    (damaged / "model.onnx").write_bytes(b"")
    done = subprocess.run([PROGRAM, "doctor", str(damaged)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "has been changed or damaged" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_finished_run_is_read_back_and_not_done_again(text_run) -> None:  # type: ignore[no-untyped-def]
    before = {path: path.stat().st_mtime_ns for path in text_run.path.rglob("trial.json")}
    from ontarget.fitting import resume

    again = resume(text_run.path)
    assert again.report["decision"] == text_run.report["decision"]
    assert {path: path.stat().st_mtime_ns for path in text_run.path.rglob("trial.json")} == before


def test_another_task_does_not_take_over_a_run(text_run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    other = write_reviews(tmp_path / "other.csv", 100)
    with pytest.raises(RunError, match="holds a run of another task"):
        ontarget.fit(other, input="text", target="label", run=text_run.path)


def test_changed_data_is_noticed(text_run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import shutil

    from ontarget.fitting import resume

    copy = Path(shutil.copytree(text_run.path, tmp_path / "run"))
    changed = write_reviews(tmp_path / "changed.csv", 230)
    task = (copy / "task.toml").read_text()
    original = next(line for line in task.splitlines() if line.startswith("data"))
    (copy / "task.toml").write_text(task.replace(original, f'data = "{changed}"'))
    with pytest.raises(RunError, match="The data has changed"):
        resume(copy)


def test_a_killed_run_ends_as_an_undisturbed_one(text_run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """kill -9 when two trials are stored; the resumed run keeps them and takes the same decision."""
    data = json.loads(json.dumps(dict(text_run.report["task"])))["data"]
    options = ["--input", "text", "--target", "label", "--latency-ms", "200", "--budget", "40s", "--pool", POOL[0],
               "--threads", "1", "--quiet"]  # fmt: skip
    run = tmp_path / "run"
    process = subprocess.Popen([PROGRAM, "fit", data, "--run", str(run), *options], start_new_session=True)
    while process.poll() is None and len(list(run.glob("trials/*/trial.json"))) < 2:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path: path.read_bytes() for path in run.glob("trials/*/trial.json")}
    assert kept
    done = subprocess.run(
        [PROGRAM, "fit", "--resume", str(run), "--quiet"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(path.read_bytes() == content for path, content in kept.items())
    report = json.loads((run / "report.json").read_text())
    assert report["decision"]["title"] == text_run.report["decision"]["title"]
    assert report["evidence"]["test"] == text_run.report["evidence"]["test"]


def test_images_in_folders(tmp_path: Path) -> None:
    from PIL import Image

    generator = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 110)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(40):
            pixels = generator.integers(low, low + 140, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    run = ontarget.fit(tmp_path / "photos", budget_s=20, pool=["control:pixels"], run=tmp_path / "run", threads=1)
    assert run.report["evidence"]["test"]["value"] == 1.0
    assert run.predict([np.full((10, 10, 3), 20, dtype=np.uint8)])[0]["label"] == "dark"


def test_features_and_regression_from_arrays(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(400, 5)).astype(np.float32)
    targets = 3 * features[:, 0] - features[:, 1] + 10 + 0.1 * generator.normal(size=400)
    run = ontarget.fit((features, targets), budget_s=20, run=tmp_path / "run", threads=1)
    assert run.report["evidence"]["metric"] == "r2"
    assert run.report["evidence"]["test"]["value"] > 0.95
    value = run.predict(np.array([[1, 0, 0, 0, 0]], dtype=np.float32))[0]["value"]
    assert value == pytest.approx(13, abs=0.5)


def test_an_unreachable_limit_is_refused_with_the_fastest_figure(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 255, (60, 16, 16, 3), dtype=np.uint8)
    with pytest.raises(LimitError, match="the fastest needs"):
        ontarget.fit(
            (images, [0, 1] * 30),
            pool=["zoo:efficientnet-lite0@64"],
            latency_ms=0.01,
            budget_s=20,
            run=tmp_path / "run",
        )
    assert not list((tmp_path / "run").glob("trials/*/trial.json"))


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"input": "txt", "target": "label"}, DataError, "text"),
        ({"input": "text", "target": "labels"}, DataError, "label"),
        ({"input": "text", "target": "label", "budget_s": 0}, SettingError, "budget_s"),
        ({"input": "text", "target": "label", "metric": "accurracy"}, SettingError, "metric"),
    ],
)
def test_mistakes_are_named_before_a_folder_is_made(
    tmp_path: Path, fields: dict[str, object], error: type[Exception], words: str
) -> None:
    data = write_reviews(tmp_path / "reviews.csv", 40)
    with pytest.raises(error, match=words):
        ontarget.fit(data, run=tmp_path / "run", **fields)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_the_command_line_prints_errors_without_a_traceback(tmp_path: Path) -> None:
    command = [PROGRAM, "fit", str(tmp_path / "nothing.csv"), "--target", "y"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "nothing.csv" in done.stderr
    assert "Traceback" not in done.stderr


def test_unlabelled_rows_take_part(tmp_path: Path) -> None:
    lines = write_reviews(tmp_path / "all.csv", 400).read_text().splitlines()
    emptied = [line if row % 8 == 0 else line.rsplit(",", 1)[0] + "," for row, line in enumerate(lines[1:])]
    (tmp_path / "few.csv").write_text("\n".join([lines[0], *emptied]) + "\n")
    run = ontarget.fit(
        tmp_path / "few.csv", input="text", target="label", budget_s=30, pool=POOL, run=tmp_path / "run", threads=1
    )
    assert run.report["data"]["rows"]["unlabelled"] == 350
    trained = [trial for trial in run.report["trials"] if trial["method"] == "self_training"]
    assert len(trained) == 1
    assert trained[0]["state"] == "complete"
    assert trained[0]["settings"]["rows"] >= 50
    assert 0.5 < trained[0]["metric"] <= 1.0
