"""8-bit and 16-bit forms of an ONNX graph, by ONNX Runtime's quantizer.

Dynamic: weights of matrix products as int8, activations quantised call by call. Static: activations' ranges
calibrated on the task's own rows, written into the graph (QDQ). fp16: weights and activations as float16.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ontarget.runtime.preprocess import Preprocess


def int8_dynamic(path: Path, out: Path) -> Path:
    """Weights (also of embeddings) as int8, per output channel where the operator allows it."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            str(path), str(out), weight_type=QuantType.QInt8, per_channel=True, reduce_range=_reduce_range(),
            extra_options={"MatMulConstBOnly": True},
        )  # fmt: skip
    return out


def int8_static(path: Path, out: Path, preprocess: Preprocess, rows: Sequence[Any]) -> Path:
    """Weights and activations as int8 with ranges from ``rows``, the task's own; QDQ format, per channel.

    Where attention masks its scores with minus infinity no range holds them: there products alone are quantised.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = out.with_suffix(".prepared.onnx")
    with _quiet():
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        operators = {node.op_type for node in onnx.load(str(prepared), load_external_data=False).graph.node}
        quantize_static(
            str(prepared), str(out), _Calibration(preprocess, rows), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=_reduce_range(),
            calibrate_method=CalibrationMethod.MinMax,
            op_types_to_quantize=["MatMul", "Gemm"] if "Softmax" in operators else None,
        )  # fmt: skip
    prepared.unlink()
    return out


def fp16(path: Path, out: Path) -> Path:
    """float16 inside, float32 scores."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with _quiet():
        model = convert_float_to_float16(onnx.load(str(path)), keep_io_types=True)
        onnx.save(model, str(out))
    return out


def _reduce_range() -> bool:
    """7-bit weights where 8-bit products of a u8 and an s8 saturate 16 bits: AVX2 or AVX-512 without VNNI."""
    from ontarget.device import describe

    return "vnni" not in describe()["instructions"]


class _Calibration:
    """The data reader that ONNX Runtime asks for."""

    def __init__(self, preprocess: Preprocess, rows: Sequence[Any]) -> None:
        self._feeds: Iterator[Any] = (preprocess(rows[at : at + 1]) for at in range(len(rows)))

    def get_next(self) -> Any:
        return next(self._feeds, None)


class _quiet:
    """No warnings of the quantizer on the root logger."""

    def __enter__(self) -> None:
        self._level = logging.root.level
        logging.root.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logging.root.setLevel(self._level)
