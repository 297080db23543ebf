from __future__ import annotations

import pytest

from qcompiler.passes.opsets.raise_opset import RaiseOpset
from tests.kit.rewrite import Dims, check, model


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize(
    ("shape", "axis", "ops"),
    [
        (("n", 5), 1, 1),
        (("n", 5, 1, 1), 1, 1),
        (("n", 4, 5), -1, 1),
        (("n", 4, 5), 2, 1),
        (("n", 4, 5), 1, 3),
        (("n", "t", 5), 1, 4),
        (("n", 4, 5), 0, 3),
    ],
)
def test_only_several_axes_need_another_shape(op: str, shape: Dims, axis: int, ops: int) -> None:
    graph, _ = check(RaiseOpset(21), model((op, "x", "y", {"axis": axis}), inputs={"x": shape}, opset=11))
    assert len(graph.nodes) == ops
