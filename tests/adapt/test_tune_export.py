"""Heads and cheap models rebuilt from their state, exported to ONNX, and run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from ontarget.adapt.tune.nearest_neighbours import head_from_state, nearest_neighbours
from ontarget.adapt.tune.tfidf_linear import network_from_state, tfidf_linear

pytest.importorskip("onnxscript")


def session(network: torch.nn.Module, tensors: dict[str, np.ndarray], path: Path) -> onnxruntime.InferenceSession:
    names = ("rows", "length")
    program = torch.onnx.export(
        network,
        tuple(torch.from_numpy(tensor) for tensor in tensors.values()),
        input_names=list(tensors),
        dynamic_shapes={
            name: {axis: torch.export.Dim(names[axis]) for axis in range(tensor.ndim) if axis == 0 or len(tensors) > 1}
            for name, tensor in tensors.items()
        },
        dynamo=True,
        verbose=False,
    )
    program.save(path)
    return onnxruntime.InferenceSession(path)


def predicted(network: torch.nn.Module, tensors: dict[str, np.ndarray]) -> np.ndarray:
    with torch.inference_mode():
        return network(*(torch.from_numpy(tensor) for tensor in tensors.values())).numpy()


def test_nearest_neighbours(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 60)
    train = (np.eye(8)[targets] + 0.7 * rng.normal(size=(60, 8))).astype(np.float32)
    ours = nearest_neighbours(train, targets, outputs=3, kind="classification")
    network = head_from_state(ours.network.state_dict())
    exported = session(network, {"features": train[:4]}, tmp_path / "model.onnx")
    fresh = {"features": rng.normal(size=(9, 8)).astype(np.float32)}
    np.testing.assert_allclose(exported.run(None, fresh)[0], predicted(ours.network, fresh), atol=1e-4)


def test_tfidf(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 60)
    texts = [" ".join(["good", "bad"][target] + str(word) for word in rng.integers(0, 5, 4)) for target in targets]
    ours = tfidf_linear(texts, targets, outputs=2, kind="classification")
    network = network_from_state(ours.network.state_dict())
    exported = session(network, ours.preprocess(texts[:5]), tmp_path / "model.onnx")
    for sample in (texts[:1], texts[7:30], ["unknown"]):
        tensors = ours.preprocess(sample)
        np.testing.assert_allclose(exported.run(None, tensors)[0], predicted(ours.network, tensors), atol=1e-5)
