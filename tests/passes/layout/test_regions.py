from __future__ import annotations

from qcompiler.passes.layout._regions import Looks, regions
from tests.kit.rewrite import model, to_graph

NHWC, NCHW = {"perm": [0, 2, 3, 1]}, {"perm": [0, 3, 1, 2]}


def test_a_region_reaches_from_layer_to_layer() -> None:
    graph = to_graph(
        model(
            ("GlobalAveragePool", "x", "g"), ("Transpose", "g", "t", NHWC), ("Relu", "t", "r"), ("Add", "r t", "a"),
            ("Transpose", "a", "u", NCHW), ("GlobalMaxPool", "u", "m"), ("Relu", "m", "y"), inputs={"x": (1, 4, 6, 6)},
        )
    )  # fmt: skip
    (found,) = regions(graph, Looks(graph))
    assert {tensor.name for tensor in found.sources} == {"g", "r", "a"}
    assert {node.name: own for node, own in found.movable.values()} == {"R": (0, 2, 3, 1), "A": (0, 2, 3, 1)}


def test_a_look_through_several_transposes() -> None:
    graph = to_graph(model(("Transpose", "x", "t", NHWC), ("Transpose", "t", "y", NHWC), inputs={"x": (1, 2, 3, 4)}))
    look = Looks(graph).at(graph.outputs[0])
    assert look is not None
    assert (look.source.name, look.order) == ("x", (0, 3, 1, 2))


def test_a_node_in_two_orders_at_once_is_none_that_moves() -> None:
    swap = {"perm": [1, 0]}
    graph = to_graph(model(("Transpose", "x", "t", swap), ("Add", "x t", "y"), inputs={"x": (4, 4)}))
    (found,) = regions(graph, Looks(graph))
    assert found.movable == {}
