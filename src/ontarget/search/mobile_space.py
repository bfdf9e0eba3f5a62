"""ProxylessNAS's space of mobile CNNs, as a super-network that runs one path at a time.

A fixed stem and first block, then stages of mixed edges: on each edge one of the MBConv blocks of kernel {3, 5, 7} and
expansion {3, 6}, or none where the shape allows a shortcut, so that depth is searched too. arXiv 1812.00332, section 3;
official code mit-han-lab/proxylessnas, search/models/super_nets/super_proxyless.py.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ontarget.errors import SettingError
from ontarget.parts.mobile_network import Head, MBConv, MobileNetwork, Residual, stem
from ontarget.search.space import Code, Operator, Slot, operator

KERNELS, EXPANSIONS = (3, 5, 7), (3, 6)
CHOICES = tuple((kernel, expansion) for expansion in EXPANSIONS for kernel in KERNELS)
ZERO = len(CHOICES)  # the choice of no block, where the edge has a shortcut
# width, depth, stride of each stage (the paper's, for 224 pixels), and the stem's and first block's width
PAPER_STAGES = ((24, 4, 2), (40, 4, 2), (80, 4, 2), (96, 4, 1), (192, 4, 2), (320, 1, 1))
PAPER_STEM, PAPER_FIRST, PAPER_HEAD = (32, 2), 16, 1280


class MixedEdge(nn.Module):
    """All candidates of one edge; only the chosen one runs. residual: a shortcut is beside them, and none may run."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.inputs, self.outputs, self.stride = inputs, outputs, stride
        self.residual = stride == 1 and inputs == outputs
        self.candidates = nn.ModuleList(
            MBConv(inputs, outputs, kernel=kernel, expansion=expansion, stride=stride) for kernel, expansion in CHOICES
        )

    @property
    def choices(self) -> int:
        return len(CHOICES) + self.residual

    def candidate(self, choice: int, images: Tensor) -> Tensor | None:
        """What the choice adds to the shortcut; None for no block."""
        return None if choice == ZERO else self.candidates[choice](images)

    def forward(self, images: Tensor, choice: int) -> Tensor:
        made = self.candidate(choice, images)
        if made is None:
            return images
        return images + made if self.residual else made


class MobileSpace(nn.Module):
    """The super-network; an `ElasticNetwork`. pixels (N, channels, H, W) and a code -> scores (N, C).

    stages: (width, depth, stride) of each. stem: (width, stride). first: width of the fixed MBConv of expansion 1.
    Raises SettingError where strides leave less than 2 x 2 positions.
    """

    def __init__(
        self,
        *,
        image_size: int,
        channels: int,
        outputs: int,
        stages: Sequence[tuple[int, int, int]] = PAPER_STAGES,
        stem_width: tuple[int, int] = PAPER_STEM,
        first: int = PAPER_FIRST,
        head_width: int = PAPER_HEAD,
    ) -> None:
        super().__init__()
        self.image_size, self.channels, self.outputs = image_size, channels, outputs
        self.stem_width, self.first_width, self.head_width = stem_width, first, head_width
        self.stem = stem(channels, *stem_width)
        self.first = MBConv(stem_width[0], first, kernel=3, expansion=1)
        edges, width = [], first
        for stage_width, depth, stride in stages:
            for at in range(depth):
                edges.append(MixedEdge(width, stage_width, stride if at == 0 else 1))
                width = stage_width
        self._edges = nn.ModuleList(edges)
        self.head = Head(width, head_width, outputs)
        self.sizes = _sizes(image_size, stem_width[1], [edge.stride for edge in edges])
        self.slots = tuple(Slot(f"edge {at}", edge.choices, labels(edge.residual)) for at, edge in enumerate(edges))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        self.to(memory_format=torch.channels_last)  # as `MobileNetwork`

    @property
    def edges(self) -> list[MixedEdge]:
        """The mixed edges in their order."""
        return list(self._edges)  # type: ignore[arg-type]

    def forward(self, pixels: Tensor, code: Code) -> Tensor:
        hidden = self.first(self.stem(pixels))
        for edge, choice in zip(self.edges, code, strict=True):
            hidden = edge(hidden, choice)
        scores: Tensor = self.head(hidden)
        return scores

    def canonical(self, code: Code) -> Code:
        """The code itself: every choice has an effect."""
        return tuple(code)

    def config(self, code: Code) -> dict[str, Any]:
        """For `MobileNetwork`."""
        first = {"in": self.stem_width[0], "out": self.first_width, "kernel": 3, "expansion": 1, "stride": 1}
        blocks = [{**first, "residual": False}]
        for edge, choice in zip(self.edges, code, strict=True):
            if choice != ZERO:
                kernel, expansion = CHOICES[choice]
                blocks.append(
                    {
                        "in": edge.inputs, "out": edge.outputs, "kernel": kernel, "expansion": expansion,
                        "stride": edge.stride, "residual": edge.residual,
                    }
                )  # fmt: skip
        return {
            "network": "mobile", "image_size": self.image_size, "channels": self.channels, "outputs": self.outputs,
            "stem": dict(zip(("width", "stride"), self.stem_width, strict=True)), "blocks": blocks,
            "head": {"width": self.head_width},
        }  # fmt: skip

    def slice(self, code: Code) -> MobileNetwork:
        """The path as a plain network with a copy of its weights."""
        network = MobileNetwork(self.config(code))
        chosen: list[nn.Module] = [
            edge.candidates[choice] for edge, choice in zip(self.edges, code, strict=True) if choice != ZERO
        ]
        blocks = [block.block if isinstance(block, Residual) else block for block in network.blocks]
        targets: list[nn.Module] = [network.stem, network.head, *blocks]
        for target, source in zip(targets, [self.stem, self.head, self.first, *chosen], strict=True):
            target.load_state_dict(copy.deepcopy(source.state_dict()))
        return network.train(self.training)

    def fixed_operators(self) -> tuple[Operator, ...]:
        """What every network of the space runs: stem, first block, head."""
        size = self.sizes[0]
        last = self.edges[-1].outputs if len(self.edges) else self.first_width
        return (
            operator("stem", (self.channels, self.image_size, self.image_size),
                     width=self.stem_width[0], stride=self.stem_width[1]),
            operator("mbconv", (self.stem_width[0], size, size),
                     out=self.first_width, kernel=3, expansion=1, stride=1, residual=0),
            operator("head", (last, self.sizes[-1], self.sizes[-1]), width=self.head_width, outputs=self.outputs),
        )  # fmt: skip

    def edge_operator(self, at: int, choice: int) -> Operator | None:
        """What a choice on an edge runs; None for no block."""
        if choice == ZERO:
            return None
        edge, (kernel, expansion) = self.edges[at], CHOICES[choice]
        shape = (edge.inputs, self.sizes[at], self.sizes[at])
        return operator(
            "mbconv", shape, out=edge.outputs, kernel=kernel, expansion=expansion, stride=edge.stride,
            residual=int(edge.residual),
        )  # fmt: skip

    def operators(self, code: Code) -> tuple[Operator, ...]:
        first, second, head = self.fixed_operators()
        chosen = [self.edge_operator(at, choice) for at, choice in enumerate(code)]
        return (first, second, *[found for found in chosen if found is not None], head)

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        """One batch of random pixels."""
        generator = torch.Generator().manual_seed(0)
        shape = (batch_size, self.channels, self.image_size, self.image_size)
        return (torch.randn(shape, generator=generator),)


def labels(residual: bool) -> tuple[str, ...]:
    """Names of an edge's choices."""
    return tuple(f"{kernel}x{kernel}, x{expansion}" for kernel, expansion in CHOICES) + ("none",) * residual


def build(config: dict[str, Any]) -> MobileNetwork:
    """The plain network of a config with fresh weights."""
    return MobileNetwork(config)


def stages_for(image_size: int) -> dict[str, Any]:
    """Stages, stem, first and head widths that suit images of this size (choice): the paper's from 128 pixels on."""
    if image_size >= 128:
        return {"stages": PAPER_STAGES, "stem_width": PAPER_STEM, "first": PAPER_FIRST, "head_width": PAPER_HEAD}
    if image_size >= 48:
        middle = ((24, 3, 2), (40, 3, 2), (80, 3, 2), (112, 2, 1))
        return {"stages": middle, "stem_width": (16, 2), "first": 16, "head_width": 256}
    small = ((24, 2, 2), (40, 3, 2), (64, 2, 1))
    return {"stages": small, "stem_width": (16, 1), "first": 16, "head_width": 128}


def _sizes(image_size: int, stem_stride: int, strides: Sequence[int]) -> list[int]:
    """Side of what goes into each edge, and of what leaves the last."""
    sizes = [-(-image_size // stem_stride)]
    for stride in strides:
        sizes.append(-(-sizes[-1] // stride))
    if sizes[-1] < 2:
        raise SettingError(
            f"Images of {image_size} pixels are down to {sizes[-1]} x {sizes[-1]} after all strides.",
            option="image_size", next_step="use larger images or fewer stages with stride 2",
        )  # fmt: skip
    return sizes
