from __future__ import annotations

from typing import Any

import pytest

from qcompiler.errors import UsageError
from qcompiler.ir.graph import shape_of
from qcompiler.passes.cleanup.fold_constants import FoldConstants
from qcompiler.passes.fixing.fix_shapes import FixShapes
from tests.kit.rewrite import model, to_graph


def two() -> Any:
    """x [batch, 4, ?] and z [batch, len] are read; y has the axes of x."""
    nodes = ("Shape", "x", "s"), ("Reshape", "x s", "y"), ("Neg", "z", "w")
    return to_graph(model(*nodes, inputs={"x": ("batch", 4, None), "z": ("batch", "len")}, outputs=["y", "w"]))


@pytest.mark.parametrize(
    ("sizes", "x", "z"),
    [
        ({"batch": (1,)}, (1, 4, None), (1, "len")),
        ({"x": (2, 4, 8)}, (2, 4, 8), (2, "len")),
        ({"z": (3, 5)}, (3, 4, None), (3, 5)),
        ({"batch": (1,), "len": (7,)}, (1, 4, None), (1, 7)),
        ({"x": (2, 4, 8), "batch": (2,)}, (2, 4, 8), (2, "len")),
    ],
)
def test_axes_of_one_name_get_one_size(sizes: dict[str, tuple[int, ...]], x: Any, z: Any) -> None:
    graph = two()
    assert FixShapes(sizes)(graph).changed
    assert [shape_of(tensor) for tensor in graph.inputs] == [x, z]
    assert shape_of(graph.outputs[1]) == z


def test_what_is_computed_from_sizes_can_be_folded() -> None:
    graph = two()
    FixShapes({"x": (2, 4, 8)})(graph)
    FoldConstants()(graph)
    assert [node.op for node in graph.nodes] == ["Reshape", "Neg"]


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"bath": (1,)}, "did you mean 'batch'"),
        ({"x": (2, 5, 8)}, "batchx4x.* cannot change"),
        ({"x": (2, 4)}, "cannot change"),
        ({"batch": (1, 2)}, "with a single size"),
        ({"x": (2, 4, 8), "z": (3, 5)}, "axis 'batch' is 2 already"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(sizes: dict[str, tuple[int, ...]], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        FixShapes(sizes)(two())
