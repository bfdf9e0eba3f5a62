"""From a trained network to an ONNX graph that gives the same scores, for any number of rows and any length."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ontarget.compress.fused_bert import fused_encoders
from ontarget.errors import RunError
from ontarget.runtime.preprocess import Preprocess, Tensors
from ontarget.runtime.session import make_session

OPSET = 17
TOLERANCE = 1e-3  # of the scores' spread, between ONNX Runtime and PyTorch (choice)
DYNAMIC = {  # last dimensions that are free, by tensor
    "input_ids": "length",
    "attention_mask": "length",
    "indices": "terms",
    "values": "terms",
}


def export_onnx(network: torch.nn.Module, preprocess: Preprocess, inputs: Any, path: Path) -> Path:
    """Write ``network`` as ONNX with input names of ``preprocess`` and the output "scores".

    inputs: a few rows of the task, used to trace the graph and to check it: the scores of ONNX Runtime must equal
    PyTorch's to 1e-3 of their spread for one row and for several. Encoders that `fused_bert` knows are written in
    their lean form; should that differ, as they are. Raises RunError where the plain graph differs too.
    """
    network = network.cpu().eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    with fused_encoders(network) as count:
        if count:
            _trace(network, preprocess, inputs, path, fused=True)
    if count and _worst_difference(network, preprocess, inputs, path) <= TOLERANCE:
        return path
    _trace(network, preprocess, inputs, path, fused=False)
    worst = _worst_difference(network, preprocess, inputs, path)
    if not worst <= TOLERANCE:
        raise RunError(
            f"The ONNX graph gives other scores than PyTorch (by {worst:.2g} of their spread).",
            next_step="leave this source out of the pool and report it",
        )
    return path


def _trace(network: torch.nn.Module, preprocess: Preprocess, inputs: Any, path: Path, *, fused: bool) -> None:
    names = list(preprocess.tensor_names)
    tensors = tuple(torch.from_numpy(value) for value in preprocess(inputs[: min(3, len(inputs))]).values())
    axes = {
        name: {0: "rows", **({tensor.ndim - 1: DYNAMIC[name]} if name in DYNAMIC else {})}
        for name, tensor in zip(names, tensors, strict=True)
    }
    trace(network, tensors, path, input_names=names, axes={**axes, "scores": {0: "rows"}}, fused=fused)


def trace(
    network: torch.nn.Module,
    inputs: tuple[torch.Tensor, ...],
    path: Path,
    *,
    input_names: list[str],
    axes: dict[str, dict[int, str]] | None = None,
    fused: bool | None = None,
) -> None:
    """Write the graph of one call, output "scores". axes: free dimensions by name.

    fused: whether the graph has operators of ONNX Runtime's own; by default, whether a module says so.
    """
    if fused is None:
        fused = any(getattr(module, "onnxruntime_operators", False) for module in network.modules())
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The tracing exporter: ten times as fast as the other one on encoders, and its graphs fuse as well.
        torch.onnx.export(
            network, inputs, str(path), input_names=input_names, output_names=["scores"], opset_version=OPSET,
            dynamic_axes=axes, custom_opsets={"com.microsoft": 1} if fused else None, dynamo=False,
        )  # fmt: skip


def _worst_difference(network: torch.nn.Module, preprocess: Preprocess, inputs: Any, path: Path) -> float:
    """Largest difference between ONNX Runtime's and PyTorch's scores over their spread, for one row and several."""
    session = make_session(path)
    worst = 0.0
    for count in {1, min(7, len(inputs))}:
        tensors = preprocess(inputs[:count])
        expected = torch_scores(network, tensors)
        difference = np.abs(expected - session.run(["scores"], tensors)[0]).max()
        worst = max(worst, float(difference) / max(1e-6, float(np.abs(expected).max())))
        if not np.isfinite(difference):
            return float("inf")
    return worst


def torch_scores(network: torch.nn.Module, tensors: Tensors) -> Any:
    """Scores of one batch by PyTorch as a float32 array."""
    with torch.inference_mode():
        return network(*(torch.from_numpy(value) for value in tensors.values())).float().numpy()
