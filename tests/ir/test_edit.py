"""Edits keep both ends of every wire in step, names unique and nodes in order."""

from __future__ import annotations

import onnx_graphsurgeon as gs
import pytest

from qcompiler.errors import InternalError, ModelError
from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from tests.kit.rewrite import branching, model, to_graph


def test_fresh_names_avoid_everything_that_is_there() -> None:
    names = Names(branching())
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
