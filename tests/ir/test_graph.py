from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import numpy_helper

from qcompiler.errors import InternalError, ModelError
from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.linear import weight_of
from qcompiler.ir.names import Names
from tests.kit.rewrite import graph_proto, model, to_graph

W = np.arange(24, dtype=np.float32).reshape(4, 6)


def _branching() -> gs.Graph:
    inner_then = graph_proto([("Mul", "a x", "p"), ("Relu", "p", "t")], {}, ["t"])
    inner_other = graph_proto([("Neg", "a", "o")], {}, ["o"])
    return to_graph(
        model(
            ("Abs", "x", "a"),
            ("If", "flag", "b", {"then_branch": inner_then, "else_branch": inner_other}),
            ("Add", "b a", "y"),
            inputs={"x": (2, 4), "flag": (bool, ())},
        )
    )


def test_uses_are_listed_once_each_with_those_of_nested_graphs() -> None:
    graph = _branching()
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
    graph = _branching()
    assert sorted(node.op for node in graphs.walk(graph)) == ["Abs", "Add", "If", "Mul", "Neg", "Relu"]
    assert next(graphs.graphs(graph)) is graph
    assert len(list(graphs.graphs(graph))) == 3


def test_captured_names_are_those_of_the_outer_graph_only() -> None:
    assert graphs.captured(_branching()) == {"a", "x"}


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


def test_fresh_names_avoid_everything_that_is_there() -> None:
    names = Names(_branching())
    assert [names.fresh("a"), names.fresh("a"), names.fresh("t"), names.fresh("new"), names.fresh("new")] == [
        "a_1",
        "a_2",
        "t_1",
        "new",
        "new_1",
    ]


def test_setting_an_input_keeps_both_ends_in_step_for_equal_nodes() -> None:
    graph = to_graph(model(("Relu", "x", "a"), ("Relu", "x", "b"), ("Add", "a b", "y")))
    first, second = graph.nodes[:2]
    first.name = second.name = "twin"
    second.outputs[0].name = "a"
    edit.set_input(second, 0, gs.Variable("other"))
    assert [id(node) for node in graph.inputs[0].outputs] == [id(first)]


def test_removed_nodes_leave_no_trace_and_take_their_branches_along() -> None:
    graph = _branching()
    a, branch = graph.nodes[0].outputs[0], graph.nodes[1]
    edit.remove_node(graph, branch)
    assert [node.op for node, _ in graphs.consumers(a)] == ["Add"]
    assert [node.op for node in graph.nodes] == ["Abs", "Add"]


def test_replacing_an_output_keeps_its_name() -> None:
    graph = to_graph(model(("Relu", "x", "a"), ("Neg", "a", "y")))
    a, y = (node.outputs[0] for node in graph.nodes)
    edit.replace_uses(graph, y, a)
    assert [tensor.name for tensor in graph.outputs] == ["y"]
    assert graph.outputs[0] is a


def test_an_output_cannot_be_replaced_by_an_input() -> None:
    graph = to_graph(model(("Relu", "x", "y")))
    with pytest.raises(InternalError, match="would have no node of its own"):
        edit.replace_uses(graph, graph.outputs[0], graph.inputs[0])


def test_inserting_keeps_the_order() -> None:
    graph = to_graph(model(("Relu", "x", "a"), ("Neg", "a", "y")))
    node = gs.Node("Abs", "new", inputs=[graph.nodes[0].outputs[0]], outputs=[gs.Variable("b")])
    edit.insert_before(graph, graph.nodes[1], node)
    edit.set_input(graph.nodes[2], 0, node.outputs[0])
    assert [one.op for one in graph.nodes] == ["Relu", "Abs", "Neg"]
    assert graph.nodes[2].inputs[0].name == "b"


def test_sorting_is_stable_and_follows_captured_tensors() -> None:
    graph = _branching()
    graph.nodes[:] = [graph.nodes[i] for i in (2, 1, 0)]
    edit.sort(graph)
    assert [node.op for node in graph.nodes] == ["Abs", "If", "Add"]
    independent = to_graph(model(("Relu", "x", "a"), ("Neg", "x", "b"), ("Abs", "x", "y"), outputs=["a", "b", "y"]))
    edit.sort(independent)
    assert [node.op for node in independent.nodes] == ["Relu", "Neg", "Abs"]


def test_sorting_a_cycle_names_a_node_of_it() -> None:
    graph = to_graph(model(("Relu", "x", "a"), ("Neg", "a", "b"), ("Abs", "b", "y")))
    edit.set_input(graph.nodes[0], 0, graph.nodes[1].outputs[0])
    with pytest.raises(ModelError, match="cycle: node 'A'"):
        edit.sort(graph)


@pytest.mark.parametrize("name", ["FLOAT", "FLOAT16", "BFLOAT16", "INT8", "INT64", "BOOL", "FLOAT8E4M3FN", "INT4"])
def test_types_go_both_ways(name: str) -> None:
    element = getattr(onnx.TensorProto, name)
    assert graphs.onnx_type(graphs.np_dtype(element)) == element


def test_floats_of_every_width_are_floats() -> None:
    kinds = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
    assert all(graphs.is_float(gs.Variable("x", dtype=kind)) for kind in kinds)
    assert not any(graphs.is_float(gs.Variable("x", dtype=kind)) for kind in (np.int8, bool, None))


def test_the_weight_of_a_conv_is_found_with_its_axis() -> None:
    graph = to_graph(model(("Conv", "x w", "y"), inputs={"x": (1, 4, 5)}, weights={"w": W.reshape(6, 4, 1)}))
    weight = weight_of(graph.nodes[0])
    assert weight is not None
    assert (weight.tensor.name, weight.axis, weight.stored_axis, weight.chain) == ("w", 0, 0, ())


@pytest.mark.parametrize(
    ("chain", "weights", "stored_axis"),
    [
        pytest.param([("Transpose", "w", "m")], {"w": W.T}, 0, id="Transpose"),
        pytest.param([("Reshape", "w s", "m")], {"w": W.reshape(2, 2, 6), "s": np.array([4, 6])}, 2, id="Reshape"),
        pytest.param([("Reshape", "w s", "m")], {"w": W.reshape(4, 2, 3), "s": np.array([4, -1])}, None, id="mixed"),
        pytest.param([("Cast", "w", "m", {"to": 1})], {"w": W.astype(np.float16)}, 1, id="Cast"),
        pytest.param([("Squeeze", "w", "m")], {"w": W.reshape(4, 1, 6)}, 2, id="Squeeze"),
        pytest.param(
            [("Unsqueeze", "w a", "u"), ("Squeeze", "u a", "m")], {"w": W, "a": np.array([0])}, 1, id="there and back"
        ),
    ],
)
def test_a_weight_behind_views_is_found(
    chain: list[tuple[str, ...]], weights: dict[str, np.ndarray], stored_axis: int | None
) -> None:
    graph = to_graph(model(*chain, ("MatMul", "x m", "y"), weights=weights))
    weight = weight_of(graph.nodes[-1])
    assert weight is not None
    assert (weight.tensor.name, weight.axis, weight.stored_axis) == ("w", 1, stored_axis)
    assert [node.op for node in weight.chain] == [spec[0] for spec in chain]


def test_a_weight_on_the_left_has_its_channels_in_the_rows() -> None:
    graph = to_graph(model(("MatMul", "w x", "y"), inputs={"x": (6, 2)}, weights={"w": W}))
    weight = weight_of(graph.nodes[0])
    assert weight is not None
    assert (weight.index, weight.axis) == (0, 0)


@pytest.mark.parametrize(("transposed", "axis"), [(0, 1), (1, 0)])
def test_the_channels_of_a_gemm_follow_transb(transposed: int, axis: int) -> None:
    weights = {"w": W.T if transposed else W}
    graph = to_graph(model(("Gemm", "x w", "y", {"transB": transposed}), weights=weights))
    assert graphs.output_axis(graph.nodes[0]) == axis


def test_a_computed_operand_is_no_weight() -> None:
    graph = to_graph(model(("Relu", "x", "a"), ("MatMul", "x a", "y"), inputs={"x": (4, 4)}))
    assert weight_of(graph.nodes[1]) is None
