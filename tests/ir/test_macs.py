"""Multiply-accumulates: the figure of each operator, and shapes from inference or from one run."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.ir.macs import macs_of
from qcompiler.runtime.shapes import concrete_shapes
from tests.kit.rewrite import Spec, model, to_graph

RNG = np.random.default_rng(0)


def macs(spec: Spec, dims: dict[str, tuple[int, ...]], **shapes: tuple[int, ...]) -> int:
    """Those of one node, with weights of these shapes, on inputs of those."""
    weights = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    graph = to_graph(model(spec, inputs=dims, weights=weights))
    feeds = {name: np.ones(shape, np.float32) for name, shape in dims.items()}
    node = graph.nodes[0]
    return macs_of(node, concrete_shapes(graph, feeds, [node.inputs[0].name, node.inputs[1].name, "y"]))


@pytest.mark.parametrize(
    ("spec", "dims", "weights", "expected"),
    [
        (("Conv", "x w", "y"), {"x": (2, 3, 10, 12)}, {"w": (8, 3, 3, 3)}, 2 * 8 * 8 * 10 * 27),
        (
            ("Conv", "x w", "y", {"strides": [2, 2], "pads": [1] * 4}),
            {"x": (1, 4, 8, 8)},
            {"w": (6, 4, 3, 3)},
            16 * 6 * 36,
        ),
        (("Conv", "x w", "y", {"group": 8}), {"x": (1, 8, 6, 6)}, {"w": (8, 1, 3, 3)}, 8 * 16 * 9),
        (("Conv", "x w", "y"), {"x": (1, 4, 20)}, {"w": (5, 4, 3)}, 5 * 18 * 12),
        (("ConvTranspose", "x w", "y"), {"x": (1, 4, 5, 5)}, {"w": (4, 6, 2, 2)}, 4 * 25 * 6 * 4),
        (("ConvTranspose", "x w", "y", {"group": 2}), {"x": (1, 4, 5, 5)}, {"w": (4, 3, 2, 2)}, 4 * 25 * 3 * 4),
        (("Gemm", "x w", "y"), {"x": (7, 5)}, {"w": (5, 11)}, 7 * 5 * 11),
        (("Gemm", "x w", "y", {"transA": 1, "transB": 1}), {"x": (5, 7)}, {"w": (11, 5)}, 7 * 5 * 11),
        (("MatMul", "x w", "y"), {"x": (2, 3, 4, 5)}, {"w": (5, 6)}, 2 * 3 * 4 * 5 * 6),
        (("MatMul", "x z", "y"), {"x": (2, 3, 4, 5), "z": (2, 1, 5, 6)}, {}, 2 * 3 * 4 * 5 * 6),
        (("MatMul", "x w", "y"), {"x": (4, 5)}, {"w": (5,)}, 20),
        (("MatMul", "x w", "y"), {"x": (5,)}, {"w": (5,)}, 5),
    ],
)
def test_each_operator_counts_its_products(
    spec: Spec, dims: dict[str, tuple[int, ...]], weights: dict[str, tuple[int, ...]], expected: int
) -> None:
    assert macs(spec, dims, **weights) == expected


def test_other_operators_and_unknown_shapes_count_nothing() -> None:
    graph = to_graph(model(("Relu", "x", "a"), ("MatMul", "a z", "y"), inputs={"x": (4, 5), "z": (5, 3)}))
    assert [macs_of(node, {}) for node in graph.nodes] == [0, 0]
