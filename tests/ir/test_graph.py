from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import numpy_helper

from qcompiler.ir import graph as graphs
from tests.kit.rewrite import branching, model, to_graph

W = np.arange(24, dtype=np.float32).reshape(4, 6)


def test_uses_are_listed_once_each_with_those_of_nested_graphs() -> None:
    graph = branching()
    uses = [(node.op, index) for node, index in graphs.consumers(graph.nodes[0].outputs[0])]
    assert sorted(uses) == [("Add", 1), ("Mul", 0), ("Neg", 0)]


def test_a_tensor_that_a_node_reads_twice_is_two_uses() -> None:
    graph = to_graph(model(("Mul", "x x", "y")))
    assert [index for _, index in graphs.consumers(graph.inputs[0])] == [0, 1]
    assert graphs.only_consumer(graph, graph.inputs[0]) is None


def test_the_only_consumer_of_a_graph_output_is_none() -> None:
    graph = to_graph(model(("Relu", "x", "a"), ("Neg", "a", "y"), outputs=["a", "y"]))
    assert graphs.only_consumer(graph, graph.nodes[0].outputs[0]) is None
    assert graphs.only_consumer(graph, graph.inputs[0]) is graph.nodes[0]


def test_walk_and_graphs_reach_what_is_nested() -> None:
    graph = branching()
    assert sorted(node.op for node in graphs.walk(graph)) == ["Abs", "Add", "If", "Mul", "Neg", "Relu"]
    assert next(graphs.graphs(graph)) is graph
    assert len(list(graphs.graphs(graph))) == 3


def test_captured_names_are_those_of_the_outer_graph_only() -> None:
    assert graphs.captured(branching()) == {"a", "x"}


@pytest.mark.parametrize(
    ("attrs", "expected"),
    [
        ({"value": numpy_helper.from_array(np.array(3, np.float32))}, 3.0),
        ({"value_float": 2.0}, 2.0),
        ({"value_int": 7}, 7),
        ({"value_ints": [1, 2]}, [1, 2]),
        ({"value_string": "text"}, "text"),
    ],
    ids=str,
)
def test_the_value_of_a_constant_node_also_through_identity(attrs: dict[str, object], expected: object) -> None:
    graph = to_graph(model(("Constant", "", "c", attrs), ("Identity", "c", "y")))
    value = graphs.constant_value(graph.outputs[0])
    assert value is not None
    assert value.tolist() == expected


def test_a_computed_tensor_has_no_constant_value() -> None:
    assert graphs.constant_value(to_graph(model(("Relu", "x", "y"))).outputs[0]) is None


@pytest.mark.parametrize("name", ["FLOAT", "FLOAT16", "BFLOAT16", "INT8", "INT64", "BOOL", "FLOAT8E4M3FN", "INT4"])
def test_types_go_both_ways(name: str) -> None:
    element = getattr(onnx.TensorProto, name)
    assert graphs.onnx_type(graphs.np_dtype(element)) == element


def test_floats_of_every_width_are_floats() -> None:
    kinds = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
    assert all(graphs.is_float(gs.Variable("x", dtype=kind)) for kind in kinds)
    assert not any(graphs.is_float(gs.Variable("x", dtype=kind)) for kind in (np.int8, bool, None))


@pytest.mark.parametrize(("transposed", "axis"), [(0, 1), (1, 0)])
def test_the_channels_of_a_gemm_follow_transb(transposed: int, axis: int) -> None:
    weights = {"w": W.T if transposed else W}
    graph = to_graph(model(("Gemm", "x w", "y", {"transB": transposed}), weights=weights))
    assert graphs.output_axis(graph.nodes[0]) == axis
