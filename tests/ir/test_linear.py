"""The constant operand of a product is found behind whatever changes its view, with the axis of its channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.ir.linear import matrix, stored_axis, weight_of
from tests.kit.rewrite import model, to_graph

W = np.arange(24, dtype=np.float32).reshape(4, 6)


def test_the_weight_of_a_conv_is_found_with_its_axis() -> None:
    graph = to_graph(model(("Conv", "x w", "y"), inputs={"x": (1, 4, 5)}, weights={"w": W.reshape(6, 4, 1)}))
    weight = weight_of(graph.nodes[0])
    assert weight is not None
    assert (weight.tensor.name, weight.axis, weight.stored_axis, weight.chain) == ("w", 0, 0, ())


@pytest.mark.parametrize(
    ("chain", "weights", "stored_axis"),
    [
        pytest.param([("Transpose", "w", "m")], {"w": W.T}, 0, id="Transpose"),
        pytest.param([("Reshape", "w s", "m")], {"w": W.reshape(2, 2, 6), "s": np.array([4, 6])}, 2, id="Reshape"),
        pytest.param([("Reshape", "w s", "m")], {"w": W.reshape(4, 2, 3), "s": np.array([4, -1])}, None, id="mixed"),
        pytest.param([("Cast", "w", "m", {"to": 1})], {"w": W.astype(np.float16)}, 1, id="Cast"),
        pytest.param([("Squeeze", "w", "m")], {"w": W.reshape(4, 1, 6)}, 2, id="Squeeze"),
        pytest.param(
            [("Unsqueeze", "w a", "u"), ("Squeeze", "u a", "m")], {"w": W, "a": np.array([0])}, 1, id="there and back"
        ),
    ],
)
def test_a_weight_behind_views_is_found(
    chain: list[tuple[str, ...]], weights: dict[str, np.ndarray], stored_axis: int | None
) -> None:
    graph = to_graph(model(*chain, ("MatMul", "x m", "y"), weights=weights))
    weight = weight_of(graph.nodes[-1])
    assert weight is not None
    assert (weight.tensor.name, weight.axis, weight.stored_axis) == ("w", 1, stored_axis)
    assert [node.op for node in weight.chain] == [spec[0] for spec in chain]


def test_a_weight_on_the_left_has_its_channels_in_the_rows() -> None:
    graph = to_graph(model(("MatMul", "w x", "y"), inputs={"x": (6, 2)}, weights={"w": W}))
    weight = weight_of(graph.nodes[0])
    assert weight is not None
    assert (weight.index, weight.axis) == (0, 0)


def test_a_computed_operand_is_no_weight() -> None:
    graph = to_graph(model(("Relu", "x", "a"), ("MatMul", "x a", "y"), inputs={"x": (4, 4)}))
    assert weight_of(graph.nodes[1]) is None


@pytest.mark.parametrize(
    ("nodes", "weights", "expected"),
    [
        ([("MatMul", "x w", "y")], {"w": W}, W),
        ([("Gemm", "x w", "y", {"transB": 1})], {"w": W.T.copy()}, W),
        ([("Gemm", "x w", "y")], {"w": W}, W),
        ([("Transpose", "w", "m"), ("MatMul", "x m", "y")], {"w": W.T.copy()}, W),
        ([("Reshape", "w s", "m"), ("MatMul", "x m", "y")], {"w": W.reshape(2, 2, 6), "s": np.array([4, 6])}, W),
        ([("Cast", "w", "m", {"to": 1}), ("MatMul", "x m", "y")], {"w": W.astype(np.float16)}, None),
        ([("MatMul", "x w", "y")], {"w": np.stack([W, W])}, None),
    ],
    ids=["MatMul", "transB", "Gemm", "Transpose", "Reshape", "Cast", "three axes"],
)
def test_a_matrix_multiplies_rows_from_the_right(
    nodes: list[Any], weights: dict[str, np.ndarray], expected: np.ndarray | None
) -> None:
    found = matrix(to_graph(model(*nodes, weights=weights)).nodes[-1])
    if expected is None:
        assert found is None
        return
    np.testing.assert_array_equal(found, expected, strict=True)


@pytest.mark.parametrize(("group", "known"), [(1, True), (2, False)])
def test_the_matrix_of_a_convolution_has_its_taps_side_by_side(group: int, known: bool) -> None:
    w = np.arange(4 * (4 // group) * 3, dtype=np.float32).reshape(4, 4 // group, 3)
    graph = to_graph(model(("Conv", "x w", "y", {"group": group}), inputs={"x": (1, 4, 8)}, weights={"w": w}))
    found = matrix(graph.nodes[0])
    assert (found is not None) is known
    if found is not None:
        x = np.arange(4, dtype=np.float32)
        np.testing.assert_array_equal((x @ found).reshape(4, 3), np.einsum("i,oit->ot", x, w))


def test_what_stands_before_a_chain_has_the_axis_of_the_channels() -> None:
    nodes: list[Any] = [("Transpose", "w", "m"), ("MatMul", "x m", "y")]
    graph = to_graph(model(*nodes, weights={"w": W.T.copy()}))
    chain, product = graph.nodes[:1], graph.nodes[1]
    assert stored_axis(product, (6, 4), chain) == 0
    assert stored_axis(product, (4, 6), ()) == 1
