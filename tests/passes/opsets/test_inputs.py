from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.ir.graph import constant_value
from qcompiler.ir.names import Names
from qcompiler.passes.opsets._inputs import As, split_evenly, to_inputs
from qcompiler.passes.opsets._place import Place
from tests.kit.rewrite import Spec, model, to_graph


def first(spec: Spec, **options: Any) -> tuple[Any, Place]:
    graph = to_graph(model(spec, **options))
    return graph.nodes[0], Place(graph, Names(graph))


def test_attributes_become_constants_in_the_type_of_the_data() -> None:
    node, place = first(("Clip", "x", "y", {"max": 6.0}), inputs={"x": (np.float64, (2,))}, opset=10)
    assert to_inputs(("min", As.NUMBER), ("max", As.NUMBER))(node, place) == [node]
    assert [tensor.name for tensor in node.inputs] == ["x", "", "Y.max"]
    assert node.inputs[2].values.dtype == np.float64
    assert node.attrs == {}


@pytest.mark.parametrize(
    ("kind", "given", "wanted"),
    [
        (As.INTS, [1, 2], np.array([1, 2])),
        (As.INTS, 3, np.array([3])),
        (As.INTS, [], np.array([], np.int64)),
        (As.INT, 3, np.array(3)),
        (As.FLOATS, [1.0, 2.0], np.array([1, 2], np.float32)),
    ],
)
def test_forms(kind: As, given: Any, wanted: np.ndarray[Any, Any]) -> None:
    node, place = first(("Relu", "x", "y"))
    node.attrs["k"] = given
    to_inputs(("k", kind))(node, place)
    np.testing.assert_array_equal(constant_value(node.inputs[1]), wanted, strict=True)


def test_a_list_of_none_is_not_given() -> None:
    node, place = first(("Squeeze", "x", "y"), inputs={"x": (1, 2)}, opset=11)
    node.attrs["axes"] = []
    to_inputs(("axes", As.SOME))(node, place)
    assert len(node.inputs) == 1
    assert node.attrs == {}


def test_a_default_that_changed_is_told() -> None:
    node, place = first(("Relu", "x", "y"))
    to_inputs(("axis", As.INT), first=2, default={"axis": 1})(node, place)
    assert [tensor.name for tensor in node.inputs] == ["x", "", "Y.axis"]


def test_split_says_how_many() -> None:
    node, place = first(("Split", "x", "a b"), outputs=["a", "b"], opset=13)
    split_evenly(node, place)
    assert node.attrs == {"num_outputs": 2}
    node, place = first(("Split", "x s", "a b"), outputs=["a", "b"], opset=13, weights={"s": np.array([1, 1])})
    split_evenly(node, place)
    assert node.attrs == {}
