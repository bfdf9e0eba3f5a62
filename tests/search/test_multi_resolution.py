"""The super-network of resolution branches: hand-worked MACs, PyTorch's flop counter, slices against the whole.

And the garment scenes that its claim uses.
"""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from ontarget.data.garment_scenes import garment_scenes, heat_maps
from ontarget.errors import SettingError
from ontarget.search.fbnetv5 import Chosen
from ontarget.search.multi_resolution import MultiResolution, build, operator_macs, operator_module
from ontarget.search.retrain import recalibrate

HEADS = {"garment": ("classification", 10), "pixels": ("segmentation", 11), "centres": ("heat_map", 1)}
FULL = (1,) * 12
CODES = st.tuples(*[st.integers(0, 1)] * 12)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return MultiResolution(HEADS, widths=(4, 6, 8), size=16)


def images(rows=4, seed=0):
    return torch.randn(rows, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_twelve_bits_of_two_choices(network):
    assert len(network.slots) == 12 and {slot.choices for slot in network.slots} == {2}
    assert sum("_to_" in slot.name for slot in network.slots) == 6
    assert len({slot.name for slot in network.slots}) == 12


def test_canonical_by_hand(network):
    # Order: 0>1, 0>2, three blocks, 0>1, 1>0, 1>2, 2>1, three blocks.
    assert network.canonical(FULL) == FULL
    unreached = (0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1)
    assert network.canonical(unreached) == (0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0)
    # Branch 1 arises in stage 1: the edge 1>2 of the same stage finds nothing to carry yet, its block does.
    late = (0, 0, 0, 1, 0, 1, 0, 1, 0, 0, 1, 1)
    assert network.canonical(late) == (0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
    assert network.canonical((0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0)) == (0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0)


@settings(max_examples=15, deadline=None)
@given(CODES)
def test_a_bit_has_effect_exactly_where_canonical_keeps_it(network, code):
    reduced = network.canonical(code)
    assert network.canonical(reduced) == reduced
    network.train()
    with torch.no_grad():
        reference = network(images(), reduced)
        for slot, bit in enumerate(reduced):
            if bit:
                changed = network(images(), (*reduced[:slot], 0, *reduced[slot + 1 :]))
                assert any(not torch.equal(changed[task], reference[task]) for task in HEADS)
        same = network(images(), code)
    assert all(torch.equal(same[task], reference[task]) for task in HEADS)


@settings(max_examples=15, deadline=None)
@given(CODES)
def test_a_slice_computes_what_the_whole_does_and_holds_no_dropped_block(network, code):
    recalibrate(Chosen(network, code), TensorDataset(images(8, 1)))
    slice_ = network.slice(code)
    assert not slice_.training
    with torch.no_grad():
        expected, found = network(images(), code), slice_(images())
    assert all(torch.allclose(expected[task], found[task], atol=1e-6) for task in HEADS)
    kept = {slot.name for slot, bit in zip(network.slots, network.canonical(code), strict=True) if bit}
    assert set(slice_.parts) == kept
    with FlopCounterMode(display=False) as counter:
        slice_(images(1))
    assert network.macs(code) == counter.get_total_flops() / 2


def test_macs_by_hand(network):
    """Branches of 8 x 8, 4 x 4 and 2 x 2 pixels with 4, 6 and 8 channels; one pixel of a 3 x 3 stem is 9 x 4."""
    stem, classify = 64 * 9 * 4, 4 * 10
    assert network.macs((0,) * 12, ["garment"]) == stem + classify
    assert network.macs((0,) * 12) == stem + classify + 64 * 4 * 11 + 64 * 4
    block = (0, 0, 1) + (0,) * 9
    assert network.macs(block, ["garment"]) == stem + classify + 2 * 64 * 9 * 4 * 4
    down = (1,) + (0,) * 11  # pooled first, so 4 x 4 pixels; branch 1 adds its projection to the head
    assert network.macs(down, ["garment"]) == stem + classify + 16 * 4 * 6 + 6 * 10
    up = (1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0)
    assert network.macs(up, ["garment"]) == network.macs(down, ["garment"]) + 16 * 6 * 4


def test_operators_are_the_parts_of_the_slice(network):
    """Their modules have the slice's weights one for one, run on their shapes, and take the slice's operations."""
    code = (1, 1, 1, 0, 1, 0, 1, 1, 0, 0, 1, 1)
    operators = network.operators(code)
    modules = [operator_module(operator).eval() for operator in operators]
    expected = sorted(tuple(value.shape) for value in network.slice(code).parameters())
    assert sorted(tuple(value.shape) for module in modules for value in module.parameters()) == expected
    for operator, module in zip(operators, modules, strict=True):
        with FlopCounterMode(display=False) as counter:
            module(torch.zeros(1, *operator.shape))
        assert operator_macs(operator) == counter.get_total_flops() / 2
    assert operators[0].key == "resolution_stem(out=4) 1x16x16"
    assert network.example(3)[0].shape == (3, 1, 16, 16)


def test_config_builds_the_slice_again(network):
    code = network.canonical((1, 1, 0, 1, 0, 1, 1, 0, 1, 0, 1, 1))
    copy = build(json.loads(json.dumps(network.config(code, ["centres"]))))
    original = network.slice(code, ["centres"])
    copy.load_state_dict(original.state_dict())
    with torch.no_grad():
        assert torch.equal(copy.eval()(images())["centres"], original(images())["centres"])


def test_weights_are_copies(network):
    slice_ = network.slice(FULL)
    before = network.whole.stem[0].weight.clone()
    slice_.stem[0].weight.data.add_(1.0)
    assert torch.equal(network.whole.stem[0].weight, before)


def test_shapes_of_the_outputs(network):
    found = network(images(), FULL)
    assert {task: tuple(output.shape) for task, output in found.items()} == {
        "garment": (4, 10), "pixels": (4, 11, 16, 16), "centres": (4, 1, 8, 8),
    }  # fmt: skip


def test_blocks_train_only_where_the_code_keeps_them():
    network = MultiResolution({"garment": ("classification", 3)}, widths=(4, 6), size=8)
    code = network.canonical((1, 1, 0, 0, 0, 0, 1))
    network(torch.randn(2, 1, 8, 8), code)["garment"].sum().backward()
    trained = {name.split(".")[0] for name, value in network.whole.parts.named_parameters() if value.grad is not None}
    assert trained == {slot.name for slot, bit in zip(network.slots, code, strict=True) if bit}


def test_more_stages_and_blocks():
    network = MultiResolution({"garment": ("classification", 3)}, widths=(4, 4), stages=3, blocks=2, size=8)
    assert len(network.slots) == 1 + 2 * 2 + 3 * 2 * 2
    assert network(torch.randn(2, 1, 8, 8), (1,) * len(network.slots))["garment"].shape == (2, 3)


def test_recalibration_gives_the_statistics_of_this_topology():
    torch.manual_seed(0)
    network = MultiResolution({"garment": ("classification", 3)}, widths=(4, 6), size=8)
    pixels, on, off = torch.randn(16, 1, 8, 8), (1, 1, 1, 0, 0, 1, 1), (1, 0, 1, 0, 0, 1, 1)
    found = {}
    for code in (on, off):
        recalibrate(Chosen(network, code), TensorDataset(pixels))
        norm = network.whole.parts["stage1_branch0_block0"].body[1]
        found[code] = norm.running_mean.clone()
        slice_ = network.slice(code).train()
        with torch.no_grad():
            features = slice_.stem(pixels)
            if code == on:
                features = slice_.parts["stage0_branch0_block0"](features)
            seen = slice_.parts["stage1_branch0_block0"].body[0](features).mean((0, 2, 3))
        assert torch.allclose(found[code], seen, atol=1e-5)
    assert not torch.allclose(found[on], found[off], atol=1e-2)


@pytest.mark.parametrize(
    "settings_",
    [{"heads": {}}, {"heads": {"x": ("regression", 1)}}, {"heads": HEADS, "size": 20}, {"heads": HEADS, "stages": 0}],
)
def test_settings_out_of_range(settings_):
    with pytest.raises(SettingError):
        MultiResolution(settings_.pop("heads"), **settings_)


def test_codes_and_tasks_out_of_range(network):
    for code in ((1,) * 11, (2,) * 12):
        with pytest.raises(SettingError, match="each 0 or 1"):
            network.canonical(code)
    with pytest.raises(SettingError, match="garment"):
        network.slice(FULL, ["nothing"])


def squares():
    """In place of Fashion-MNIST, which must be fetched: garment k is a square as bright as 20 (k + 1)."""
    labels = np.arange(50) % 10
    shapes = np.zeros((50, 28, 28), np.uint8)
    shapes[:, 4:24, 4:24] = (20 * (labels + 1))[:, None, None]
    return shapes, labels


def test_scenes_agree_with_themselves():
    scenes = garment_scenes(60, seed=3, garments=squares())
    assert scenes.images.shape == (60, 48, 48) and scenes.images.dtype == np.uint8
    counts = np.isfinite(scenes.centres[..., 0]).sum(1)
    assert set(counts) == {1, 2, 3, 4}
    for number in range(60):
        owners = np.bincount(scenes.pixels[number].ravel(), minlength=11)
        assert (scenes.images[number][scenes.pixels[number] == 0] == 0).all()
        assert scenes.largest[number] + 1 in np.flatnonzero(owners)
        assert (owners[1:] > 0).sum() <= counts[number]
        if counts[number] == 1:
            rows, columns = np.nonzero(scenes.pixels[number])
            assert [rows.mean() + 0.5, columns.mean() + 0.5] == pytest.approx(scenes.centres[number, 0], abs=0.6)
            assert owners[scenes.largest[number] + 1] == owners[1:].sum()
    inside = scenes.pixels > 0  # the brightness tells which garment a pixel shows, but for blended borders
    bright = scenes.images[inside] == 20 * scenes.pixels[inside]
    assert bright.mean() > 0.7


def test_scenes_depend_on_seed_and_split_alone():
    first, again = (garment_scenes(5, seed=1, garments=squares()) for _ in range(2))
    assert np.array_equal(first.images, again.images) and np.array_equal(first.pixels, again.pixels)
    for settings_ in ({"seed": 2}, {"seed": 1, "split": "test"}):
        other = garment_scenes(5, garments=squares(), **settings_)
        assert not np.array_equal(first.images, other.images)
    with pytest.raises(SettingError, match="validation"):
        garment_scenes(5, split="dev")
    with pytest.raises(SettingError, match="1 or more"):
        garment_scenes(0)


def test_heat_maps_by_hand():
    centres = np.array([[[5.0, 9.0], [np.nan, np.nan]], [[5.0, 9.0], [5.0, 13.0]]])
    heat = heat_maps(centres, size=16, stride=2, sigma=1.0)
    assert heat.shape == (2, 8, 8) and heat.dtype == np.float32
    assert heat[0, 2, 4] == 1.0 and heat[0, 2, 5] == pytest.approx(np.exp(-0.5))
    assert heat[0, 3, 5] == pytest.approx(np.exp(-1.0)) and heat[0, 2, 6] == pytest.approx(np.exp(-2.0))
    assert heat[1, 2, 6] == 1.0 and heat[1, 2, 5] == pytest.approx(np.exp(-0.5))  # the larger, not the sum
    with pytest.raises(SettingError):
        heat_maps(centres, size=16, stride=3)
