"""What a model takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler.ir import model as models
from qcompiler.ir.signature import in_float32, inputs_of


def test_inputs_have_the_type_and_the_fixed_and_free_sizes_of_the_graph(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[n, 3] x, int64[] s, float16[?, 2] h) => (float[n, 3] y)'
    onnx.save(onnx.parser.parse_model(text + " { y = Identity(x) }"), tmp_path / "m.onnx")
    model = models.load(tmp_path / "m.onnx")
    assert inputs_of(model.graph) == {
        "x": (np.dtype(np.float32), ("n", 3)),
        "s": (np.dtype(np.int64), None),
        "h": (np.dtype(np.float16), (None, 2)),
    }


def test_sequences_and_optionals_have_no_type(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["" : 21]> g (seq(float[2]) s, optional(float[2]) o) => (float[2] y)'
    body = " { i = Constant<value_int = 0>() y = SequenceAt(s, i) }"
    onnx.save(onnx.parser.parse_model(text + body), tmp_path / "m.onnx")
    found = inputs_of(models.load(tmp_path / "m.onnx").graph)
    assert list(found) == ["s", "o"]
    assert {dtype for dtype, _ in found.values()} == {None}


def test_inputs_stand_in_the_order_of_the_graph_and_none_is_none() -> None:
    names = ["z", "a", "выход"]
    graph = gs.Graph(inputs=[gs.Variable(name, np.float32, [1]) for name in names])
    assert list(inputs_of(graph)) == names
    assert inputs_of(gs.Graph()) == {}


def test_other_floats_are_told_apart_from_what_they_are_computed_in() -> None:
    half, wide, ids = np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.int64)
    found, stored = in_float32({"h": (half, (2,)), "x": (wide, None), "i": (ids, ("n",)), "s": (None, None)})
    assert found == {"h": (wide, (2,)), "x": (wide, None), "i": (ids, ("n",)), "s": (None, None)}
    assert stored == {"h": half}
