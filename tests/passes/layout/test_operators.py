from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.passes.layout._operators import Ordered, ends, fits, moved_axis, parts
from tests.kit.rewrite import Spec, model, to_graph

NCHW, REVERSED = (0, 3, 1, 2), (3, 2, 1, 0)


def _node(*nodes: Spec, **weights: Any) -> Any:
    inputs = {"x": (2, 1, 1, 4), "s": (), "v": (4,), "z": (2, 3, 5, 4)}
    return to_graph(model(*nodes, inputs=inputs, weights=weights, opset=21)).nodes[-1]


@pytest.mark.parametrize(
    ("node", "found"),
    [
        (("Relu", "x", "y"), Ordered((0,), (0,))),
        (("Add", "s z", "y"), Ordered((1,), (0,))),
        (("Add", "x z", "y"), Ordered((0, 1), (0,))),
        (("Add", "v z", "y"), None),  # a vector that is computed has no order of four axes
        (("Split", "z", "y y2", {"num_outputs": 2, "axis": 3}), Ordered((0,), (0, 1))),
        (("Shape", "x", "y"), Ordered((0,), ())),
        (("GlobalAveragePool", "z", "y"), None),
        (("MatMul", "x x", "y"), None),
    ],
)
def test_what_is_reordered_with_a_node(node: Spec, found: Ordered | None) -> None:
    assert parts(_node(node), 4) == found


def test_axes_that_go_must_leave_the_others_as_they_stand() -> None:
    squeeze = _node(("Squeeze", "x a", "y"), a=np.array([1, 2]))
    assert ends(squeeze)
    assert fits(squeeze, NCHW)
    assert not fits(squeeze, REVERSED)


def test_a_reshape_of_short_axes_moves_nothing() -> None:
    flat = _node(("Reshape", "x n", "y"), n=np.array([0, 4]))
    assert fits(flat, NCHW)
    assert not fits(flat, REVERSED)
    assert not fits(_node(("Reshape", "z n", "y"), n=np.array([0, -1])), NCHW)


def test_an_axis_is_found_where_it_went() -> None:
    assert [moved_axis(axis, NCHW) for axis in (0, 1, 2, 3, -1)] == [0, 2, 3, 1, 1]
