"""One node on its own: what its results weigh before anything is computed, and what they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from qcompiler.errors import ModelError
from qcompiler.runtime.one_node import SMALL, alone, inferred_bytes, lacks_kernel, run_node, small_constants
from tests.kit.rewrite import Spec, model, to_graph

W = np.arange(6, dtype=np.float32).reshape(2, 3)


def first(*nodes: Spec, **weights: Any) -> gs.Node:
    return to_graph(model(*nodes, weights=weights)).nodes[0]


def test_what_is_known_stays_constant_and_the_rest_is_fed() -> None:
    node = first(("Add", "w v", "a"), ("Mul", "a x", "y"), w=W, v=W[0])
    proto = alone(node, 17, {"v"})
    onnx.checker.check_model(proto)
    assert [one.op_type for one in proto.graph.node] == ["Add"]
    assert [one.name for one in proto.graph.input] == ["w"]
    assert [one.name for one in proto.graph.initializer] == ["v"]
    assert [one.name for one in proto.graph.output] == ["a"]


def test_a_tensor_that_is_read_twice_is_one_input() -> None:
    proto = alone(first(("Mul", "x x", "y")), 17, ())
    assert [one.name for one in proto.graph.input] == ["x"]
    assert list(proto.graph.node[0].input) == ["x", "x"]


def test_the_node_itself_stays_in_its_graph() -> None:
    graph = to_graph(model(("Add", "x w", "a"), ("Relu", "a", "y"), inputs={"x": (2, 3)}, weights={"w": W}))
    alone(graph.nodes[0], 17, {"w"})
    assert [node.op for node in graph.nodes] == ["Add", "Relu"]
    assert graph.nodes[0].outputs[0].outputs == [graph.nodes[1]]


def test_constants_are_small_up_to_a_number_of_elements() -> None:
    most, more = np.zeros(SMALL, np.float32), np.zeros(SMALL + 1, np.float32)
    node = first(("Concat", "most more x1", "y", {"axis": 0}), most=most, more=more, x1=np.ones(3, np.float32))
    assert small_constants(node) == {"most", "x1"}


def test_the_size_of_what_would_not_fit_memory_is_known_without_it() -> None:
    node = first(("ConstantOfShape", "shape", "y"), shape=np.array([1 << 20, 1 << 20]))
    assert inferred_bytes(node, 17) == 4 << 40


@pytest.mark.parametrize(
    ("spec", "weights", "size"),
    [
        (("Add", "w w", "y"), {"w": W}, 24),
        (("Expand", "w s", "y"), {"w": W, "s": np.array([7, 2, 3])}, 7 * 24),
        (("Cast", "w", "y", {"to": onnx.TensorProto.INT64}), {"w": W}, 48),
        (("NonZero", "w", "y"), {"w": W}, None),
        (("Gather", "w i", "y"), {"w": W, "i": np.zeros((0,), np.int64)}, 0),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_bytes_follow_from_shape_and_type(spec: Spec, weights: dict[str, Any], size: int | None) -> None:
    assert inferred_bytes(first(spec, **weights), 17) == size


def test_all_outputs_weigh_together() -> None:
    node = to_graph(model(("Split", "w s", "a b"), outputs=("a", "b"), weights={"w": W, "s": np.array([1, 1])})).nodes[
        0
    ]
    assert inferred_bytes(node, 17) == W.nbytes
    assert [one.tolist() for one in run_node(node, 17)] == [W[:1].tolist(), W[1:].tolist()]


def test_values_are_those_of_the_runtime_whatever_the_layout() -> None:
    node = first(("Add", "w v", "y"), w=np.asfortranarray(W), v=W[:, ::-1])
    node.inputs[1].values = W[:, ::-1]
    np.testing.assert_array_equal(run_node(node, 17)[0], W + W[:, ::-1], strict=True)


def test_an_output_that_is_omitted_is_empty() -> None:
    node = first(("Unique", "v", "y _ i"), v=np.array([3, 1, 3], np.float32))
    values, omitted, inverse = run_node(node, 17)
    assert values.tolist() == [1, 3]
    assert omitted.size == 0
    assert inverse.tolist() == [1, 0, 1]


def test_an_omitted_input_stays_omitted() -> None:
    node = first(("Clip", "w _ top", "y"), w=W, top=np.float32(2))
    assert run_node(node, 17)[0].max() == 2


def test_what_the_runtime_refuses_is_an_error_of_the_model() -> None:
    node = first(("Strange", "w", "y"), w=W)
    with pytest.raises(ModelError, match="Strange"):
        run_node(node, 17)


def test_a_kernel_is_lacking_only_where_onnx_runtime_says_so() -> None:
    node = first(("RandomNormalLike", "x", "y"))
    assert not lacks_kernel(alone(node, 21, ()))
    assert lacks_kernel(alone(node, 22, ()))
    node.op = "NobodyKnowsThis"
    assert not lacks_kernel(alone(node, 21, ()))
