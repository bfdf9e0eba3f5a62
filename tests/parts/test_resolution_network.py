"""The plain network of a topology: built and trained from its config alone, without code of the search."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ontarget.errors import SettingError
from ontarget.parts.resolution_network import TaskNetwork, layout

CONFIG = {
    "channels": 1, "widths": [4, 6, 8], "stages": 2, "blocks": 1, "heads": {"garment": ["classification", 3]},
    "code": [1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0],
}  # fmt: skip


def test_scores_are_linear_in_the_features() -> None:
    torch.manual_seed(0)
    network = TaskNetwork(CONFIG).eval()
    images = torch.randn(5, 1, 16, 16)
    with torch.no_grad():
        features = network.features(images)
        linears = [part[2] for _, part in sorted(network.topology.heads["garment"].projections.items())]
        weight = torch.cat([linear.weight for linear in linears], 1)
        expected = features @ weight.T + sum(linear.bias for linear in linears)
        assert features.shape == (5, 4 + 6) and torch.allclose(network(images), expected, atol=1e-5)


def test_it_learns_from_its_config_alone() -> None:
    torch.manual_seed(0)
    network, labels = TaskNetwork(CONFIG), torch.arange(12) % 3
    images = labels[:, None, None, None] + 0.1 * torch.randn(12, 1, 16, 16)
    engine = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        engine.zero_grad()
        loss.backward()
        engine.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_no_module_of_the_search_is_imported() -> None:
    code = (
        "import sys, ontarget.parts.resolution_network\n"
        "print([name for name in sys.modules if name.startswith('ontarget.search')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_config_that_does_not_fit_is_refused() -> None:
    assert len(layout(3, 2, 1)) == len(CONFIG["code"])
    with pytest.raises(SettingError, match="each 0 or 1"):
        TaskNetwork({**CONFIG, "code": [1] * 11})
    with pytest.raises(SettingError, match="heads a, b"):
        TaskNetwork({**CONFIG, "heads": {"a": ["classification", 3], "b": ["heat_map", 1]}})
