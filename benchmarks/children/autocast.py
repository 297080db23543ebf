"""AutoCast of NVIDIA Model Optimizer on the CPU: a float model becomes FP16 with Casts, all else by its defaults.

Options: `data` ("yes": the samples; "no": its default, random numbers).
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from benchmarks.children.common import Samples, perform
from benchmarks.children.order import Order


def convert(order: Order, samples: Samples) -> str:
    """What `python -m modelopt.onnx.autocast --keep_io_types` calls."""
    tool: Any = import_module("modelopt.onnx.autocast")
    utilities: Any = import_module("modelopt.onnx.utils")
    given = str(samples.files[0].parent) if order.options["data"] == "yes" else None
    made = tool.convert_to_mixed_precision(
        onnx_path=str(order.model), low_precision_type="fp16", keep_io_types=True, calibration_data=given
    )
    utilities.save_onnx(made, str(order.output))
    return ""


if __name__ == "__main__":
    NAMES = ("nvidia-modelopt", "onnxruntime-gpu", "onnx", "torch")
    sys.exit(perform(NAMES, lambda: import_module("modelopt.onnx.autocast"), convert))
