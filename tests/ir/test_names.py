"""New names are free in the whole graph, nested graphs included, and the same in every run."""

from __future__ import annotations

import onnx
from onnx import helper

from qcompiler.ir.names import Names
from tests.kit import rewrite
from tests.kit.rewrite import model, to_graph


def branching() -> onnx.ModelProto:
    """An If whose branch has a node `inner` that writes `t`."""
    branch = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["t"], name="inner")],
        "branch",
        [],
        [helper.make_tensor_value_info("t", onnx.TensorProto.FLOAT, None)],
    )
    proto = model(("Relu", "x", "a"), ("Neg", "a", "y"))
    proto.graph.input.append(helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []))
    proto.graph.node.append(helper.make_node("If", ["c"], ["z"], name="If", then_branch=branch, else_branch=branch))
    return proto


def test_names_of_nodes_and_tensors_in_nested_graphs_are_taken() -> None:
    names = Names(to_graph(branching()))
    assert [names.fresh("inner"), names.fresh("t"), names.fresh("x")] == ["inner_1", "t_1", "x_1"]


def test_a_name_that_was_handed_out_is_taken_and_numbers_go_on() -> None:
    names = Names(to_graph(branching()))
    assert [names.fresh("new"), names.fresh("new"), names.fresh("new_1"), names.fresh("new")] == [
        "new",
        "new_1",
        "new_1_1",
        "new_2",
    ]


def test_no_name_becomes_a_number() -> None:
    names = Names(to_graph(branching()))
    assert [names.fresh(""), names.fresh("")] == ["_1", "_2"]


def test_names_are_the_same_in_every_run() -> None:
    first, second = (Names(to_graph(branching())) for _ in range(2))
    assert [first.fresh(base) for base in ("a", "t", "a")] == [second.fresh(base) for base in ("a", "t", "a")]


def test_fresh_names_avoid_everything_that_is_there() -> None:
    names = Names(rewrite.branching())
    assert [names.fresh("a"), names.fresh("a"), names.fresh("t"), names.fresh("new"), names.fresh("new")] == [
        "a_1",
        "a_2",
        "t_1",
        "new",
        "new_1",
    ]
