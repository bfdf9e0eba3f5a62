"""Folded BatchNorm: the same outputs where the pairs are right, the network itself where they are not."""

from __future__ import annotations

import timm
import torch
from torch import nn

from ontarget.pool.fold_batch_norm import fold_batch_norm
from ontarget.pool.image_encoders import channels_last


def with_statistics(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return network.eval()


def test_a_timm_network_gives_the_same_features_without_batch_norm() -> None:
    network = channels_last(with_statistics(timm.create_model("tf_efficientnet_lite0", num_classes=0)))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pixels = torch.randn(3, 3, 64, 64)
    folded = fold_batch_norm(network, (pixels[:2],))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.inference_mode():
        expected = network(pixels)
        torch.testing.assert_close(folded(pixels), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


class NormFirst(nn.Module):
    """Registered as convolution and norm, run the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.conv(self.norm(pixels)))


def test_what_only_looks_like_a_pair_is_left_alone() -> None:
    network = with_statistics(NormFirst())
    assert fold_batch_norm(network, (torch.randn(2, 3, 8, 8),)) is network


def test_nothing_is_folded_in_training_mode_or_without_batch_norm() -> None:
    network = with_statistics(NormFirst()).train()
    assert fold_batch_norm(network, (torch.randn(2, 3, 8, 8),)) is network
    linear = nn.Linear(3, 3).eval()
    assert fold_batch_norm(linear, (torch.randn(2, 3),)) is linear
