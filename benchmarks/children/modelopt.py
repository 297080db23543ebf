"""NVIDIA Model Optimizer for ONNX on the CPU provider: INT8 Q/DQ, the rest stays FP32 so that CPU times compare.

Options: `method` ("entropy", its default, or "max"); `layers` ("all" of its default, or "linear": Conv, ConvTranspose,
Gemm and MatMul, and not the batched MatMuls of attention).
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from benchmarks.children.common import Samples, perform, reader
from benchmarks.children.order import Order


def quantize(order: Order, samples: Samples) -> str:
    """What `python -m modelopt.onnx.quantization` calls."""
    tool: Any = import_module("modelopt.onnx.quantization")
    calibration: Any = import_module("onnxruntime.quantization")
    narrow: dict[str, Any] = {
        "op_types_to_quantize": ["Conv", "ConvTranspose", "Gemm", "MatMul"],
        "disable_mha_qdq": True,
    }
    tool.quantize(
        str(order.model),
        quantize_mode="int8",
        calibration_method=order.options["method"],
        calibration_data_reader=reader(samples, calibration.CalibrationDataReader),
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(order.output),
        log_level="WARNING",
        **(narrow if order.options["layers"] == "linear" else {}),
    )
    return ""


if __name__ == "__main__":
    NAMES = ("nvidia-modelopt", "onnxruntime-gpu", "onnx", "torch")
    sys.exit(perform(NAMES, lambda: import_module("modelopt.onnx.quantization"), quantize))
