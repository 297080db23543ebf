from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from qcompiler.errors import ModelError
from qcompiler.ir.names import Names
from qcompiler.passes.opsets._place import Place
from qcompiler.passes.opsets._steps import raised
from tests.kit.rewrite import model, to_graph


def test_rows_follow_each_other() -> None:
    graph = to_graph(model(("Upsample", "x", "y", {"scales": [1.0, 2.0], "mode": "linear"}), opset=7))
    node = graph.nodes[0]
    assert raised(node, 7, 9, Place(graph, Names(graph))) == [node]
    assert (node.op, len(node.inputs)) == ("Upsample", 2)
    assert raised(node, 9, 11, Place(graph, Names(graph))) == [node]
    assert (node.op, len(node.inputs)) == ("Resize", 3)


def test_nothing_happens_between_changes() -> None:
    graph = to_graph(model(("Softmax", "x", "y", {"axis": 0}), opset=13))
    assert raised(graph.nodes[0], 13, 23, Place(graph, Names(graph))) == [graph.nodes[0]]
    assert graph.nodes[0].attrs == {"axis": 0}


def test_a_change_without_a_row_is_refused() -> None:
    graph = to_graph(model(("Range", "a b c", "y"), inputs=dict.fromkeys("abc", ()), opset=26))
    with pytest.raises(
        ModelError, match=r"node 'Y' \(Range\) cannot be taken from opset 26 to 27: opset 27 changed it"
    ):
        raised(graph.nodes[0], 26, 27, Place(graph, Names(graph)))


def test_a_norm_that_onnx_runtime_had_before_onnx_is_onnx_s() -> None:
    graph = to_graph(model(("Relu", "x", "y"), weights={"g": np.ones(4, np.float32)}, opset=13))
    norm = gs.Node("LayerNormalization", "N", {"epsilon": 1e-3}, [graph.inputs[0]], [gs.Variable("n")])
    assert raised(norm, 13, 23, Place(graph, Names(graph))) == [norm]
    assert (norm.op, norm.attrs) == ("LayerNormalization", {"epsilon": 1e-3})
