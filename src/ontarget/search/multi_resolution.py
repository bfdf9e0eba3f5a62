"""The search space of FBNetV5: resolution branches in parallel, one bit for every block and every fusion edge.

Bichen Wu, Chaojian Li, Hang Zhang, Xiaoliang Dai, Peizhao Zhang, Matthew Yu, Jialiang Wang, Yingyan Lin, Peter Vajda,
"FBNetV5: Neural Architecture Search for Multiple Tasks in One Run", 2021, arXiv 2111.10007. Official code: none.
Claim: topology alone, with the parent's channels and kernels, is room enough for one backbone to suit several tasks.
Left out: FBNetV3-A as the parent; here a small residual network of any width (choice).
Checked in tests/search/test_multi_resolution.py (hand-worked MACs, PyTorch's flop counter, slices against the whole).

    images -> stem -> branch 0 (half resolution)      stage 0: entry edges 0 -> r, then the branches' blocks
                      branch 1 (a quarter)            stage s: fusion edges r <-> r + 1, then the branches' blocks
                      branch 2 (an eighth), ...       a head adds up its projections of all branches there are

A block with bit 0 is a skip; an edge with bit 0 is dropped. A branch that no edge has reached does not exist: its bits
are without effect. The default has 12 bits: 2 + 4 edges, 6 blocks.
`parts.resolution_network` is a code's plain network.

>>> network = MultiResolution({"garment": ("classification", 10)})
>>> len(network.slots), network.canonical((0,) * 4 + (1,) * 8)
(12, (0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 0))
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ontarget.errors import SettingError
from ontarget.parts.resolution_network import (
    KINDS,
    Residual,
    Topology,
    canonical,
    edge,
    enlarge,
    layout,
    projection,
    scale_of,
    stem,
)
from ontarget.search.space import Code, Operator, Slot, operator


class MultiResolution(nn.Module):
    """The super-network, an `ElasticNetwork`: all blocks with shared weights, and the topologies in it.

    heads: task -> (kind, outputs), kind one of "classification", "segmentation", "heat_map". widths: channels of the
    branches, the finest first. stages: 1 or more. blocks: of a branch in a stage. size: pixels of a side, a multiple
    of 2 ** branches. forward: images, code -> {task: output} as in `Topology`, with the blocks that the code keeps.
    Its BatchNorm statistics belong to no topology: recalibrate them before evaluating one.
    Raises SettingError: values out of range; a code of another length or with other values than 0 and 1.
    """

    def __init__(
        self,
        heads: Mapping[str, tuple[str, int]],
        *,
        widths: Sequence[int] = (8, 16, 32),
        stages: int = 2,
        blocks: int = 1,
        size: int = 48,
        channels: int = 1,
    ) -> None:
        super().__init__()
        if not heads or any(kind not in KINDS or outputs < 1 for kind, outputs in heads.values()):
            raise SettingError(
                f"heads are {dict(heads)}.", allowed=f"kind {', '.join(KINDS)}; 1 output or more",
                option="heads",
            )  # fmt: skip
        if not widths or min(stages, blocks, channels, size, *widths) < 1 or size % 2 ** len(widths):
            raise SettingError(
                f"widths {tuple(widths)}, stages {stages}, blocks {blocks}, channels {channels}, size {size}.",
                allowed=f"1 or more; size a multiple of {2 ** len(widths)}", option="widths, stages, blocks, size",
            )  # fmt: skip
        self._settings: dict[str, Any] = {
            "channels": channels, "size": size, "widths": list(widths), "stages": stages, "blocks": blocks,
            "heads": {task: list(head) for task, head in heads.items()},
        }  # fmt: skip
        self.blocks = layout(len(widths), stages, blocks)
        self.slots = tuple(Slot(block.name, 2, ("off", "on")) for block in self.blocks)
        self.whole = Topology({**self._settings, "code": [1] * len(self.blocks)})

    def forward(self, images: Tensor, code: Code) -> dict[str, Tensor]:
        return self.whole.run(images, self.canonical(code))

    def canonical(self, code: Code) -> Code:
        """The code with the bits of blocks and edges that nothing reaches set to 0."""
        return canonical(self.blocks, code)

    def config(self, code: Code, tasks: Iterable[str] | None = None) -> dict[str, Any]:
        """What `build` needs for this topology; JSON-able. tasks: whose heads to keep, all by default."""
        known = self._settings["heads"]
        kept = tuple(known if tasks is None else tasks)
        if not kept or any(task not in known for task in kept):
            raise SettingError(f"tasks are {kept}.", allowed=", ".join(known), option="tasks")
        return {**self._settings, "heads": {task: known[task] for task in kept}, "code": list(self.canonical(code))}

    def slice(self, code: Code, tasks: Iterable[str] | None = None) -> Topology:
        """The topology as a network of its own, in evaluation mode, with copies of the weights."""
        network = build(self.config(code, tasks))
        shared = self.whole.state_dict()
        network.load_state_dict({name: shared[name] for name in network.state_dict()})
        return network.eval()

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        """Images (batch_size, channels, size, size) for timing and export."""
        size = self._settings["size"]
        return (torch.zeros(batch_size, self._settings["channels"], size, size),)

    def operators(self, code: Code, tasks: Iterable[str] | None = None) -> tuple[Operator, ...]:
        """What a topology runs: the stem, its blocks and edges in their order, its heads. `operator_module` makes each.

        The sums of branches and of projections are in none of them.
        """
        config = self.config(code, tasks)
        widths, half = config["widths"], config["size"] // 2
        shapes = [(width, half >> branch, half >> branch) for branch, width in enumerate(widths)]
        found = [operator("resolution_stem", (config["channels"], 2 * half, 2 * half), out=widths[0])]
        kept = [block for block, bit in zip(self.blocks, config["code"], strict=True) if bit]
        for _, source, target in kept:
            shape, steps = shapes[source], target - source
            if not steps:
                found.append(operator("resolution_block", shape))
            else:
                found.append(
                    operator("resolution_edge", shape, out=widths[target], down=max(steps, 0), up=max(-steps, 0))
                )
        for kind, outputs in config["heads"].values():
            for branch in sorted({0} | {block.target for block in kept}):
                scale = scale_of(kind, branch)
                found.append(operator("resolution_projection", shapes[branch], out=outputs, scale=scale))
            if kind == "segmentation":
                found.append(operator("resolution_enlarge", (outputs, half, half), scale=2))
        return tuple(found)

    def macs(self, code: Code, tasks: Iterable[str] | None = None) -> int:
        """Multiply-accumulates of a topology's convolutions and linear layers for one image."""
        return sum(operator_macs(part) for part in self.operators(code, tasks))


def build(config: Mapping[str, Any]) -> Topology:
    """A new network with random weights from `MultiResolution.config`."""
    return Topology(config)


def operator_macs(part: Operator) -> int:
    """Multiply-accumulates of an operator of this space for one image; resizing and BatchNorm count none."""
    of, (width, *sides) = dict(part.settings), part.shape
    pixels = math.prod(sides)
    macs: dict[str, int] = {
        "resolution_stem": 9 * width * of.get("out", 0) * pixels // 4,
        "resolution_block": 2 * 9 * width * width * pixels,
        "resolution_edge": width * of.get("out", 0) * pixels // 4 ** of.get("down", 0),
        "resolution_projection": width * of.get("out", 0) * (pixels if of.get("scale") else 1),
        "resolution_enlarge": 0,
    }
    return macs[part.kind]


def operator_module(part: Operator) -> nn.Module:
    """The module of an operator of this space, with random weights."""
    of, width = dict(part.settings), part.shape[0]
    if part.kind == "resolution_stem":
        return stem(width, of["out"])
    if part.kind == "resolution_block":
        return Residual(width)
    if part.kind == "resolution_edge":
        return edge(width, of["out"], of["down"], of["up"])
    return projection(width, of["out"], of["scale"]) if part.kind == "resolution_projection" else enlarge(of["scale"])
