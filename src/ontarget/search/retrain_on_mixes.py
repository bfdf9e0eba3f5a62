"""Training of a found mobile network from scratch on images mixed by AdAutoMix; see `augment.adautomix`."""

from __future__ import annotations

import torch
from torch import Tensor

from ontarget.parts.mobile_network import MobileNetwork
from ontarget.search.rows import Rows, ordered
from ontarget.values import Context


class _Stage(torch.nn.Module):
    """A mobile network as AdAutoMix's backbone: images -> (map of its blocks, features before the linear layer)."""

    def __init__(self, network: MobileNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.network.blocks(self.network.stem(images))
        return maps, self.network.head.mix(maps).mean((2, 3))


def retrain_on_mixes(
    network: MobileNetwork, train: Rows, *, epochs: int, batch_size: int = 64, context: Context = Context()
) -> None:
    """Train ``network`` (changed, left in evaluation mode) and give it the teacher's weights, as the paper predicts.

    All images are held in memory. An epoch costs about five of plain training.
    """
    from ontarget.augment.adautomix import adautomix, momentum_for

    parts = list(ordered(train, 1024))
    images, labels = (torch.cat([part[at] for part in parts]) for at in (0, 1))
    steps = max(1, epochs * len(labels) // batch_size)
    found = adautomix(
        _Stage(network), images, labels, classes=network.head.linear.out_features, steps=steps, batch_size=batch_size,
        momentum=momentum_for(steps), learning_rate=0.05, last_rate=0.0, context=context,
    )  # fmt: skip
    teacher = found.teacher.backbone
    assert isinstance(teacher, _Stage)
    network.load_state_dict(teacher.network.state_dict())
    network.head.linear.load_state_dict(found.teacher.one_hot.state_dict())
    network.eval()
