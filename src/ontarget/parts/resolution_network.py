"""A plain network of resolution branches from a config of JSON values: what one topology of FBNetV5's space runs.

Bichen Wu and others, "FBNetV5", 2021, arXiv 2111.10007; see `search.multi_resolution` for the space that such configs
come from. Nothing here knows about search: a network is built, trained and loaded from its config alone.
Checked in tests/search/test_multi_resolution.py and tests/parts/test_resolution_network.py.

    images -> stem -> branch 0 (half resolution)      stage 0: entry edges 0 -> r, then the branches' blocks
                      branch 1 (a quarter)            stage s: fusion edges r <-> r + 1, then the branches' blocks
                      branch 2 (an eighth), ...       a head adds up its projections of all branches there are

config: ``channels`` of the images; ``widths`` of the branches, the finest first; ``stages``; ``blocks`` of a branch in
a stage; ``heads`` {task: [kind, outputs]}; ``code``, a bit for each of `layout`'s slots. Other keys are not looked at.

>>> config = {"channels": 1, "widths": [8, 16], "stages": 1, "blocks": 1, "heads": {"garment": ["classification", 10]}}
>>> TaskNetwork({**config, "code": [1, 1, 0]}).features(torch.zeros(2, 1, 16, 16)).shape
torch.Size([2, 24])
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ontarget.errors import SettingError

KINDS = ("classification", "segmentation", "heat_map")
Code = tuple[int, ...]


class Block(NamedTuple):
    """A residual block (source = target) or a fusion edge between two branches."""

    name: str
    source: int
    target: int


class Residual(nn.Module):
    """relu(x + two 3 x 3 convolutions with BatchNorm)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        return torch.relu(features + self.body(features))


class Head(nn.Module):
    """A task's outputs: the sum of one linear projection of each branch; for segmentation as large as the images."""

    def __init__(self, kind: str, widths: Sequence[int], outputs: int, branches: Iterable[int]) -> None:
        super().__init__()
        self.projections = nn.ModuleDict(
            {str(branch): projection(widths[branch], outputs, scale_of(kind, branch)) for branch in branches}
        )
        self.enlarge = enlarge(2) if kind == "segmentation" else nn.Identity()

    def forward(self, branches: Mapping[int, Tensor]) -> Tensor:
        parts = [self.projections[str(branch)](features) for branch, features in sorted(branches.items())]
        total: Tensor = self.enlarge(sum(parts[1:], parts[0]))
        return total


class Topology(nn.Module):
    """A plain network with the blocks of one code; what was dropped does not exist.

    forward: images (B, channels, size, size) float -> {task: output}; (B, C) for classification, (B, C, size, size)
    for segmentation, (B, C, size / 2, size / 2) for heat maps; logits all of them.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        widths = tuple(config["widths"])
        self.blocks = layout(len(widths), config["stages"], config["blocks"])
        self.code = canonical(self.blocks, config["code"])
        kept = [block for block, bit in zip(self.blocks, self.code, strict=True) if bit]
        self.stem = stem(config["channels"], widths[0])
        self.parts = nn.ModuleDict({block.name: _part(block, widths) for block in kept})
        alive = sorted({0} | {block.target for block in kept})
        self.heads = nn.ModuleDict(
            {task: Head(kind, widths, outputs, alive) for task, (kind, outputs) in config["heads"].items()}
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.run(images, self.code)

    def run(self, images: Tensor, code: Code) -> dict[str, Tensor]:
        """Outputs of a canonical code's network; all blocks that it keeps must be there."""
        branches = self.branches(images, code)
        return {task: head(branches) for task, head in self.heads.items()}

    def branches(self, images: Tensor, code: Code) -> dict[int, Tensor]:
        """Number of each branch that there is -> its features (B, width, size / 2 ** (number + 1), the same)."""
        branches: dict[int, Tensor] = {0: self.stem(images)}
        arriving: dict[int, list[Tensor]] = {}
        for block, bit in zip(self.blocks, code, strict=True):
            if block.source != block.target:
                if bit:
                    arriving.setdefault(block.target, []).append(self.parts[block.name](branches[block.source]))
                continue
            for target in tuple(arriving):  # all edges of a stage start from the branches as they were before it
                terms = arriving.pop(target) + ([branches[target]] if target in branches else [])
                branches[target] = torch.relu(sum(terms[1:], terms[0]))
            if bit:
                branches[block.target] = self.parts[block.name](branches[block.target])
        return branches


class TaskNetwork(nn.Module):
    """A `Topology` for one task: images -> that task's output. config: as above, with one head.

    Raises SettingError for a config with another number of heads, or a code of another length.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        if len(config["heads"]) != 1:
            raise SettingError(f"The config has the heads {', '.join(config['heads'])}.", allowed="one", option="heads")
        ((self.task, (self.kind, _)),) = config["heads"].items()
        self.topology = Topology(config)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.topology(images)[self.task]
        return found

    def features(self, images: Tensor) -> Tensor:
        """(B, sum of the branches' widths): their means over positions, of which a classifier's scores are linear."""
        branches = self.topology.branches(images, self.topology.code)
        return torch.cat([branches[number].mean((2, 3)) for number in sorted(branches)], 1)


def layout(branches: int, stages: int, blocks: int) -> tuple[Block, ...]:
    """The slots in the order in which they run: in each stage the edges first, then the branches' blocks."""
    found = []
    for stage in range(stages):
        edges = [(0, target) for target in range(1, branches)]
        if stage > 0:
            edges = [pair for fine in range(branches - 1) for pair in ((fine, fine + 1), (fine + 1, fine))]
        found += [Block(f"stage{stage}_branch{a}_to_branch{b}", a, b) for a, b in edges]
        places = [(branch, number) for branch in range(branches) for number in range(blocks)]
        found += [Block(f"stage{stage}_branch{branch}_block{number}", branch, branch) for branch, number in places]
    return tuple(found)


def canonical(blocks: Sequence[Block], code: Sequence[int]) -> Code:
    """The code with the bits of blocks and edges that nothing reaches set to 0."""
    if len(code) != len(blocks) or any(bit not in (0, 1) for bit in code):
        raise SettingError(f"code {tuple(code)}", allowed=f"{len(blocks)} values, each 0 or 1", option="code")
    alive, reached, kept = {0}, {0}, []
    for block, bit in zip(blocks, code, strict=True):
        if block.source == block.target:
            alive |= reached
        kept.append(int(bool(bit) and block.source in alive))
        if kept[-1]:
            reached.add(block.target)
    return tuple(kept)


def stem(channels: int, width: int) -> nn.Module:
    """3 x 3 convolution that halves the sides, BatchNorm, ReLU."""
    return nn.Sequential(nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def _part(block: Block, widths: Sequence[int]) -> nn.Module:
    steps = block.target - block.source
    if not steps:
        return Residual(widths[block.source])
    return edge(widths[block.source], widths[block.target], max(steps, 0), max(-steps, 0))


def edge(width: int, out: int, down: int, up: int) -> nn.Module:
    """Mean pooling, a 1 x 1 convolution, enlarging; down, up: how many times to halve or double (choice)."""
    mix = [nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)]
    before, after = [nn.AvgPool2d(2**down)] if down else [], [nn.Upsample(scale_factor=2**up)] if up else []
    return nn.Sequential(*before, *mix, *after)


def scale_of(kind: str, branch: int) -> int:
    """0 for a classifier's pooled projection, else how many times smaller than branch 0 this branch is."""
    return 0 if kind == "classification" else 2**branch


def projection(width: int, outputs: int, scale: int) -> nn.Module:
    """A branch's linear part of an output, enlarged ``scale`` times; pooled, (B, outputs), with scale 0."""
    if scale == 0:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, outputs))
    return nn.Sequential(nn.Conv2d(width, outputs, 1), *([enlarge(scale)] if scale > 1 else []))


def enlarge(scale: int) -> nn.Module:
    """Bilinear."""
    return nn.Upsample(scale_factor=scale, mode="bilinear", align_corners=False)
