"""From a trained network to an ONNX graph that gives the same scores, for any number of rows and any length."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ontarget.errors import RunError
from ontarget.runtime.preprocess import Preprocess, Tensors

OPSET = 17
DYNAMIC = {
    "tokens": {0: "rows", 1: "length"},
    "tfidf": {0: "rows", 1: "terms"},
    "image": {0: "rows"},
    "array": {0: "rows"},
}


def export_onnx(network: torch.nn.Module, preprocess: Preprocess, inputs: Any, path: Path) -> Path:
    """Write ``network`` as ONNX with input names of ``preprocess`` and the output "scores".

    inputs: a few rows of the task, used to trace the graph and to check it: the scores of ONNX Runtime must equal
    PyTorch's to 1e-3 of their spread for one row and for several. Raises RunError where they do not.
    """
    network = network.cpu().eval()
    rows = inputs[: min(3, len(inputs))]
    names = list(preprocess.tensor_names)
    tensors = tuple(torch.from_numpy(value) for value in preprocess(rows).values())
    axes = dict.fromkeys(names, DYNAMIC[preprocess.kind])
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The tracing exporter: ten times as fast as the other one on encoders, and its graphs fuse as well.
        torch.onnx.export(
            network, tensors, str(path), input_names=names, output_names=["scores"],
            dynamic_axes={**axes, "scores": {0: "rows"}}, opset_version=OPSET, dynamo=False,
        )  # fmt: skip
    _check(network, preprocess, inputs, path)
    return path


def _check(network: torch.nn.Module, preprocess: Preprocess, inputs: Any, path: Path) -> None:
    session = onnx_session(path, threads=0)
    for count in (1, min(7, len(inputs))):
        tensors = preprocess(inputs[:count])
        expected = torch_scores(network, tensors)
        found = session.run(["scores"], tensors)[0]
        spread = max(1e-6, float(np.abs(expected).max()))
        worst = float(np.abs(expected - found).max())
        if not worst <= 1e-3 * spread:
            raise RunError(
                f"The ONNX graph gives other scores than PyTorch (by {worst:.2g}, spread {spread:.2g}).",
                next_step="leave this source out of the pool and report it",
            )


def torch_scores(network: torch.nn.Module, tensors: Tensors) -> Any:
    """Scores of one batch by PyTorch as a float32 array."""
    with torch.inference_mode():
        return network(*(torch.from_numpy(value) for value in tensors.values())).float().numpy()


def onnx_session(path: Path, *, threads: int) -> Any:
    """An ONNX Runtime session on the CPU; threads 0 lets it choose."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def fuse_transformer(path: Path, out: Path, *, heads: int, hidden: int) -> Path:
    """The graph with attention, layer normalisation and GELU as single operators of ONNX Runtime."""
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    options = FusionOptions("bert")
    optimized = optimizer.optimize_model(
        str(path), model_type="bert", num_heads=heads, hidden_size=hidden, optimization_options=options, opt_level=1
    )
    optimized.save_model_to_file(str(out))
    return out
