import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ontarget.errors import RunError
from ontarget.plan.run_folder import Clock, RunFolder, new_folder, to_json, write_atomic


def test_a_stage_is_computed_once(tmp_path: Path) -> None:
    run, calls = RunFolder(tmp_path), []
    for _ in range(2):
        value = run.once("stage", lambda: calls.append(1) or {"a": np.float32(0.5)}, clock=Clock(10), kind="features")
    assert value == {"a": 0.5}
    assert calls == [1]
    assert [row["what"] for row in run.timeline()] == ["features"]


def test_json_has_no_nan_and_no_numpy() -> None:
    value = {"a": np.int64(3), "b": [float("nan"), np.inf], "c": np.array([[1.5]]), "d": Path("x")}
    assert json.loads(to_json(value)) == {"a": 3, "b": [None, None], "c": [[1.5]], "d": "x"}


def test_a_trial_without_its_record_does_not_exist(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write_atomic(run.trial_folder(0) / "network.safetensors", b"half a trial")
    assert run.trials() == []
    run.write_trial({"number": 0, "start_s": 0, "seconds": 1}, np.ones((2, 3)), {"network.safetensors": b"whole"})
    assert [trial["number"] for trial in run.trials()] == [0]
    assert run.trial_scores(0).shape == (2, 3)


def test_missing_and_damaged_stages_are_named(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(RunError, match="no finished stage 'ranking'"):
        run.read("ranking")
    write_atomic(tmp_path / "stages" / "ranking.json", b"{")
    with pytest.raises(RunError, match=r"ranking\.json is damaged"):
        run.read("ranking")


def test_two_processes_cannot_work_on_one_run(tmp_path: Path) -> None:
    code = "import sys\nfrom ontarget.plan.run_folder import RunFolder\nwith RunFolder(sys.argv[1]).locked(): pass"
    with RunFolder(tmp_path).locked():
        other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "Another process is working on the run" in other.stderr
    free = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert free.returncode == 0


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, "text is not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    with new_folder(target) as partial:
        (partial / "weights").write_bytes(b"one")
        assert not target.exists()
    assert (target / "weights").read_bytes() == b"one"
    assert target.stat().st_mode & 0o055 == 0o055
    with pytest.raises(RunError, match="exists"), new_folder(target):
        pass

    def stopped() -> None:
        with new_folder(tmp_path / "deep" / "other") as partial:
            (partial / "weights").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert [entry.name for entry in target.parent.iterdir()] == ["model"]
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as partial:
        (partial / "weights").touch()
    assert (tmp_path / "empty" / "weights").exists()


def test_files_can_be_read_by_others_and_odd_text_is_written(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file", to_json({"class": "lone \ud800 surrogate"}))
    assert (tmp_path / "file").stat().st_mode & 0o044 == 0o044
    assert json.loads((tmp_path / "file").read_text())["class"] == "lone ? surrogate"
