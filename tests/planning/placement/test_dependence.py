"""What the values of a tensor depend on: inputs that do not change, or nothing that is fed."""

from __future__ import annotations

import numpy as np
import onnx

from qcompiler.planning.placement.dependence import unvarying
from tests.kit.rewrite import graph_proto, model, to_graph

W = {"w": np.ones((4, 4), np.float32), "b": np.ones(4, np.float32)}


def test_what_is_computed_from_still_inputs_alone_is_still() -> None:
    graph = to_graph(
        model(
            ("MatMul", "side w", "m"),
            ("Add", "m b", "s"),
            ("Relu", "s", "r"),
            ("Add", "r x", "y"),
            ("Mul", "r mask", "z"),
            inputs={"x": (2, 4), "side": (2, 4), "mask": (2, 1)},
            outputs=("y", "z"),
            weights=W,
        )
    )
    found = unvarying(graph, {"side"})
    assert {found[name] for name in ("side", "m", "s", "r")} == {frozenset({"side"})}
    assert not {"x", "y", "z"} & found.keys()
    assert unvarying(graph, {"side", "mask"})["z"] == {"side", "mask"}


def test_a_tensor_that_was_seen_still_begins_a_still_part() -> None:
    graph = to_graph(model(("Relu", "x", "r"), ("MatMul", "r w", "m"), ("Exp", "m", "y"), weights=W))
    assert unvarying(graph, {"r"})["y"] == {"r"}
    assert unvarying(graph, ()).keys() == {"w"}


def test_shapes_and_constants_depend_on_nothing_that_is_fed() -> None:
    graph = to_graph(
        model(
            ("Shape", "x", "s"),
            ("ConstantOfShape", "s", "zeros"),
            ("Add", "zeros b", "state"),
            ("Add", "state x", "y"),
            weights=W,
        )
    )
    found = unvarying(graph, ())
    assert found["state"] == frozenset()
    assert "y" not in found


def test_random_numbers_change_and_so_does_what_a_branch_reads() -> None:
    noise = model(("RandomNormalLike", "x", "n"), ("Add", "n x", "y"))
    assert not {"n", "y"} & unvarying(to_graph(noise), {"x"}).keys()
    then = graph_proto([("Relu", "x", "t")], {}, ["t"])
    other = graph_proto([("Add", "side b", "e")], {}, ["e"])
    branch = onnx.helper.make_node("If", ["flag"], ["y"], name="Y", then_branch=then, else_branch=other)
    proto = model(
        ("Relu", "x", "y"),
        inputs={"x": (2, 4), "side": (2, 4), "flag": (np.bool_, ())},
        weights=W,
    )
    del proto.graph.node[:]
    proto.graph.node.append(branch)
    graph = to_graph(proto)
    assert "y" not in unvarying(graph, {"side", "flag"})
    assert unvarying(graph, {"side", "flag", "x"})["y"] == {"x", "side", "flag"}
