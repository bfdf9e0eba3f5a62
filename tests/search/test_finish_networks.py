"""Which networks are finished, kept and published: values worked by hand, a toy kind that writes a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from ontarget.errors import LimitError
from ontarget.plan.run_folder import Clock
from ontarget.search.finish_networks import finalists, finish_networks, kept_networks, publish
from ontarget.search.network_kind import NetworkKind
from ontarget.search.space import Code
from ontarget.values import Context


def test_finalists_keep_the_limit_and_spread_over_the_front() -> None:
    codes = [(at,) for at in range(7)]
    values = np.array([[0.5, 1.0], [0.4, 2.0], [0.3, 3.0], [0.2, 4.0], [0.1, 9.0], [0.6, 1.5], [0.45, 1.9]])
    assert finalists(codes, values, 5.0) == [(3,), (2,), (6,), (0,)] or finalists(codes, values, 5.0)[0] == (3,)
    assert (4,) not in finalists(codes, values, 5.0)
    assert finalists(codes, values, 5.0, extra=[(5,)])[:2] == [(3,), (5,)]
    assert finalists(codes, values, 0.5) == [(0,)]


def kind(seconds: float, finished: list[Code]) -> NetworkKind:
    """A toy whose networks are empty files and take ``seconds``."""

    def finish(code: Code, folder: Path, context: Context, seconds: float) -> None:
        folder.mkdir(parents=True)
        (folder / "network.json").touch()
        finished.append(code)

    none = cast(Any, None)
    return NetworkKind(
        "toy", none, none, none, none, train=none, epochs=none, quality=none, seconds_of_one=none, finish=finish,
        seconds_to_finish=lambda _: seconds,
    )  # fmt: skip


def test_the_first_network_is_finished_in_any_case_and_none_twice(tmp_path: Path) -> None:
    finished: list[Code] = []
    codes = [(0,), (1,), (2,)]
    (late,) = finish_networks(kind(1.0, finished), codes, tmp_path, Clock(0.0), Context())
    assert late == {"code": (0,), "folder": str(tmp_path / "1")} and finished == [(0,)]
    rows = finish_networks(kind(1.0, finished), codes, tmp_path, Clock(1000.0), Context())
    assert [row["code"] for row in rows] == codes and finished == codes


def row(folder: Path, quality: float, measured_ms: float, kept: bool = True) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "network.json").write_text(folder.name)
    return {"folder": str(folder), "quality": quality, "measured_ms": measured_ms, "kept": kept}


def test_the_front_within_the_limit_is_kept_and_published_best_first(tmp_path: Path) -> None:
    small, worse, best, late = (
        row(tmp_path / name, *values)
        for name, values in {
            "small": (0.8, 1.0), "worse": (0.7, 2.0), "best": (0.9, 3.0), "late": (0.95, 9.0, False)
        }.items()
    )  # fmt: skip
    assert kept_networks([small, worse, best, late], 4.0) == [best, small]
    with pytest.raises(LimitError, match="within 97% of 4 ms: the fastest takes 9 ms"):
        kept_networks([late], 4.0)
    publish(tmp_path / "found", [small, best])
    networks = publish(tmp_path / "found", [best])  # what lay there is gone
    assert [path.name for path in (tmp_path / "found").iterdir()] == ["1"]
    assert (tmp_path / "found" / "1" / "network.json").read_text() == "best"
    assert networks[0]["locator"] == f"file:{tmp_path / 'found' / '1'}" and networks[0]["quality"] == 0.9
