"""What stands against reordering channels: every node that does not treat them alike is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.ir.graph import tensors
from qcompiler.ir.names import Names
from qcompiler.passes.channels import _permutation as permutation
from qcompiler.runtime.session import Session
from tests.kit.rewrite import Spec, model, to_graph

W = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
FIRST: Spec = ("MatMul", "x u", "t")


def graph_of(*nodes: Spec, outputs: tuple[str, ...] = ("y",), **weights: Any) -> Any:
    return to_graph(
        model(FIRST, *nodes, inputs={"x": (2, 3, 8)}, outputs=outputs, weights={"u": W, "w": W.T.copy(), **weights})
    )


def find(graph: Any, name: str) -> Any:
    return next(tensor for tensor in tensors(graph) if tensor.name == name)


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ([("MatMul", "t w", "y")], {}),
        ([("Mul", "t g", "s"), ("Gelu", "s", "e"), ("MatMul", "e w", "y")], {"g": np.arange(8, dtype=np.float32)}),
        ([("Add", "t c", "s"), ("MatMul", "s w", "y")], {"c": np.float32(3)}),
        (
            [("Mul", "t t", "q"), ("ReduceMean", "q axes", "m"), ("Sqrt", "m", "r"), ("Div", "t r", "n"),
             ("MatMul", "n w", "y")],
            {"axes": np.array([-1])},
        ),
        ([("LayerNormalization", "t g b", "n"), ("MatMul", "n w", "y")], {"g": W[0], "b": W[1]}),
        ([("Clip", "t low", "n"), ("MatMul", "n w", "y")], {"low": np.float32(-0.5)}),
    ],
    ids=["product", "gelu", "one for all", "norm of parts", "norm", "clip"],
)  # fmt: skip
def test_any_order_computes_the_same(nodes: list[Spec], weights: dict[str, Any]) -> None:
    graph = to_graph(
        model(FIRST, *nodes, inputs={"x": (2, 3, 8)}, weights={"u": W, "w": W.T.copy(), **weights}, opset=20)
    )
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 3, 8)).astype(np.float32)}
    before = Session(graph).run(feeds)["y"]
    found = permutation.find_permutation(graph, find(graph, "t"), 8)
    assert found.why == ""
    permutation.apply(found, np.array([3, 1, 0, 2, 7, 6, 5, 4]), Names(graph))
    assert not np.array_equal(graph.nodes[0].inputs[1].values, W)
    np.testing.assert_allclose(Session(graph).run(feeds)["y"], before, rtol=1e-5, atol=1e-5 * np.abs(before).max())


@pytest.mark.parametrize(
    ("nodes", "outputs", "weights", "why"),
    [
        ([("MatMul", "t w", "y")], ("y", "t"), {}, "'t' is a graph output"),
        ([("Softmax", "t", "s"), ("MatMul", "s w", "y")], ("y",), {}, "'S' (Softmax) does not treat its channels"),
        ([("ReduceMean", "t axes", "m"), ("MatMul", "t w", "y")], ("y", "m"), {"axes": np.array([1])},
         "'M' (ReduceMean) does not reduce the channels alone"),
        ([("Add", "t x", "s"), ("MatMul", "s w", "y")], ("y",), {}, "'x' is a graph input"),
        ([("MatMul", "x t2", "y"), ("Transpose", "t", "t2", {"perm": [0, 2, 1]})], ("y",), {}, "(Transpose)"),
        ([("MatMul", "t k", "y"), ("MatMul", "x u", "k2"), ("Transpose", "k2", "k", {"perm": [0, 2, 1]})], ("y",), {},
         "'Y' (MatMul) has no constant matrix on its right"),
    ],
)  # fmt: skip
def test_what_stands_in_the_way_is_named(
    nodes: list[Spec], outputs: tuple[str, ...], weights: dict[str, Any], why: str
) -> None:
    ordered = sorted(nodes, key=lambda node: node[1] in ("x t2", "t k"))
    graph = graph_of(*ordered, outputs=outputs, **weights)
    assert why in permutation.find_permutation(graph, find(graph, "t"), 8).why


def test_a_constant_that_others_read_stays_as_it_is() -> None:
    nodes: list[Spec] = [("MatMul", "t w", "a"), ("MatMul", "x w", "b"), ("Add", "a b", "y")]
    graph = graph_of(*nodes)
    permutation.apply(permutation.find_permutation(graph, find(graph, "t"), 8), np.arange(8)[::-1], Names(graph))
    named = {node.name: node for node in graph.nodes}
    np.testing.assert_array_equal(named["B"].inputs[1].values, W.T)
    np.testing.assert_array_equal(named["A"].inputs[1].values, W.T[::-1])
