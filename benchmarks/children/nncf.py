"""NNCF's ONNX backend: post-training INT8.

Option: `type` ("none", its default, or "transformer": its SmoothQuant and its list of operations left alone).
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from benchmarks.children.common import Samples, perform
from benchmarks.children.order import Order


def load() -> None:
    """Imports what `quantize` uses."""
    import_module("onnx")
    import_module("nncf")


def quantize(order: Order, samples: Samples) -> str:
    """nncf.quantize on all samples, with the symmetric preset."""
    onnx: Any = import_module("onnx")
    tool: Any = import_module("nncf")
    quantized = tool.quantize(
        onnx.load(str(order.model)),
        tool.Dataset(samples),
        subset_size=len(samples),
        preset=tool.QuantizationPreset.PERFORMANCE,
        model_type=tool.ModelType.TRANSFORMER if order.options["type"] == "transformer" else None,
    )
    onnx.save(quantized, str(order.output))
    return ""


if __name__ == "__main__":
    sys.exit(perform(("nncf", "onnxruntime", "onnx", "torch"), load, quantize))
