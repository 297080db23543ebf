"""onnxruntime.quantization: quantize_static in Q/DQ format, symmetric INT8, weights per output channel.

Options: `method` (minmax, percentile, entropy); `layers` ("all" it knows, or "linear": Conv, ConvTranspose, Gemm and
MatMul); `outputs` ("yes", or "no": the outputs of these stay float, as TensorRT wants it).
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.children.common import Samples, perform, reader
from benchmarks.children.order import Order

LINEAR = ["Conv", "ConvTranspose", "Gemm", "MatMul"]
METHODS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
FIRST_PER_CHANNEL_OPSET, RAISED_OPSET = 13, 17


def load() -> None:
    """Imports what `quantize` uses."""
    for name in ("onnx", "onnxruntime.quantization", "onnxruntime.quantization.shape_inference"):
        import_module(name)


def quantize(order: Order, samples: Samples) -> str:
    """Pre-processing as its documentation asks for, then quantize_static."""
    tool: Any = import_module("onnxruntime.quantization")
    raised, remarks = _raise_opset(order.model)
    prepared = _preprocess(raised, remarks)
    extra: dict[str, Any] = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,  # TensorRT takes no INT32 bias
        "DedicatedQDQPair": True,
    }
    if order.options["outputs"] == "no":
        extra["OpTypesToExcludeOutputQuantization"] = LINEAR
    tool.quantize_static(
        str(prepared),
        str(order.output),
        reader(samples, tool.CalibrationDataReader),
        quant_format=tool.QuantFormat.QDQ,
        op_types_to_quantize=LINEAR if order.options["layers"] == "linear" else None,
        per_channel=True,
        activation_type=tool.QuantType.QInt8,
        weight_type=tool.QuantType.QInt8,
        calibrate_method=getattr(tool.CalibrationMethod, METHODS[order.options["method"]]),
        extra_options=extra,
    )
    return "; ".join(remarks)


def _raise_opset(model: Path) -> tuple[Path, list[str]]:
    """Below opset 13 it writes per-channel Q/DQ that no runtime loads, so the opset is raised for it."""
    onnx: Any = import_module("onnx")
    converter: Any = import_module("onnx.version_converter")
    proto = onnx.load(str(model))
    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if opset >= FIRST_PER_CHANNEL_OPSET:
        return model, []
    raised = model.with_name("raised.onnx")
    onnx.save(converter.convert_version(proto, RAISED_OPSET), str(raised))
    return raised, [f"opset {opset} raised to {RAISED_OPSET} for it"]


def _preprocess(model: Path, remarks: list[str]) -> Path:
    """quant_pre_process; without symbolic shape inference where that gives up."""
    inference: Any = import_module("onnxruntime.quantization.shape_inference")
    prepared = model.with_name("prepared.onnx")
    try:
        inference.quant_pre_process(str(model), str(prepared))
    except Exception:  # Exception itself, AssertionError and others, according to the operator it does not know
        remarks.append("pre-processed without its symbolic shape inference, which failed")
        inference.quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    return prepared


if __name__ == "__main__":
    sys.exit(perform(("onnxruntime", "onnx", "numpy"), load, quantize))
