"""Extremes of a space and what a limit rules out, on a toy whose times are worked by hand."""

from __future__ import annotations

import pytest

from ontarget.errors import LimitError
from ontarget.latency_table import LatencyTable, Setting
from ontarget.search.network_latency import check_reachable, extremes, fastest_ms, left_for_network
from ontarget.search.space import Code, Operator, Slot, operator
from ontarget.testing.toy_space import ToySpace


class Layers(ToySpace):
    """A toy: one layer or two, each of one of three widths."""

    slots = (Slot("depth", 2), Slot("width 0", 3), Slot("width 1", 3))

    def canonical(self, code: Code) -> Code:
        return (*code[:2], code[2] if code[0] else 0)

    def operators(self, code: Code) -> tuple[Operator, ...]:
        return tuple(operator("layer", (4,), at=at, width=code[at + 1]) for at in range(code[0] + 1))


TIMES = {(0, 0): 3.0, (0, 1): 1.0, (0, 2): 2.0, (1, 0): 0.5, (1, 1): 4.0, (1, 2): 0.25}
TABLE = LatencyTable(
    {}, Setting(), {operator("layer", (4,), at=at, width=width).key: ms for (at, width), ms in TIMES.items()}, 0.5
)


def test_the_extremes_are_the_fastest_and_the_slowest_network() -> None:
    assert extremes(Layers(), TABLE) == ((0, 1, 0), (1, 0, 1))
    assert fastest_ms(Layers(), TABLE) == 1.5
    assert TABLE.predict(Layers().operators((1, 0, 1))) == 7.5


def test_a_limit_below_the_fastest_network_is_refused() -> None:
    check_reachable(Layers(), TABLE, 1.5)
    with pytest.raises(LimitError, match=r"1\.4 ms cannot be reached.* takes 1\.5 ms") as raised:
        check_reachable(Layers(), TABLE, 1.4)
    assert raised.value.option == "--latency-ms"


def test_a_table_of_another_space_is_refused_without_a_limit_too() -> None:
    check_reachable(Layers(), TABLE, None)
    with pytest.raises(LimitError, match="has no entry for layer") as raised:
        check_reachable(Layers(), LatencyTable({}, Setting(), {}), None)
    assert raised.value.option == "--table"


def test_preprocessing_is_taken_off_the_limit() -> None:
    assert left_for_network(5.0, 2.0) == 3.0
    with pytest.raises(LimitError, match=r"preprocessing alone takes 2 ms"):
        left_for_network(2.0, 2.0)
