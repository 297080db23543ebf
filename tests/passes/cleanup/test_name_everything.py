from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from qcompiler.errors import ModelError
from qcompiler.ir.edit import set_input
from qcompiler.ir.graph import subgraphs
from qcompiler.passes.base import Fact
from qcompiler.passes.cleanup.name_everything import NameEverything
from tests.kit import facts
from tests.kit.rewrite import check, check_untouched, graph_proto, model, to_graph


def _if(**weights: object) -> gs.Graph:
    branch = [("Mul", "x c", "inner"), ("Relu", "inner", "out")]
    then = graph_proto(branch, {}, ["out"], {"c": np.float32(2)})
    other = graph_proto(branch, {}, ["out"], {"c": np.float32(3)})
    return to_graph(
        model(
            ("If", "flag", "y", {"then_branch": then, "else_branch": other}),
            inputs={"x": (2, 4), "flag": (bool, ())},
        )
    )


def test_nodes_without_a_name_are_named_after_their_operator() -> None:
    graph = to_graph(model(("Relu", "x", "a"), ("Relu", "a", "y")))
    for node in graph.nodes:
        node.name = ""
    assert [note.node for note in NameEverything()(graph).notes] == ["Relu", "Relu_1"]


def test_the_first_of_two_equal_node_names_stays() -> None:
    graph = to_graph(model(("Relu", "x", "a"), ("Relu", "a", "b"), ("Relu", "b", "y")))
    for node in graph.nodes:
        node.name = "same"
    report = NameEverything()(graph)
    assert [node.name for node in graph.nodes] == ["same", "same_1", "same_2"]
    assert report.changed == 2
    assert "another node is 'same'" in report.notes[0].text


def test_equal_tensor_names_in_two_branches_become_different() -> None:
    branch = [("Mul", "x c", "inner"), ("Relu", "inner", "out")]
    bodies = [graph_proto(branch, {}, ["out"], {"c": np.float32(factor)}) for factor in (2, 3)]
    proto = model(
        ("If", "flag", "y", {"then_branch": bodies[0], "else_branch": bodies[1]}),
        inputs={"x": (2, 4), "flag": (bool, ())},
    )
    graph, _ = check(NameEverything(), proto)
    assert facts.verify(Fact.NAMED, graph) == []


def test_a_nested_graph_that_returns_an_outer_tensor_returns_a_copy() -> None:
    then = graph_proto([("Relu", "x", "r")], {}, ["r"])
    other = graph_proto([("Neg", "x", "n")], {}, ["n"])
    graph = to_graph(
        model(
            ("Abs", "x", "a"),
            ("If", "flag", "b", {"then_branch": then, "else_branch": other}),
            ("Add", "a b", "y"),
            inputs={"x": (2, 4), "flag": (bool, ())},
        )
    )
    inner = subgraphs(graph.nodes[1])[0]
    inner.outputs[0] = graph.nodes[0].outputs[0]
    report = NameEverything()(graph)
    assert "returns 'a' of the outer graph" in report.notes[0].text
    assert inner.outputs[0].inputs[0].op == "Identity"
    assert inner.outputs[0].inputs[0].inputs[0] is graph.nodes[0].outputs[0]


def test_a_tensor_that_a_nested_graph_reads_by_name_becomes_the_same_object() -> None:
    graph = _if()
    inner = subgraphs(graph.nodes[0])[0]
    set_input(inner.nodes[0], 0, gs.Variable("x"))
    NameEverything()(graph)
    assert inner.nodes[0].inputs[0] is graph.inputs[0]


def test_a_tensor_that_nothing_writes_is_refused_with_the_node() -> None:
    graph = to_graph(model(("Relu", "x", "y")))
    set_input(graph.nodes[0], 0, gs.Variable("nowhere"))
    with pytest.raises(ModelError, match="input 0 of node 'Y' \\(Relu\\) is 'nowhere'"):
        NameEverything()(graph)


def test_a_model_with_unique_names_is_left_alone() -> None:
    check_untouched(NameEverything(), model(("Relu", "x", "a"), ("Neg", "a", "y")))


def test_names_are_the_same_on_every_run() -> None:
    def named() -> list[str]:
        graph = _if()
        NameEverything()(graph)
        return [tensor.name for inner in subgraphs(graph.nodes[0]) for one in inner.nodes for tensor in one.inputs]

    assert named() == named()
