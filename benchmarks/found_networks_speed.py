"""Found networks against timm's mobile models of equal accuracy: ONNX Runtime latency, one row, one thread.

Target: at least 1.2 times faster. Data: CIFAR-10's 10,000 pictures that install as a package: 6,000 for training (the
search takes its validation rows from them), 4,000 for the test. Every network is trained from scratch in the same way
(`ontarget.search.retrain`: SGD, cosine, flips and crops, channels innermost) for the same CPU-seconds. timm's models
run at 64 pixels, since their strides are made for 224, and the two best of a first run, of 60 seconds a network, at 32
and 96 too. The search is then asked for networks that take at most 1/1.2 of the latency of the most accurate timm run.
The peer of a found network is the fastest timm run with at least its test accuracy; where none has it, the most
accurate one, and the ratio is a lower bound. A found network that is less accurate than all of timm's within 1.2 times
its latency has a peer that is faster, and a ratio that says so. Geometric mean over the networks of a search, median
over seeds.

    OMP_NUM_THREADS=1 python benchmarks/found_networks_speed.py --work WORK --seeds 3   # about 40 minutes a seed
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ontarget.latency_table import Setting
from ontarget.progress import console_progress
from ontarget.time_networks import make_call, time_calls
from ontarget.values import Context
from record import record

PEERS: tuple[tuple[str, int], ...] = (
    *(("mobilenetv3_small_050", size) for size in (32, 64, 96)),
    *(("mobilenetv3_small_100", size) for size in (32, 64, 96)),
    *((name, 64) for name in ("lcnet_050", "mobilenetv2_050", "mnasnet_small", "tinynet_e")),
)
TRAIN = 6000
FASTER = 1.2  # the target


def splits(seed: int) -> tuple[Any, Any, Any, Any]:
    """Pictures and labels of training and test."""
    from ontarget.data.samples import cifar10

    images, labels, _ = cifar10()
    order = np.random.default_rng(seed).permutation(len(labels))
    train, test = order[:TRAIN], order[TRAIN:]
    return images[train], labels[train], images[test], labels[test]


def write(folder: Path, images: Any, labels: Any) -> Path:
    """An image folder."""
    from PIL import Image

    if not folder.exists():
        for at, (picture, label) in enumerate(zip(images, labels, strict=True)):
            target = folder / f"class{label}"
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(target / f"{at}.png")
    return folder


class Pictures(torch.utils.data.Dataset):
    """(image, label) rows resized to ``size``; flipped and shifted by an eighth where they train."""

    def __init__(self, images: Any, labels: Any, size: int, seed: int, training: bool) -> None:
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        scaled = torch.nn.functional.interpolate(pixels, size=size, mode="bilinear", antialias=True)
        self.images = (scaled - 0.47) / 0.25
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self.training, self.generator = training, torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, at: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = self.images[at]
        if self.training:
            if torch.rand((), generator=self.generator) < 0.5:
                image = image.flip(2)
            pad = image.shape[1] // 8
            y, x = torch.randint(0, 2 * pad + 1, (2,), generator=self.generator).tolist()
            padded = torch.nn.functional.pad(image, (pad, pad, pad, pad))
            image = padded[:, y : y + image.shape[1], x : x + image.shape[2]]
        return image, self.labels[at]


def epochs_within(network: torch.nn.Module, rows: Pictures, seconds: float) -> int:
    """Epochs that fit: the median of twenty steps on a copy tells."""
    import copy

    from ontarget.search.retrain import make_optimizer

    trial = copy.deepcopy(network).train()
    engine = make_optimizer(trial.parameters(), "sgd", None, None)
    times = []
    for _ in range(20):
        start = time.process_time()
        batch = [rows[at] for at in range(64)]
        images, labels = torch.stack([image for image, _ in batch]), torch.stack([label for _, label in batch])
        torch.nn.functional.cross_entropy(trial(images), labels).backward()
        engine.step()
        times.append(time.process_time() - start)
    return max(1, int(seconds / (float(np.median(times)) * len(rows) / 64)))


def trained(network: torch.nn.Module, size: int, data: Any, seconds: float, seed: int) -> dict[str, Any]:
    from ontarget.search.retrain import accuracy, retrain

    network.to(memory_format=torch.channels_last)
    train = Pictures(data[0], data[1], size, seed, training=True)
    epochs = epochs_within(network, train, seconds)
    start = time.process_time()
    with console_progress(False) as progress:
        retrain(network, train, epochs=epochs, batch_size=64, context=Context(seed=seed, progress=progress))
    spent = time.process_time() - start
    test = Pictures(data[2], data[3], size, seed, training=False)
    return {"test_accuracy": accuracy(network, test), "epochs": epochs, "cpu_s": spent, "size": size}


def latency(networks: list[Any], sizes: list[int]) -> list[float]:
    """Milliseconds of one row on ONNX Runtime, one thread, in turn."""
    setting = Setting("onnxruntime", threads=1)
    shapes = [(1, 3, size, size) for size in sizes]
    calls = [make_call(net.eval(), (torch.randn(shape),), setting) for net, shape in zip(networks, shapes, strict=True)]
    return time_calls(calls, setting)


def of_seed(seed: int, work: Path, seconds: float, search_s: float) -> dict[str, Any]:
    import timm

    from ontarget.pool.found_networks import read_info
    from ontarget.search.mobile_space import build
    from ontarget.search.search_networks import search_networks

    data = splits(seed)
    folder = work / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)

    def kept(name: str, make: Any) -> Any:
        """The stored value, or a new one: a stopped benchmark goes on."""
        path = folder / f"{name}.json"
        if not path.exists():
            path.write_text(json.dumps(make()))
        return json.loads(path.read_text())

    rows: list[dict[str, Any]] = []
    networks: list[Any] = []
    for peer, size in PEERS:

        def train_peer(peer: str = peer, size: int = size) -> dict[str, Any]:
            torch.manual_seed(seed)
            return trained(timm.create_model(peer, num_classes=10), size, data, seconds, seed)

        rows.append({"network": peer, **kept(f"{peer}-{size}", train_peer)})
        networks.append(timm.create_model(peer, num_classes=10))
        print(rows[-1]["network"], size, rows[-1]["test_accuracy"], flush=True)

    def time_peers() -> list[float]:
        return latency(networks, [row["size"] for row in rows])

    best = max(range(len(rows)), key=lambda at: float(rows[at]["test_accuracy"]))
    limit_ms = kept("peers-ms", time_peers)[best] / FASTER
    pictures = write(folder / "train", data[0], data[1])
    with console_progress(False) as progress:
        found = search_networks(
            pictures, output=folder / "search-within", budget_s=search_s, latency_ms=limit_ms, image_size=32, threads=1,
            seed=seed, augment="flip+crop", context=Context(seed=seed, progress=progress),
        )  # fmt: skip
    for number, entry in enumerate(found.networks):
        config = read_info(Path(entry["folder"]))["config"]

        def train_found(config: Any = config) -> dict[str, Any]:
            torch.manual_seed(seed)
            return trained(build(config), 32, data, seconds, seed)

        name = f"found-{number}"
        rows.append({"network": name, "config": config, **kept(f"within-{number}", train_found)})
        networks.append(build(config))
        print(rows[-1]["network"], rows[-1]["test_accuracy"], flush=True)
    for row, ms in zip(rows, latency(networks, [row["size"] for row in rows]), strict=True):
        row["ms"] = ms
    ours = [row for row in rows if row["network"].startswith("found")]
    theirs = [row for row in rows if not row["network"].startswith("found")]
    pairs = []
    for row in ours:
        equal = [peer for peer in theirs if peer["test_accuracy"] >= row["test_accuracy"]]
        peer = min(equal, key=lambda p: p["ms"]) if equal else max(theirs, key=lambda p: p["test_accuracy"])
        pairs.append(
            {
                "network": row["network"], "accuracy": row["test_accuracy"], "ms": row["ms"],
                "peer": f"{peer['network']} at {peer['size']}", "peer_accuracy": peer["test_accuracy"],
                "peer_ms": peer["ms"], "times_faster": peer["ms"] / row["ms"], "peer_reaches": bool(equal),
            }
        )  # fmt: skip
    ratio = float(np.exp(np.mean(np.log([pair["times_faster"] for pair in pairs]))))
    return {"seed": seed, "limit_ms": limit_ms, "times_faster": ratio, "pairs": pairs, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="Folder for data, searches and finished trainings")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=150.0, help="CPU-seconds that each network is trained")
    parser.add_argument("--search", type=float, default=300.0, help="Seconds of the search")
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    seeds = [
        of_seed(seed, options.work, options.seconds, options.search)
        for seed in range(options.first_seed, options.first_seed + options.seeds)
    ]
    ratios = [row["times_faster"] for row in seeds]
    record(
        "found_networks_speed",
        headline=f"found networks {np.median(ratios):.2f} times faster than timm's mobile models of at least their "
        f"accuracy (median of {len(ratios)} seeds; target {FASTER})",
        target=FASTER, times_faster=ratios, load_before=load, training_cpu_s=options.seconds, search_s=options.search,
        seeds=seeds,
    )  # fmt: skip


if __name__ == "__main__":
    main()
