"""The physical limit: load the float model with ONNX Runtime, run it over the same samples, keep nothing."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from benchmarks.children.common import Samples, perform
from benchmarks.children.order import Order


def session(path: str) -> Any:
    """An ONNX Runtime session on the CPU as anybody makes it: all optimisations, as many threads as cores."""
    ort = import_module("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def plain_pass(order: Order, samples: Samples) -> str:
    """One pass over the samples."""
    float_model = session(str(order.model))
    for feeds in samples:
        float_model.run(None, feeds)
    return ""


if __name__ == "__main__":
    sys.exit(perform(("onnxruntime", "numpy"), lambda: import_module("onnxruntime"), plain_pass))
