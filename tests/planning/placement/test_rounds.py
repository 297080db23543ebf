from __future__ import annotations

import numpy as np

from qcompiler.ir import graph as graphs
from qcompiler.plan import Candidate
from qcompiler.planning.placement.rounds import pooled
from qcompiler.statistics.histogram import Histogram
from tests.kit.rewrite import model, to_graph

R = np.random.default_rng(5).standard_normal((4, 4)).astype(np.float32)


def _histograms(**values: float) -> dict[str, Histogram]:
    return {name: Histogram.of(np.array([value], np.float32)) for name, value in values.items()}


def _found(first: str, second: str, other: np.ndarray | None = None) -> dict[str, Histogram]:
    graph = to_graph(
        model(
            ("MatMul", "x r", "a"),
            ("Tanh", "a", "h"),
            ("MatMul", "h q", "y"),
            inputs={"x": (2, 4)},
            weights={"r": R, "q": R.copy() if other is None else other},
        )
    )
    products = [node for node in graph.nodes if graphs.is_op(node, "MatMul")]
    for node, name in zip(products, (first, second), strict=True):
        node.name = name
    found = [Candidate(node.name, "MatMul", node.inputs[0].name, node.inputs[1].name, 1) for node in products]
    return pooled(graph, found, _histograms(x=1.0, h=3.0))


def test_rounds_of_one_weight_have_one_range() -> None:
    found = _found("cell/round_0", "cell/round_1")
    assert {name: one.amax for name, one in found.items()} == {"x": 3.0, "h": 3.0}


def test_rounds_with_weights_of_their_own_are_layers_of_their_own() -> None:
    assert _found("cell/round_0", "cell/round_1", R + 1) == {}


def test_other_layers_of_one_weight_are_left_alone() -> None:
    assert _found("first", "second") == {}
    assert _found("a/round_0", "b/round_0") == {}
