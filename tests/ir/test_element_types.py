"""Element types follow from ONNX's schemas, and so does what of a node may change its type."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import numpy_helper

from qcompiler.ir import element_types
from qcompiler.ir import graph as graphs
from qcompiler.ir.element_types import FP32, Slots, infer, infer_all, slots
from qcompiler.target import DType
from tests.kit.rewrite import Spec, branching, model, to_graph

W = np.ones((4, 4), np.float32)
F16, I64 = np.dtype(np.float16), np.dtype(np.int64)


def untyped(graph: gs.Graph) -> gs.Graph:
    """The graph, which knows the types of its inputs and weights alone."""
    for inner in graphs.graphs(graph):
        for node in inner.nodes:
            for tensor in node.outputs:
                tensor.dtype = None
    return graph


def one(op: str, reads: str, attrs: dict[str, Any] | None = None, **options: Any) -> gs.Graph:
    return untyped(to_graph(model((op, reads, "y", attrs or {}), **options)))


def moved(graph: gs.Graph, dtype: DType = DType.FP16) -> Slots:
    return slots(graph.nodes[0], graph.opset, infer(graph), dtype)


@pytest.mark.parametrize(
    ("spec", "weights", "expected"),
    [
        (("Relu", "x", "y"), {}, FP32),
        (("MatMul", "x w", "y"), {"w": W}, FP32),
        (("NonZero", "x", "y"), {}, I64),
        (("Where", "c i i", "y"), {"c": np.array(True), "i": np.array([1])}, I64),
        (("ArgMax", "x", "y"), {}, I64),
        (("Cast", "x", "y", {"to": onnx.TensorProto.FLOAT16}), {}, F16),
        (("Cast", "x", "y", {"to": onnx.TensorProto.BFLOAT16}), {}, np.dtype(ml_dtypes.bfloat16)),
        (("ConstantOfShape", "n", "y"), {"n": np.array([2])}, FP32),
        (
            ("ConstantOfShape", "n", "y", {"value": numpy_helper.from_array(np.array([1]))}),
            {"n": np.array([2])},
            I64,
        ),
        (("QuantizeLinear", "x s", "y"), {"s": np.float32(1)}, np.dtype(np.uint8)),
        (("QuantizeLinear", "x s z", "y"), {"s": np.float32(1), "z": np.int8(0)}, np.dtype(np.int8)),
        (("DequantizeLinear", "q s", "y"), {"s": np.float32(1), "q": np.int8(4)}, FP32),
        (("Where", "c x x", "y"), {"c": np.array(True)}, FP32),
    ],
    ids=lambda spec: spec[0] if isinstance(spec, tuple) else "",
)
def test_the_type_of_a_result_follows_from_schema_and_attributes(
    spec: Spec, weights: dict[str, Any], expected: np.dtype[Any]
) -> None:
    graph = untyped(to_graph(model(spec, weights=weights, opset=19)))
    assert infer(graph)[id(graph.outputs[0])] == expected


def test_types_go_on_through_a_chain_in_graph_order() -> None:
    graph = untyped(to_graph(model(("Cast", "x", "a", {"to": 10}), ("Relu", "a", "b"), ("Neg", "b", "y"))))
    assert {t.name: infer(graph).get(id(t)) for t in graphs.tensors(graph)} == {"x": FP32, "a": F16, "b": F16, "y": F16}


def test_a_type_that_a_tensor_carries_is_believed() -> None:
    graph = untyped(to_graph(model(("Relu", "x", "a"), ("Neg", "a", "y"))))
    graph.nodes[0].outputs[0].dtype = F16
    assert infer(graph)[id(graph.outputs[0])] == F16


def test_what_nobody_knows_is_left_out() -> None:
    graph = one("Strange", "x", domains=("com.acme",))
    graph.nodes[0].domain = "com.acme"
    assert id(graph.outputs[0]) not in infer(graph)
    assert infer(gs.Graph()) == {}


def test_nested_graphs_know_the_types_around_them() -> None:
    graph = untyped(branching())
    found = infer_all(graph)
    for inner in graphs.graphs(graph.nodes[1].attrs["then_branch"]):
        assert all(found[id(t)] == FP32 for node in inner.nodes for t in node.outputs)
    assert id(graph.nodes[1].attrs["then_branch"].outputs[0]) not in infer(graph)


@pytest.mark.parametrize("dtype", [DType.FP16, DType.BF16])
def test_operands_and_result_of_a_product_move_together(dtype: DType) -> None:
    assert moved(one("MatMul", "x w", weights={"w": W}), dtype) == Slots((0, 1), (0,))


def test_scales_of_a_resize_stay_float() -> None:
    weights = {"roi": np.zeros(0, np.float32), "scales": np.array([1, 1, 2, 2], np.float32)}
    graph = one("Resize", "x roi scales", inputs={"x": (1, 3, 4, 4)}, weights=weights)
    assert moved(graph) == Slots((0,), (0,))


def test_integers_do_not_move() -> None:
    assert moved(one("Gather", "x i", weights={"i": np.array([0, 1])})) == Slots((0,), (0,))
    assert moved(one("Add", "x x", inputs={"x": (np.int64, (2,))})) == Slots()
    assert moved(one("Relu", "x", inputs={"x": (np.float16, (2,))})) == Slots()


@pytest.mark.parametrize(
    ("graph", "why"),
    [
        (to_graph(model(("RandomNormal", "", "y", {"shape": [2]}))), "RandomNormal states its type in an attribute"),
        (one("RandomNormalLike", "x", {"dtype": 1}), "RandomNormalLike states its type in an attribute"),
        (one("Det", "x", inputs={"x": (4, 4)}), ""),
        (one("NonMaxSuppression", "b s", inputs={"b": (1, 4, 4), "s": (1, 1, 4)}), "has no fp16 form in ONNX opset 17"),
    ],
    ids=["stated", "dtype", "moves", "fixed"],
)
def test_what_cannot_change_says_why(graph: gs.Graph, why: str) -> None:
    found = moved(graph).obstacle
    assert why in found
    assert bool(found) is bool(why)


def test_an_operator_that_onnx_does_not_know_cannot_change() -> None:
    graph = one("Strange", "x", domains=("com.acme",))
    graph.nodes[0].domain = "com.acme"
    assert moved(graph) == Slots((0,), (), "ONNX knows no Strange in 'com.acme'")


def test_an_old_opset_has_fewer_forms() -> None:
    node = one("Relu", "x").nodes[0]
    types = {id(node.inputs[0]): FP32, id(node.outputs[0]): FP32}
    assert slots(node, 12, types, DType.BF16).obstacle == "Relu has no bf16 form in ONNX opset 12"
    assert slots(node, 13, types, DType.BF16).obstacle == ""


def test_every_fixed_variable_is_one_of_its_schema() -> None:
    for op, variable in element_types._FIXED:
        assert variable in {one.type_param_str for one in onnx.defs.get_schema(op).type_constraints}, op
