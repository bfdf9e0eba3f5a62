"""The latency table: corrections by an independent formula, outliers, files, devices, and a real small profile."""

from __future__ import annotations

import bisect
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ontarget.errors import LimitError, RunError, SettingError
from ontarget.latency_table import Agreement, LatencyTable, Setting, corrected, operators_of, profile
from ontarget.search.mobile_space import MobileSpace
from ontarget.search.space import operator
from ontarget.time_networks import (
    BUILDS,
    FEW_WEIGHTS,
    Maker,
    averaged,
    make_call,
    rounds_of_calls,
    time_builds,
    time_calls,
    without_outliers,
)

SMALL: dict[str, Any] = {"stages": ((4, 2, 2),), "stem_width": (4, 1), "first": 4, "head_width": 8}


def test_predictions_add_up_and_a_missing_operator_is_named() -> None:
    one, two = operator("stem", (1, 8, 8), width=4, stride=1), operator("head", (4, 4, 4), width=8, outputs=2)
    table = LatencyTable({}, Setting(), {one.key: 0.5, two.key: 0.25}, constant_ms=0.1)
    assert one.key == "stem(stride=1, width=4) 1x8x8"
    assert table.predict([one, two, two]) == pytest.approx(1.1)
    with pytest.raises(LimitError, match=r"no entry for head\(outputs=3"):
        table.predict([operator("head", (4, 4, 4), width=8, outputs=3)])


def test_corrections_recover_a_common_factor_and_an_operators_own_error() -> None:
    generator = np.random.default_rng(0)
    names = [f"op {at}" for at in range(8)]
    true = dict(zip(names, generator.uniform(1, 3, 8), strict=True))
    alone = {name: 0.8 * value for name, value in true.items()}
    alone["op 3"] = 1.5 * true["op 3"]  # timed alone it looks slower than it is among others
    networks = [[names[at] for at in generator.choice(8, 4)] for _ in range(60)]
    measured = [sum(true[name] for name in keys) for keys in networks]
    constant, found = corrected(alone, networks, measured)
    error = [abs(constant + sum(found[k] for k in keys) - ms) / ms for keys, ms in zip(networks, measured, strict=True)]
    plain = [abs(sum(alone[k] for k in keys) - ms) / ms for keys, ms in zip(networks, measured, strict=True)]
    assert max(error) < 0.01 < np.median(plain)
    assert corrected(alone, [], []) == (0.0, alone)
    assert min(found.values()) > 0


def test_rounds_that_are_far_off_are_left_out() -> None:
    assert without_outliers(np.array([1.0, 1.02, 0.98, 1.0, 9.0])) == pytest.approx(1.0)
    assert without_outliers(np.array([2.0, 2.0, 2.0])) == 2.0


def test_a_round_that_was_slow_for_all_counts_for_none() -> None:
    """Two calls of 1 and 2 ms; the third round at half the speed, and one far off in the last."""
    found = np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 4.0], [1.0, 2.0], [1.0, 2.0], [1.0, 20.0]])
    assert averaged(found[:5]) == pytest.approx([1.0, 2.0])
    one, two = averaged(found)
    assert two / one == pytest.approx(2.0)
    assert averaged(np.array([[1.0], [1.1], [0.9], [9.0]])) == pytest.approx([1.0])


def test_a_core_whose_speed_changes_does_not_change_the_ratio_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of its own: the core is half as fast for spells of 50 ms on average."""
    from ontarget import time_networks

    lengths = np.array([0.5, 0.6, 0.7, 0.8, 0.55, 0.65, 0.75, 3.0])

    def errors(paired: bool) -> float:
        jumps = np.cumsum(np.random.default_rng(0).exponential(50.0, 20000))
        now = [0.0]

        def work(ms: float) -> None:
            slow = bisect.bisect(jumps, now[0]) % 2  # a call is short against a spell
            now[0] += ms * (2 if slow else 1)

        with monkeypatch.context() as patch:
            patch.setattr(time_networks.time, "perf_counter", lambda: now[0] / 1000)
            patch.setattr(time_networks, "PAIRED_MS", 50.0 if paired else 0.0)
            found = averaged(rounds_of_calls([partial(work, ms) for ms in lengths], Setting("pytorch")))
        return float(np.std(np.log(np.array(found) / lengths)))

    assert errors(paired=True) < 0.02 < 0.04 < errors(paired=False)


def test_agreement_by_hand() -> None:
    found = Agreement((1.0, 2.0, 3.0, 4.0), (1.0, 2.5, 2.4, 5.0))
    assert found.kendall == pytest.approx((5 - 1) / 6)
    assert found.median_error == pytest.approx(np.median([0, 0.2, 0.25, 0.2]))


@pytest.mark.parametrize("runtime", ["onnxruntime", "pytorch"])
def test_a_real_profile_covers_the_space_and_survives_its_file(runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    space = MobileSpace(image_size=8, channels=1, outputs=2, **SMALL).eval()
    said: list[str] = []
    from ontarget.values import Context

    table = profile(
        space, Setting(runtime), fitted=3, checked=13,  # type: ignore[arg-type]
        context=Context(progress=lambda done, total, what: said.append(what)),
    )  # fmt: skip
    assert set(table.operators) == set(operators_of(space))
    assert len(table.operators) == 3 + 6 + 6  # stem, first, head; two edges of six blocks each
    assert all(value > 0 for value in table.operators.values())
    assert len(table.agreement.measured_ms) == 13 and table.agreement.median_error < 1
    assert {"timing operators", "timing whole networks"} <= set(said)
    path = table.save(tmp_path / "table.json")
    again = LatencyTable.load(path)
    assert again == table
    again.check_device()
    with pytest.raises(RunError, match="cpu is 'Other"):
        LatencyTable({**table.device, "cpu": "Other CPU"}, table.setting, {}).check_device()


def test_networks_timed_in_groups_are_set_to_one_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many weights to be held together; the machine is 1.3 times slower with every group."""
    from ontarget import latency_table

    torch.manual_seed(0)
    space = MobileSpace(image_size=8, channels=1, outputs=2, **SMALL).eval()
    groups: list[int] = []

    def timed(makers: Any, *_: Any, **__: Any) -> list[float]:
        groups.append(len(makers))
        return [1.3 ** len(groups) * maker.weights for maker in makers]

    monkeypatch.setattr(latency_table, "time_builds", timed)
    whole = profile(space, fitted=6, checked=12).agreement
    assert len(groups) == 2
    largest = sum(weight.numel() for weight in space.slice((5, 5)).parameters())
    monkeypatch.setattr(latency_table, "MOST_WEIGHTS", 3 * largest)
    parts = profile(space, fitted=6, checked=12).agreement
    assert len(groups) > 6 and min(groups[3:]) >= 2
    ratios = np.array(parts.measured_ms) / whole.measured_ms
    np.testing.assert_allclose(ratios, ratios[0])


def test_larger_operators_are_slower_and_calls_run_what_they_should() -> None:
    from ontarget.search.operators import build_operator, operator_input

    small = operator("mbconv", (8, 8, 8), out=8, kernel=3, expansion=3, stride=1, residual=1)
    large = operator("mbconv", (64, 32, 32), out=64, kernel=7, expansion=6, stride=1, residual=1)
    for setting in (Setting("pytorch"), Setting("onnxruntime"), Setting("onnxruntime", precision="int8")):
        calls = [make_call(build_operator(one), operator_input(one, 1), setting) for one in (small, large)]
        times = time_calls(calls, setting, rounds=3)
        assert times[1] > 5 * times[0] > 0
    with pytest.raises(SettingError, match="'mbconf' is no kind"):
        build_operator(operator("mbconf", (1, 1)))


class Unheard(torch.nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(values)


def test_an_operator_that_the_runtime_lacks_is_named() -> None:
    with pytest.raises(LimitError, match="cannot run Unheard"):
        make_call(Unheard(), (torch.ones(1, 3),), Setting("onnxruntime"))
    make_call(Unheard(), (torch.ones(1, 3),), Setting("pytorch"))()


def test_settings_and_files_are_checked(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="runtime is 'tflite'"):
        Setting("tflite")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="bfloat16' with onnxruntime"):
        Setting("onnxruntime", precision="bfloat16")
    with pytest.raises(SettingError, match="threads is 0"):
        Setting(threads=0)
    path = tmp_path / "t.json"
    for content in ("{", "[]", "{}", json.dumps({"version": 9})):
        path.write_text(content)
        with pytest.raises(RunError, match="latency table"):
            LatencyTable.load(path)
    good = LatencyTable({}, Setting(), {"a": 1.0})
    broken = json.loads(good.save(path).read_text())
    broken["operators"]["a"] = "fast"
    path.write_text(json.dumps(broken))
    with pytest.raises(RunError, match="the entry of a is 'fast'"):
        LatencyTable.load(path)
    with pytest.raises(RunError, match="no latency table"):
        LatencyTable.load(tmp_path / "none.json")


def test_small_networks_are_built_several_times_and_large_ones_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []

    class Counted(Maker):
        def call(self) -> Any:
            built.append(self.weights)
            return super().call()

    for runtime in ("pytorch", "onnxruntime"):
        setting = Setting(runtime)  # type: ignore[arg-type]
        makers = [Counted(torch.nn.Linear(4, 4), (torch.ones(1, 4),), setting) for _ in range(2)]
        times = time_builds(makers, setting)
        assert len(built) == 2 * BUILDS[setting.runtime] and all(value > 0 for value in times)
        built.clear()
        for maker in makers:
            maker.weights = FEW_WEIGHTS + 1
        time_builds(makers, setting)
        assert len(built) == 2
        built.clear()
    first, second = (makers[0].call() for _ in range(2))
    np.testing.assert_array_equal(first()[0], second()[0])
