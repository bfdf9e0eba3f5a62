from pathlib import Path

import pytest

from ontarget.adapt.answer_checker import check_answers
from ontarget.errors import DataError

CHECKER = """
import os, sys, time
def check(prompt, answer, references):
    print("this is no result")
    if prompt == "loop":
        while True: pass
    if prompt == "sleep": time.sleep(60)
    if prompt == "crash": os.abort()
    if prompt == "exit": sys.exit(0)
    if prompt == "hard exit": os._exit(0)
    if prompt == "memory": return len("x" * (1 << 33)) > 0
    if prompt == "big": return 3
    if prompt == "raise": raise ValueError("no number")
    if prompt == "environment": return "ONTARGET_SECRET" not in os.environ
    if prompt == "write":
        with open("file", "wb") as file:
            file.write(bytes(64 << 20))
    if prompt == "network":
        import socket
        try:
            socket.create_connection(("127.0.0.1", int(answer)), timeout=1)
        except OSError:
            return True
        return False
    return answer in references
"""


@pytest.fixture
def checker(tmp_path: Path) -> Path:
    path = tmp_path / "checker.py"
    path.write_text(CHECKER)
    return path


def test_each_row_stands_alone(checker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONTARGET_SECRET", "x")
    prompts = ["fine", "loop", "sleep", "crash", "exit", "hard exit", "memory", "big", "raise", "environment", "write",
               "wrong", "fine"]  # fmt: skip
    found = check_answers(checker, prompts, ["a"] * len(prompts), [["b"] if p == "wrong" else ["a"] for p in prompts],
                          seconds=0.5)  # fmt: skip
    assert dict(zip(prompts, found.scores.tolist(), strict=True)) == {
        **dict.fromkeys(prompts, 0.0), "fine": 1.0, "environment": 1.0
    }  # fmt: skip
    reasons = dict(zip(prompts, found.reasons, strict=True))
    assert reasons["fine"] == reasons["wrong"] == reasons["environment"] == ""
    assert "0.5 s" in reasons["loop"] and "0.5 s" in reasons["sleep"]
    assert "died" in reasons["crash"] and "died" in reasons["hard exit"]
    assert "SystemExit" in reasons["exit"] and "MemoryError" in reasons["memory"]
    assert "'3'" in reasons["big"] and reasons["raise"] == "ValueError: no number"


def test_nothing_that_a_row_starts_stays(tmp_path: Path) -> None:
    path = tmp_path / "starts.py"
    path.write_text(
        "import os, subprocess, sys\n"
        "def check(prompt, answer, references):\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "    return child.pid / 2**32\n"
    )
    found = check_answers(path, ["p"], ["a"], [[]])
    pid = round(float(found.scores[0]) * 2**32)
    assert pid > 1
    assert any(gone(pid) for _ in range(2000))  # the kernel takes a moment


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_the_network_is_away_where_it_is_said_to_be(checker: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        found = check_answers(checker, ["network"], [str(server.getsockname()[1])], [[]])
    assert bool(found.scores[0]) == found.without_network


def test_a_checker_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    def fails(text: str, match: str, rows: int = 2) -> None:
        path = tmp_path / "checker.py"
        path.write_text(text)
        with pytest.raises(DataError, match=match):
            check_answers(path, ["p"] * rows, ["a"] * rows, [[]] * rows)

    fails("import nothing_of_that_name", "ModuleNotFoundError")
    fails("def check(", "SyntaxError")
    fails("x = 1", "no function check")
    fails("def check(prompt, answer): return True", "fails on all 2 rows: TypeError")
    with pytest.raises(DataError, match="no file"):
        check_answers(tmp_path / "absent.py", ["p"], ["a"], [[]])
