from __future__ import annotations

import numpy as np

from qcompiler.ir.graph import values_of
from qcompiler.ir.names import Names
from qcompiler.passes.layout._reorder import Reorder, constant_size
from tests.kit.rewrite import model, to_graph

NCHW = (0, 3, 1, 2)
IMAGE = {"x": (1, 6, 5, 4)}


def test_widths_of_a_border() -> None:
    widths = np.array([0, 1, 2, 3, 4, 5, 6, 7])
    graph = to_graph(model(("Pad", "x p", "y"), inputs=IMAGE, weights={"p": widths}, opset=21))
    Reorder(graph, Names(graph))(graph.nodes[0], NCHW)
    assert values_of(graph.nodes[0].inputs[1]).tolist() == [0, 3, 1, 2, 4, 7, 5, 6]


def test_a_constant_that_others_read_stays_for_them() -> None:
    nodes = [("Mul", "x k", "a"), ("Add", "a k", "y")]
    graph = to_graph(model(*nodes, inputs=IMAGE, weights={"k": np.arange(4, dtype=np.float32)}))
    first, second = graph.nodes
    Reorder(graph, Names(graph))(first, NCHW)
    assert tuple(first.inputs[1].shape) == (1, 4, 1, 1)
    assert tuple(second.inputs[1].shape) == (4,)


def test_all_axes_of_a_slice_are_named() -> None:
    weights = {"s": np.array([0, 1]), "e": np.array([1, 3])}
    graph = to_graph(model(("Slice", "x s e", "y"), inputs=IMAGE, weights=weights, opset=21))
    Reorder(graph, Names(graph))(graph.nodes[0], NCHW)
    assert values_of(graph.nodes[0].inputs[3]).tolist() == [0, 2]


def test_how_many_values() -> None:
    graph = to_graph(model(("Mul", "x k", "y"), inputs=IMAGE, weights={"k": np.zeros(4, np.float32)}))
    assert [constant_size(graph.nodes[0], index) for index in (0, 1, 2)] == [None, 4, None]
