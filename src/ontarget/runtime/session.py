"""The ONNX Runtime session of a model file, the same for measuring, serving and testing."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

# A tensor that lives in another file has an entry with the key "location" (onnx.proto, TensorProto.external_data).
_EXTERNAL = b"\x0a\x08location\x12"


def make_session(path: Path | str, *, threads: int = 0) -> Any:
    """A session on the CPU. threads: inside an operator; 0 lets ONNX Runtime choose.

    Raises ValueError for a model whose weights are in other files: such a file could name any path.
    """
    import onnxruntime

    if _has_external_data(Path(path)):
        raise ValueError(f"{path} refers to other files for its weights, which is not allowed")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _has_external_data(path: Path) -> bool:
    with open(path, "rb") as file:
        if not file.seek(0, 2):
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(_EXTERNAL) >= 0
