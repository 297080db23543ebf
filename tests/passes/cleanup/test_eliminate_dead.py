from __future__ import annotations

import numpy as np

from qcompiler.passes.cleanup.eliminate_dead import EliminateDead
from tests.kit.rewrite import check, check_untouched, graph_proto, model

W = np.eye(4, dtype=np.float32)


def test_a_node_that_nobody_reads_goes_with_its_weight() -> None:
    proto = model(("Relu", "x", "y"), ("MatMul", "x w", "unused"), weights={"w": W})
    graph, report = check(EliminateDead(), proto, ops=["Relu"])
    assert "w" not in graph.tensors()
    assert report.notes[0].text == "removed; nothing reads 'unused'"


def test_a_chain_goes_in_one_run() -> None:
    check(
        EliminateDead(),
        model(("Relu", "x", "y"), ("Neg", "x", "a"), ("Abs", "a", "b"), ("Exp", "b", "c")),
        ops=["Relu"],
    )


def test_what_only_a_dead_nested_graph_reads_goes_too() -> None:
    then = graph_proto([("Mul", "a a", "t")], {}, ["t"])
    other = graph_proto([("Neg", "a", "o")], {}, ["o"])
    proto = model(
        ("Relu", "x", "y"),
        ("Abs", "x", "a"),
        ("If", "flag", "gone", {"then_branch": then, "else_branch": other}),
        inputs={"x": (2, 4), "flag": (bool, ())},
    )
    check(EliminateDead(), proto, ops=["Relu"])


def test_dead_nodes_inside_a_live_branch_go() -> None:
    then = graph_proto([("Relu", "x", "t"), ("Exp", "a", "dead")], {}, ["t"])
    other = graph_proto([("Neg", "x", "o")], {}, ["o"])
    proto = model(
        ("Abs", "x", "a"),
        ("If", "flag", "y", {"then_branch": then, "else_branch": other}),
        inputs={"x": (2, 4), "flag": (bool, ())},
    )
    graph, _ = check(EliminateDead(), proto, ops=["If"])
    assert [node.op for node in graph.nodes[0].attrs["then_branch"].nodes] == ["Relu"]


def test_unused_inputs_belong_to_the_interface_and_stay() -> None:
    check_untouched(EliminateDead(), model(("Relu", "x", "y"), inputs={"x": (2, 4), "idle": (3,)}))


def test_an_unread_second_output_keeps_its_node() -> None:
    proto = model(("MaxPool", "x", "y i", {"kernel_shape": [2]}), inputs={"x": (1, 2, 4)})
    check_untouched(EliminateDead(), proto)


def test_a_tensor_that_only_a_nested_graph_reads_is_alive() -> None:
    then = graph_proto([("Relu", "a", "t")], {}, ["t"])
    other = graph_proto([("Neg", "a", "o")], {}, ["o"])
    proto = model(
        ("Abs", "x", "a"),
        ("If", "flag", "y", {"then_branch": then, "else_branch": other}),
        inputs={"x": (2, 4), "flag": (bool, ())},
    )
    check_untouched(EliminateDead(), proto)
