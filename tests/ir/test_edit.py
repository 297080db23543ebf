"""Edits keep both ends of every wire in step, names unique and nodes in order."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from qcompiler.errors import InternalError, ModelError
from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from tests.kit.rewrite import branching, model, to_graph


def test_setting_an_input_keeps_both_ends_in_step_for_equal_nodes() -> None:
    graph = to_graph(model(("Relu", "x", "a"), ("Relu", "x", "b"), ("Add", "a b", "y")))
    first, second = graph.nodes[:2]
    first.name = second.name = "twin"
    second.outputs[0].name = "a"
    edit.set_input(second, 0, gs.Variable("other"))
    assert [id(node) for node in graph.inputs[0].outputs] == [id(first)]


def test_removed_nodes_leave_no_trace_and_take_their_branches_along() -> None:
    graph = branching()
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
    graph = branching()
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


def test_both_ends_of_an_output_follow_it() -> None:
    graph = to_graph(model(("Relu", "x", "a"), ("Neg", "a", "y")))
    old, new = graph.nodes[0].outputs[0], gs.Variable("new")
    edit.set_output(graph.nodes[0], 0, new)
    assert graphs.producer(new) is graph.nodes[0]
    assert graphs.producer(old) is None
    edit.detach(graph.nodes[0])
    assert graphs.producer(new) is None
    assert graphs.consumers(graph.inputs[0]) == []


def test_a_graph_whose_ends_do_not_fit_is_a_defect() -> None:
    graph = to_graph(model(("Relu", "x", "a"), ("Neg", "a", "y")))
    list.clear(graph.nodes[0].outputs[0].outputs)
    with pytest.raises(InternalError, match="'Y' is not listed where it is used"):
        edit.set_input(graph.nodes[1], 0, graph.inputs[0])


def test_a_copied_constant_is_another_tensor_over_the_same_array() -> None:
    values = np.arange(6, dtype=np.float32)
    first = edit.add_constant("w", values)
    twin = edit.copy_constant(first, "w_1")
    assert twin is not first
    assert twin.name == "w_1"
    assert twin.values is values


def test_nodes_go_before_and_behind_others_and_a_stranger_has_no_place() -> None:
    graph = to_graph(model(("Relu", "x", "a"), ("Neg", "a", "y")))
    first, last = graph.nodes
    behind, before = gs.Node("Abs", "behind"), gs.Node("Abs", "before")
    edit.insert_after(graph, last, behind)
    edit.insert_before(graph, first, before)
    assert [node.name for node in graph.nodes] == ["before", first.name, last.name, "behind"]
    assert [edit.index_of(graph, node) for node in (before, first, last, behind)] == [0, 1, 2, 3]
    with pytest.raises(InternalError, match="node 'stranger' is not in graph"):
        edit.insert_after(graph, gs.Node("Abs", "stranger"), gs.Node("Abs", "more"))


def test_two_outputs_cannot_become_one() -> None:
    graph = to_graph(model(("Relu", "x", "a"), ("Neg", "a", "y"), outputs=["a", "y"]))
    a, y = graph.outputs
    assert edit.why_not_replace(graph, y, a) == "both 'y' and 'a' are graph outputs"
    assert edit.why_not_replace(graph, graph.inputs[0], y) == ""


def test_a_version_holds_inside_nested_graphs_and_keeps_other_domains() -> None:
    graph = branching()
    graph.import_domains = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.acme", 3)]
    edit.set_opset(graph, 21, {"ai.onnx.ml": 4})
    assert {inner.opset for inner in graphs.graphs(graph)} == {21}
    assert {one.domain: one.version for one in graph.import_domains} == {"": 21, "ai.onnx.ml": 4, "com.acme": 3}


@pytest.mark.parametrize(
    ("op", "opset", "since"),
    [("Relu", 13, 13), ("Relu", 21, 14), ("Relu", 12, 6), ("Gelu", 19, None), ("No", 21, None)],
)
def test_the_opset_that_defined_an_operator(op: str, opset: int, since: int | None) -> None:
    assert edit.since_version(gs.Node(op), opset) == since
