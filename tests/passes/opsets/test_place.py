from __future__ import annotations

import numpy as np

from qcompiler.ir.names import Names
from qcompiler.passes.opsets._place import Place, element_type, put_behind, put_input, same, shorten
from tests.kit.rewrite import model, to_graph


def test_inputs_are_put_behind_omitted_ones_and_taken_away() -> None:
    graph = to_graph(model(("Relu", "x", "y")))
    node, place = graph.nodes[0], Place(graph, Names(graph))
    held = place.constant(node, "k", np.ones(2, np.float32))
    put_input(node, 2, held)
    assert [tensor.name for tensor in node.inputs] == ["x", "", "Y.k"]
    assert held.outputs == [node]
    put_input(node, 1, held)
    assert [tensor.name for tensor in node.inputs] == ["x", "Y.k", "Y.k"]
    shorten(node, inputs=1)
    assert [tensor.name for tensor in node.inputs] == ["x"]
    assert not held.outputs
    assert same(node, place) == [node]


def test_another_node_writes_the_output() -> None:
    graph = to_graph(model(("Relu", "x", "y")))
    node, place = graph.nodes[0], Place(graph, Names(graph))
    old = put_behind(node, 0, place.value(node, "inner", np.float32))
    last = place.node(node, "Neg", [node.outputs[0]], {}, old)
    assert old is graph.outputs[0]
    assert old.inputs == [last]
    assert element_type(last) == np.float32


def test_what_is_read_is_known() -> None:
    split = ("Split", "x", "a b c")
    graph = to_graph(model(split, ("Relu", "a", "y"), inputs={"x": (3, 4)}, opset=13, outputs=["y", "c"]))
    place = Place(graph, Names(graph))
    assert [place.read(graph.nodes[0], index) for index in range(4)] == [True, False, True, False]
