"""Merging rules by hand and against sorting; windows of magnitudes in parts; one model at weight 1."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ontarget.errors import DataError, SettingError
from ontarget.merge.average import average
from ontarget.merge.breadcrumbs import breadcrumbs
from ontarget.merge.dare import dare
from ontarget.merge.magnitude_window import MagnitudeWindow
from ontarget.merge.number_types import from_float32, is_finite, magnitude_bits, to_float32
from ontarget.merge.task_arithmetic import task_arithmetic
from ontarget.merge.ties import ties

BASE = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
ONE = BASE + torch.tensor([0.5, -0.1, 0.3, 0.0, -0.9])
TWO = BASE + torch.tensor([-0.2, -0.3, 0.8, 0.05, 0.4])
METHODS: dict[str, Callable[..., torch.Tensor]] = {
    "task_arithmetic": task_arithmetic, "ties": ties, "dare": dare, "dare_ties": partial(dare, elect_signs=True),
    "breadcrumbs": breadcrumbs,
}  # fmt: skip


def close(found: torch.Tensor, expected: Any) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float32), atol=1e-6, rtol=1e-5)


def test_averages_and_sums_by_hand() -> None:
    close(average([ONE, TWO], weights=[1, 3]), (ONE + 3 * TWO) / 4)
    close(average([ONE, TWO], weights=[0.5, 0.25], normalize=False), 0.5 * ONE + 0.25 * TWO)
    close(task_arithmetic(BASE, [ONE, TWO], weights=[1, 0.5]), BASE + (ONE - BASE) + 0.5 * (TWO - BASE))
    close(
        task_arithmetic(BASE, [ONE, TWO], weights=[1, 3], normalize=True, scale=2),
        BASE + (ONE + 3 * TWO - 4 * BASE) / 2,
    )
    with pytest.raises(SettingError, match="add up to 0"):
        average([ONE, TWO], weights=[1, -1])


def test_ties_by_hand() -> None:
    # Three of five are kept: (0.5, 0, 0.3, 0, -0.9) and (0, -0.3, 0.8, 0, 0.4). Signs: + - + + -; the last: -0.9 alone.
    close(ties(BASE, [ONE, TWO], weights=[1, 1], density=0.6), BASE + torch.tensor([0.5, -0.3, 0.55, 0.0, -0.9]))
    # Weights decide the sign too: 0.4 * 3 > 0.9, and they weigh the mean.
    close(ties(BASE, [ONE, TWO], weights=[1, 3], density=0.6), BASE + torch.tensor([0.5, -0.3, 2.7 / 4, 0.0, 0.4]))


def test_breadcrumbs_by_hand() -> None:
    # A fifth are outliers (0.9; 0.8), two fifths are kept (0.5, 0.3; 0.4, 0.3).
    found = breadcrumbs(BASE, [ONE, TWO], weights=[0.5, 0.5], density=0.4, gamma=0.2)
    close(found, BASE + 0.5 * torch.tensor([0.5, -0.3, 0.3, 0.0, 0.4]))
    # Three entries of a kernel hold no 15%: they are left whole, not wiped out.
    close(breadcrumbs(BASE[:3], [ONE[:3], TWO[:3]], weights=[1, 1]), ONE[:3] + TWO[:3] - BASE[:3])


def test_dare_keeps_the_mean_and_drops_a_share() -> None:
    base, model = torch.zeros(20_000), torch.ones(20_000)
    found = dare(base, [model, model], weights=[1, 0.5], density=0.25)
    assert set(np.round(found.unique().numpy(), 4)) == {0.0, 2.0, 4.0, 6.0}
    assert float(found.mean()) == pytest.approx(1.5, abs=0.05)
    assert torch.equal(found, dare(base, [model, model], weights=[1, 0.5], density=0.25))
    assert not torch.equal(found, dare(base, [model, model], weights=[1, 0.5], density=0.25, seed=1))


@pytest.mark.parametrize("name", [*METHODS, "average"])
def test_one_model_at_weight_1_is_itself(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    base, one, two = (torch.randn(400, generator=generator).to(torch.bfloat16) for _ in range(3))
    merge = METHODS[name] if name in METHODS else lambda base, models, **more: average(models, **more)
    assert torch.equal(merge(base, [one, two], weights=[1, 0]).to(torch.bfloat16), one)
    assert torch.equal(merge(base, [two], weights=[1.0]).to(torch.bfloat16), two)


@pytest.mark.parametrize("name", METHODS)
def test_bad_input_is_named(name: str) -> None:
    merge = METHODS[name]
    with pytest.raises(DataError, match=r"model 2 has shape \(3,\), model 1 \(5,\)"):
        merge(BASE, [ONE, TWO[:3]], weights=[1, 1])
    with pytest.raises(DataError, match="model 2 has values that are not finite"):
        merge(BASE, [ONE, torch.full((5,), np.nan)], weights=[1, 1])
    with pytest.raises(SettingError, match="2 models and 1 weights"):
        merge(BASE, [ONE, TWO], weights=[1])
    if name != "task_arithmetic":
        with pytest.raises(SettingError, match=r"(?s)density is 0.*above 0 to 1"):
            merge(BASE, [ONE, TWO], weights=[1, 1], density=0.0)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 60), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.integers(1, 17), st.booleans(), st.booleans(),
)  # fmt: skip
def test_a_window_in_parts_is_that_of_a_stable_sort(
    seed: int, count: int, dtype: torch.dtype, part: int, equal: bool, earlier_first: bool
) -> None:
    """Equal magnitudes too: an ascending sort takes the earlier first, a descending one counts it as larger."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=count) if not equal else generator.integers(-3, 4, count) / 4
    tensor = torch.from_numpy(values).to(dtype)
    first, last = sorted(int(at) for at in generator.integers(0, count + 1, 2))
    kind = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    parts = [magnitude_bits(one.float().numpy(), kind) for one in tensor.split(part)]
    window = MagnitudeWindow(lambda: parts, count, first, last, earlier_first=earlier_first)
    found = torch.from_numpy(np.concatenate([window(one) for one in parts]))
    order = torch.sort(tensor.abs().float(), descending=earlier_first, stable=True).indices
    expected = torch.zeros(count, dtype=torch.bool)
    expected[order[count - last : count - first] if earlier_first else order[first:last]] = True
    assert torch.equal(found, expected)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1))
def test_bfloat16_is_rounded_as_torch_does(values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)
    expected = torch.from_numpy(array).to(torch.bfloat16)
    stored = from_float32(array, "BF16")
    assert np.array_equal(stored.view(np.int16), expected.view(torch.int16).numpy())
    assert np.array_equal(to_float32(stored, "BF16"), expected.float().numpy())
    assert is_finite(stored, "BF16")
    stored[-1] = 0x7FC0
    assert not is_finite(stored, "BF16")
