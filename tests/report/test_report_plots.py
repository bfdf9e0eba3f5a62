import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ontarget.report import plots, quality_plots, svg, words


def test_ticks_are_round() -> None:
    assert svg.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert svg.ticks(0.83, 0.87) == [0.83, 0.84, 0.85, 0.86, 0.87]
    assert svg.ticks(5, 5) == [5]
    assert svg.log_ticks(0.3, 12) == [0.5, 1, 2, 5, 10]
    assert svg.log_ticks(0.01, 1000) == [0.01, 0.1, 1, 10, 100, 1000]


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_inside_and_few(low: float, span: float) -> None:
    found = svg.ticks(low, low + span)
    assert 1 <= len(found) <= 12
    assert all(low - 1e-6 * span <= value <= low + span * (1 + 1e-6) for value in found)


def test_scales() -> None:
    assert [svg.linear(2, 4, 0, 100)(value) for value in (2, 3, 4)] == [0, 50, 100]
    assert svg.linear(3, 3)(3) == 50
    assert svg.logarithmic(1, 100)(10) == pytest.approx(50)


def point(name: str, latency: float, value: float, kind: str = "trial") -> dict[str, object]:
    return {"name": name, "latency_ms": latency, "value": value, "kind": kind}


def test_the_front_by_hand() -> None:
    points = [
        point("slow", 9, 0.9),
        point("fast", 1, 0.5),
        point("beaten", 5, 0.6),
        point("mid", 3, 0.7),
        point("tie", 4, 0.7),
    ]
    assert [entry["name"] for entry in plots.pareto_front(points)] == ["fast", "mid", "slow"]


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0, 1)), min_size=1, max_size=30))
def test_nothing_beats_the_front_and_it_beats_the_rest(pairs: list[tuple[float, float]]) -> None:
    points = [point(str(number), *pair) for number, pair in enumerate(pairs)]
    front = plots.pareto_front(points)
    for one in points:
        beaten = any(other["latency_ms"] <= one["latency_ms"] and other["value"] >= one["value"] for other in front)
        assert beaten  # by itself, where it is on the front
    for name in ("latency_ms", "value"):
        assert all(left[name] < right[name] for left, right in pairwise(front))


def test_points_lie_where_their_numbers_say() -> None:
    plot = plots.pareto([point("a", 1, 0.5), point("b", 100, 0.9, "chosen")], metric="accuracy", limit_ms=50)
    circle = re.search(r'cx="([\d.]+)%" cy="([\d.]+)"', plot)
    square = re.search(r'class="mark chosen diamond" x="([\d.]+)%" y="([\d.]+)"', plot)
    limit = re.search(r'class="limit" x1="([\d.]+)%"', plot)
    assert circle and square and limit
    assert float(circle[1]) < float(limit[1]) < float(square[1])
    assert float(circle[2]) > float(square[2])  # higher is nearer to the top
    assert "limit 50 ms" in plot


def test_names_are_escaped_everywhere() -> None:
    evil = '<b>"&'
    made = [
        plots.pareto([point(evil, 1, 0.5)], metric=evil, limit_ms=None),
        plots.intervals([{"name": evil, "value": 1.0, "low": 0.0, "high": 2.0, "note": evil}], label=evil),
        plots.curves([{"name": evil, "points": [(1, 0.5), (2, 0.6)]}], label=evil),
        plots.timeline([{"stage": evil, "what": evil, "start_s": 0, "seconds": 1}]),
        quality_plots.confusion([[1, 2], [0, 1]], [evil, "b"]),
        quality_plots.confusion([[1] * 30 for _ in range(30)], [evil] * 30),
    ]
    for markup in made:
        assert "<b>" not in markup
        assert "&lt;b&gt;" in markup


def test_empty_plots() -> None:
    assert plots.pareto([], metric="r2", limit_ms=None) == ""
    assert plots.intervals([{"name": "x", "value": None}], label="") == ""
    assert plots.curves([{"name": "x", "points": []}], label="") == ""
    assert plots.timeline([]) == ""
    assert plots.costs({}, 60) == ""
    assert quality_plots.confusion([], ["a"]) == ""
    assert quality_plots.reliability([]) == ""
    assert quality_plots.scatter([], []) == ""


def test_one_of_everything_is_enough() -> None:
    assert "<circle" in plots.pareto([point("a", 3, 0.5)], metric="r2", limit_ms=None)
    assert "<circle" in plots.curves([{"name": "x", "points": [(1, 0.5)]}], label="")
    assert "<circle" in quality_plots.scatter([1.0], [1.0])


def test_small_matrices_are_tables_with_shares_of_rows() -> None:
    table = quality_plots.confusion([[3, 1], [0, 2]], ["cat", "dog"])
    assert 'data-tip="cat\nright\n3 of 4 rows (75%)">3</td>' in table
    assert 'class="w3" data-tip="cat\ntaken for dog\n1 of 4 rows (25%)"' in table
    assert 'class="r10"' in table
    assert 'class="w0"' in table


def test_a_hundred_classes_draw_what_is_not_zero() -> None:
    classes = [f"class {number}" for number in range(100)]
    table = [[int(row == column) + 3 * int(column == row + 1) for column in range(100)] for row in range(100)]
    picture = quality_plots.confusion(table, classes)
    assert picture.count("<rect") == 1 + 100 + 99
    assert len(picture) < 60_000
    assert quality_plots.most_confused(table, classes)[0] == {
        "target": "class 0", "predicted": "class 1", "rows": 3, "share": 0.75
    }  # fmt: skip


def test_factors() -> None:
    assert plots.ratio_words([2.0, 0.5, 1.1]) == "within a factor of 2 for half of 3 trials, 2 at worst"
    assert plots.ratio_words([]) == ""


def test_numbers_in_words() -> None:
    assert words.number(-1234.5678, 1) == "−1,234.6"
    assert words.signed(0.5, 2) == "+0.50"
    assert (words.number(None), words.p_value(None), words.duration("x")) == ("", "", "")
    assert [words.duration(seconds) for seconds in (0.44, 12, 119.4, 200, 7500)] == [
        "0.4 s", "12 s", "119 s", "3 min 20 s", "2 h 5 min"
    ]  # fmt: skip
    assert (words.p_value(0.0004), words.p_value(0.0321)) == ("< 0.001", "0.032")
    assert words.plain(1000.0) == "1000"
