"""Search: the architecture, on the user's own device and data."""

from __future__ import annotations

from ontarget.catalogue import Method

METHODS = (
    Method(
        number=31,
        name="concurrent_nas",
        title="A Hardware-Aware System for Accelerating Deep Neural Network Optimization: ConcurrentNAS (LINAS)",
        room="search",
        summary="Finds the front of quality and measured latency of any super-network with few real evaluations.",
        needs=("super-network", "validation rows", "latency table"),
        gives=("Pareto front", "sub-networks", "warm start"),
        source="arXiv 2202.12954",
    ),
    Method(
        number=11,
        name="fbnetv5",
        title="FBNetV5: Neural Architecture Search for Multiple Tasks in One Run",
        room="search",
        summary="Finds a topology for each of several tasks in one run of a super-network, within MACs or time.",
        needs=("images", "labels of several tasks", "super-network", "limit"),
        gives=("topology for each task", "architecture"),
        source="arXiv 2111.10007",
    ),
    Method(
        number=30,
        name="instatune",
        title="InstaTune: Instantaneous Neural Architecture Search During Fine-Tuning",
        room="search",
        summary="Fine-tunes a pretrained transformer together with its slices: fewer layers, heads and neurons.",
        needs=("pretrained transformer", "texts", "labels"),
        gives=("super-network", "sub-networks"),
        source="ICCV 2023 workshop; arXiv 2308.15609",
    ),
    Method(
        number=1,
        name="proxyless",
        title="ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware",
        room="search",
        summary="Searches a mobile CNN by gradients of sampled paths and a measured latency table of the device.",
        needs=("images", "labels", "latency table"),
        gives=("architecture", "network"),
        source="ICLR 2019; arXiv 1812.00332",
    ),
    Method(
        number=18,
        name="symbolic_optimizer",
        title="Symbolic Discovery of Optimization Algorithms",
        room="search",
        summary="Evolves update rules on small proxies of your data, tests them on larger ones, simplifies the winner.",
        needs=("features", "images", "labels", "classification", "regression"),
        gives=("optimizer", "update rule"),
        source="NeurIPS 2023; arXiv 2302.06675",
    ),
)
