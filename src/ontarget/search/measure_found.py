"""Latency of found networks in a fresh process: ``python -m ontarget.search.measure_found SETTING FOLDER ...``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ontarget.errors import RunError
from ontarget.latency_table import Setting
from ontarget.time_networks import Maker, time_builds


def measure_found(folders: Sequence[Path], setting: Setting) -> list[float]:
    """Milliseconds of one call of each network, measured in turn by a fresh process. Raises RunError if it fails."""
    command = [sys.executable, "-m", "ontarget.search.measure_found", json.dumps(asdict(setting)), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit status {done.returncode}"
        raise RunError(f"Measuring in a fresh process failed: {last}")
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    import torch

    from ontarget.pool.found_networks import load_network

    setting = Setting(**json.loads(sys.argv[1]))
    makers = []
    for folder in sys.argv[2:]:
        network, preprocess, info = load_network(Path(folder))
        config = info["config"]
        if preprocess.kind == "tokens":
            ids = torch.randint(0, config["vocabulary"], (setting.batch_size, info["length"]))
            inputs: tuple[torch.Tensor, ...] = (ids, torch.ones_like(ids))
        else:
            size = config["image_size"]
            inputs = (torch.randn(setting.batch_size, config["channels"], size, size),)
        makers.append(Maker(network, inputs, setting))
    print(json.dumps(time_builds(makers, setting)))


if __name__ == "__main__":
    main()
