"""What a model takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from qcompiler.ir import model as models
from qcompiler.ir.signature import inputs_of


def test_inputs_have_the_type_and_the_fixed_and_free_sizes_of_the_graph(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[n, 3] x, int64[] s, float16[?, 2] h) => (float[n, 3] y)'
    onnx.save(onnx.parser.parse_model(text + " { y = Identity(x) }"), tmp_path / "m.onnx")
    model = models.load(tmp_path / "m.onnx")
    assert inputs_of(model.graph) == {
        "x": (np.dtype(np.float32), ("n", 3)),
        "s": (np.dtype(np.int64), None),
        "h": (np.dtype(np.float16), (None, 2)),
    }
