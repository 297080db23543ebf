"""The constant operand of a product is found behind whatever changes its view, with the axis of its channels."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.ir.linear import weight_of
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
