from __future__ import annotations

import pytest

from qcompiler.passes.opsets._runs import highest, kinds, lacks, runnable
from tests.kit.rewrite import graph_proto, model, to_graph

CUBE = {"x": (2, 4, 6, 6)}


def test_one_node_of_each_kind() -> None:
    graph = to_graph(model(("Relu", "x", "a"), ("Relu", "a", "b"), ("Cast", "b", "c", {"to": 11}), ("Relu", "c", "y")))
    assert [node.name for node in kinds(graph)] == ["A", "C", "Y"]


def test_what_lacks_a_kernel_where() -> None:
    node = to_graph(model(("GlobalLpPool", "x", "y"), inputs=CUBE)).nodes[0]
    assert lacks(node, 22)
    assert not lacks(node, 21)


@pytest.mark.parametrize(("opset", "found"), [(21, 21), (22, 21), (23, 21)])
def test_a_model_is_run_in_the_last_opset_that_runs(opset: int, found: int) -> None:
    graph = to_graph(model(("GlobalLpPool", "x", "e"), ("Relu", "e", "y"), inputs=CUBE, opset=opset))
    assert runnable(graph, opset)[0] == found


def test_also_for_what_stands_in_a_body() -> None:
    then = graph_proto([("GlobalLpPool", "x", "t")], {}, ["t"])
    other = graph_proto([("GlobalMaxPool", "x", "o")], {}, ["o"])
    spec = ("If", "flag", "y", {"then_branch": then, "else_branch": other})
    graph = to_graph(model(spec, inputs={**CUBE, "flag": (bool, ())}, opset=23))
    assert runnable(graph, 23) == (21, "ONNX Runtime has no kernel for GlobalLpPool ('T') of opset 22")


def test_not_where_another_node_needs_the_new_one() -> None:
    proto = model(("GlobalLpPool", "x", "e"), ("RMSNormalization", "e s", "y"), inputs={**CUBE, "s": (1,)}, opset=23)
    assert runnable(to_graph(proto), 23) == (23, "")


def test_the_highest_opset_is_asked_of_what_a_node_becomes() -> None:
    attrs = {"output_height": 2, "output_width": 2}
    inputs = {**CUBE, "r": ("k", 4), "b": ("int64", ("k",))}
    graph = to_graph(model(("RoiAlign", "x r b", "y", attrs), inputs=inputs, opset=10))
    assert highest(graph, 10, 23) == (21, "ONNX Runtime has no kernel for RoiAlign ('Y') of opset 23")
