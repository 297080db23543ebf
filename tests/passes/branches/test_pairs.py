from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.passes.branches._pairs import Becomes, Pairs
from qcompiler.runtime import shapes
from tests.kit.rewrite import graph_proto, model, to_graph

ONE = np.ones((4, 4), np.float32)


def found(then: list[Any], other: list[Any]) -> Becomes:
    """What becomes of `p` of the then branch and `q` of the else branch."""
    branches = {"then_branch": graph_proto(then, {}, ["p"]), "else_branch": graph_proto(other, {}, ["q"])}
    weights = {"one": ONE, "twin": ONE.copy(), "two": 2 * ONE, "long": np.array([2, 4])}
    graph = to_graph(
        model(("If", "flag", "y", branches), inputs={"x": (2, 4), "flag": (bool, ())}, weights=weights, opset=18)
    )
    shapes.infer(graph)
    first, second = graph.nodes[0].attrs["then_branch"], graph.nodes[0].attrs["else_branch"]
    return Pairs.of(first, second).look(first.outputs[0], second.outputs[0])


@pytest.mark.parametrize(
    ("then", "other", "becomes"),
    [
        ([("Relu", "x", "p")], [("Relu", "x", "q")], Becomes.MERGED),
        ([("MatMul", "x one", "p")], [("MatMul", "x twin", "q")], Becomes.MERGED),
        ([("MatMul", "x one", "p")], [("MatMul", "x two", "q")], Becomes.CHOSEN),
        ([("Relu", "x", "p")], [("Neg", "x", "q")], Becomes.CHOSEN),
        ([("Elu", "x", "p", {"alpha": 1.0})], [("Elu", "x", "q", {"alpha": 2.0})], Becomes.CHOSEN),
        ([("Relu", "x", "a"), ("Neg", "a", "p")], [("Abs", "x", "b"), ("Neg", "b", "q")], Becomes.MERGED),
        ([("Shape", "x", "p")], [("Identity", "long", "q")], Becomes.APART),
        ([("Shape", "x", "p")], [("Shape", "x", "q")], Becomes.MERGED),
        ([("Neg", "x", "p")], [("Unsqueeze", "x long", "q")], Becomes.APART),
    ],
)
def test_what_becomes_of_two_results(then: list[Any], other: list[Any], becomes: Becomes) -> None:
    assert found(then, other) is becomes
