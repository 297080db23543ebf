"""Which tensors of an edited graph hold what they held before."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from qcompiler.ir import graph as graphs
from qcompiler.statistics.unchanged import unchanged
from tests.kit.rewrite import graph_proto, model, to_graph

W = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)


def network(**options: Any) -> gs.Graph:
    then = graph_proto([("Mul", "a two", "inside")], {}, ["inside"])
    other = graph_proto([("Neg", "a", "beside")], {}, ["beside"])
    return to_graph(
        model(
            ("MatMul", "x w", "a"),
            ("Relu", "x", "b"),
            ("If", "c", "d", {"then_branch": then, "else_branch": other}),
            ("Concat", "b d", "y", {"axis": options.get("axis", 0)}),
            inputs={"x": (4, 4), "c": (np.bool_, ())},
            weights={"w": options.get("w", W), "two": np.float32(options.get("two", 2))},
        )
    )


EVERYTHING = {"x", "c", "a", "b", "d", "y", "inside", "beside"}


def test_a_copy_is_the_same_also_where_its_weights_lie_elsewhere() -> None:
    graph = network()
    assert unchanged(graph, graph.copy()) == EVERYTHING
    assert unchanged(graph, network(w=W.copy())) == EVERYTHING


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({"w": W * 2}, {"x", "c", "b"}),
        ({"two": 3}, {"x", "c", "a", "b"}),
        ({"axis": 1}, EVERYTHING - {"y"}),
    ],
    ids=["a weight", "a constant in a branch", "an attribute"],
)
def test_what_reads_a_change_has_changed(options: dict[str, Any], same: set[str]) -> None:
    assert unchanged(network(), network(**options)) == same


def test_the_last_element_of_a_large_weight_counts() -> None:
    large = np.zeros((128, 128), np.float32)
    other = large.copy()
    other[-1, -1] = 1
    one, two = (
        to_graph(model(("MatMul", "x w", "y"), inputs={"x": (2, 128)}, weights={"w": w})) for w in (large, other)
    )
    assert unchanged(one, two) == {"x"}


def test_new_nodes_and_names_that_were_taken_over_count_as_changes() -> None:
    before, after = network(), network()
    relu = next(node for node in after.nodes if node.op == "Relu")
    relu.op = "Abs"
    assert unchanged(before, after) == EVERYTHING - {"b", "y"}
    after = network()
    scaled = gs.Variable("x/scaled", np.float32)
    first = graphs.producer(next(t for t in graphs.tensors(after) if t.name == "a"))
    assert first is not None
    after.nodes.insert(
        0, gs.Node("Mul", "scale", {}, [first.inputs[0], gs.Constant("k", np.array(2, np.float32))], [scaled])
    )
    first.inputs[0] = scaled
    assert unchanged(before, after) == {"x", "c", "b"}
