from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from qcompiler.passes.base import Fact
from tests.kit import facts
from tests.kit.rewrite import model, to_graph

W = np.ones((4, 4), np.float32)
Q = {"q": np.ones((4, 4), np.int8), "s": np.float32(0.1), "z": np.int8(0)}


def test_equal_names_break_named() -> None:
    graph = to_graph(model(("Relu", "x", "a"), ("Relu", "a", "y")))
    graph.nodes[1].name = graph.nodes[0].name
    graph.nodes[1].outputs[0].name = "a"
    assert facts.verify(Fact.NAMED, graph) == ["2 nodes are named 'A'", "2 tensors are named 'a'"]


def test_a_constant_node_breaks_constants() -> None:
    proto = model(("Constant", "", "w", {"value": numpy_helper.from_array(W)}), ("MatMul", "x w", "y"))
    assert facts.verify(Fact.CONSTANTS, to_graph(proto)) == ["node 'W' is a Constant"]


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        ([("Identity", "x", "a"), ("Relu", "a", "y")], "'eliminate-identities' still finds 'A'"),
        ([("Neg", "w", "a"), ("MatMul", "x a", "y")], "'fold-constants' still finds 'A'"),
    ],
)
def test_something_to_fold_breaks_folded(nodes: list[tuple[str, str, str]], found: str) -> None:
    graph = to_graph(model(*nodes, weights={"w": W}))
    violations = facts.verify(Fact.FOLDED, graph)
    assert len(violations) == 1
    assert violations[0].startswith(found)
    assert len(graph.nodes) == 2


def test_a_second_reader_breaks_unshared() -> None:
    graph = to_graph(model(("MatMul", "x w", "a"), ("MatMul", "a w", "y"), weights={"w": W}))
    assert facts.verify(Fact.UNSHARED, graph) == [f"weight 'w' of '{name}' has 2 readers" for name in "AY"]


def test_stored_weights_and_pairs_hold_qdq() -> None:
    proto = model(
        ("QuantizeLinear", "x s z", "i"),
        ("DequantizeLinear", "i s z", "d"),
        ("DequantizeLinear", "q s z", "w"),
        ("MatMul", "d w", "y"),
        weights=Q,
    )
    graph = to_graph(proto)
    assert facts.verify(Fact.QDQ, graph) == []
    assert facts.verify(Fact.TYPED, graph) == []
    assert facts.verify(Fact.LEGAL, graph) == []


@pytest.mark.parametrize(
    ("nodes", "weights", "found"),
    [
        pytest.param(
            [("QuantizeLinear", "x s", "i"), ("DequantizeLinear", "i s", "y")],
            Q,
            "no constant zero point",
            id="omitted",
        ),
        pytest.param(
            [("DequantizeLinear", "q s z", "w"), ("MatMul", "x w", "y")],
            {**Q, "s": np.float32(0)},
            "is not positive",
            id="zero scale",
        ),
        pytest.param(
            [("QuantizeLinear", "w s z", "i"), ("DequantizeLinear", "i s z", "d"), ("MatMul", "x d", "y")],
            {**Q, "w": W},
            "should be stored quantized",
            id="float weight",
        ),
    ],
)
def test_what_breaks_qdq(nodes: list[tuple[str, str, str]], weights: dict[str, np.ndarray], found: str) -> None:
    assert any(found in violation for violation in facts.verify(Fact.QDQ, to_graph(model(*nodes, weights=weights))))


def test_mixed_types_break_typed() -> None:
    graph = to_graph(model(("MatMul", "x w", "y"), weights={"w": W}))
    graph.nodes[0].inputs[1].values = W.astype(np.float16)
    assert len(facts.verify(Fact.TYPED, graph)) == 1
