"""BF16 on the CPU: what is emulated is what BF16 arithmetic with FP32 sums gives, tensor by tensor."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from qcompiler.ir import graph as graphs
from qcompiler.ir.model import Model
from qcompiler.runtime.session import Session
from qcompiler.verification.emulation import runnable
from tests.kit.rewrite import graph_proto, model, to_graph, whole

BF16 = onnx.TensorProto.BFLOAT16
RNG = np.random.default_rng(3)
W = RNG.standard_normal((32, 32)).astype(np.float32)
X = RNG.standard_normal((8, 32)).astype(np.float32)


def bf16(x: Any) -> Any:
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


def loaded(proto: onnx.ModelProto) -> Model:
    graph = to_graph(proto)
    for tensor in graphs.tensors(graph):
        if isinstance(tensor, gs.Constant) and tensor.name == "w":
            tensor.values = W.astype(ml_dtypes.bfloat16)
    return Model(graph, {}, None, 10)


def network() -> Model:
    return loaded(
        model(
            ("Cast", "x", "a", {"to": BF16}),
            ("MatMul", "a w", "b"),
            ("Relu", "b", "c"),
            ("Cast", "c", "y", {"to": onnx.TensorProto.FLOAT}),
            inputs={"x": ("n", 32)},
            weights={"w": W},
            opset=21,
        )
    )


def forget_types(one: Model) -> None:
    for node in one.graph.nodes:
        for tensor in node.outputs:
            if tensor not in one.graph.outputs:
                tensor.dtype = None


def test_every_tensor_is_rounded_and_keeps_its_name() -> None:
    one = network()
    forget_types(one)
    found = Session(runnable(one), outputs=["a", "b", "c", "y"]).run({"x": X})
    np.testing.assert_array_equal(found["a"], bf16(X))
    np.testing.assert_array_equal(found["b"], bf16(found["b"]))
    np.testing.assert_allclose(found["b"], bf16(X) @ bf16(W), rtol=2**-8, atol=1e-6)
    np.testing.assert_array_equal(found["y"], np.maximum(found["b"], 0))


def test_the_emulation_is_a_valid_model_and_the_original_stays() -> None:
    one = network()
    forget_types(one)
    before = [node.op for node in one.graph.nodes]
    emulated = runnable(one)
    assert [node.op for node in one.graph.nodes] == before
    weight = next(t for t in graphs.tensors(one.graph) if t.name == "w")
    assert weight.values.dtype == ml_dtypes.bfloat16
    onnx.checker.check_model(whole(emulated.graph), full_check=True)
    assert [t.name for t in emulated.graph.outputs] == ["y"]


def test_a_model_without_bf16_is_given_back_as_it_is() -> None:
    one = Model(to_graph(model(("Relu", "x", "y"))), {}, None, 10)
    assert runnable(one) is one


def test_dequantized_weights_and_branches_are_emulated_too() -> None:
    stored = RNG.integers(-127, 128, (32, 32)).astype(np.int8)
    then = graph_proto([("Neg", "a", "t")], {}, ["t"])
    other = graph_proto([("Add", "a a", "o")], {}, ["o"])
    proto = model(
        ("DequantizeLinear", "q s z", "v", {"output_dtype": BF16}),
        ("Cast", "x", "a", {"to": BF16}),
        ("If", "flag", "b", {"then_branch": then, "else_branch": other}),
        ("MatMul", "b v", "c"),
        ("Cast", "c", "y", {"to": onnx.TensorProto.FLOAT}),
        inputs={"x": ("n", 32), "flag": (np.bool_, ())},
        weights={"q": stored, "s": np.float32(0.01), "z": np.int8(0)},
        opset=23,
    )
    one = Model(to_graph(proto), {}, None, 11)
    session = Session(runnable(one))
    weight = bf16(stored.astype(np.float32) * np.float32(0.01))
    for flag, factor in ((True, -1), (False, 2)):
        found = session.run({"x": X, "flag": np.array(flag)})["y"]
        np.testing.assert_allclose(found, factor * bf16(X) @ weight, rtol=2**-7, atol=1e-4)


def halved(*nodes: Any, **weights: Any) -> Model:
    proto = model(("Cast", "x", "h", {"to": 10}), *nodes, ("Cast", "r", "y", {"to": 1}), weights=weights, opset=21)
    return Model(to_graph(proto), {}, None, 10)


@pytest.mark.parametrize("optimize", [True, False])
def test_fp16_rounds_and_overflows_also_where_onnx_runtime_by_itself_does_neither(optimize: bool) -> None:
    wide, narrow = ((np.eye(4) * factor).astype(np.float16) for factor in (256, 1 / 256))
    one = halved(("MatMul", "h wide", "m"), ("MatMul", "m narrow", "r"), wide=wide, narrow=narrow)
    assert runnable(one) is one
    session = Session(runnable(one, half=True), optimize=optimize)
    rounded = session.run({"x": np.full((2, 4), 3.0007, np.float32)})["y"]
    np.testing.assert_array_equal(rounded, np.full((2, 4), np.float16(3.0007), np.float32))
    assert np.all(session.run({"x": np.full((2, 4), 250, np.float32)})["y"] == 250)
    assert not np.any(np.isfinite(session.run({"x": np.full((2, 4), 260, np.float32)})["y"]))  # 260 * 256 overflows


def stored_linear(scale: float, **attrs: Any) -> Model:
    stored = RNG.integers(-127, 128, (4, 4)).astype(np.int8)
    nodes = [("DequantizeLinear", "q s", "v", attrs), ("MatMul", "h v", "r")]
    return halved(*nodes, q=stored, s=np.full(4 if attrs else (), scale, np.float16))


@pytest.mark.parametrize("attrs", [{}, {"axis": 0}, {"axis": 1}])
def test_stored_weights_are_dequantized_and_rounded_once(attrs: dict[str, Any]) -> None:
    one = stored_linear(0.0123, **attrs)
    emulated = runnable(one, half=True)
    assert "DequantizeLinear" not in [node.op for node in emulated.graph.nodes]
    assert "DequantizeLinear" in [node.op for node in one.graph.nodes]
    q = next(graphs.values_of(t) for t in graphs.tensors(one.graph) if t.name == "q")
    weight = (q.astype(np.float32) * np.float32(np.float16(0.0123))).astype(np.float16).astype(np.float32)
    x = X[:2, :4].astype(np.float16).astype(np.float32)
    found = Session(emulated).run({"x": X[:2, :4]})["y"]
    np.testing.assert_allclose(found, x @ weight, rtol=2**-10, atol=1e-5)
    np.testing.assert_array_equal(found, found.astype(np.float16).astype(np.float32))


def test_a_stored_weight_that_is_not_finite_keeps_the_node_that_makes_it() -> None:
    emulated = runnable(stored_linear(np.inf), half=True)
    assert "DequantizeLinear" in [node.op for node in emulated.graph.nodes]


def casts(one: Model) -> int:
    return sum(node.op == "Cast" for node in one.graph.nodes)


@pytest.mark.parametrize(
    ("nodes", "pairs"),
    [
        ([("Transpose", "h", "t"), ("Relu", "t", "r")], 0),
        ([("Add", "h h", "t"), ("Transpose", "t", "r")], 1),
        ([("Max", "h k", "t"), ("Concat", "t h", "r", {"axis": 0})], 0),
        ([("Mul", "h k", "t"), ("Concat", "t h", "r", {"axis": 0})], 1),
        ([("Sigmoid", "h", "r")], 1),
    ],
)
def test_what_moves_or_picks_rounded_values_is_not_rounded_again(nodes: list[Any], pairs: int) -> None:
    one = halved(*nodes, k=np.array([0.3], np.float16))
    emulated = runnable(one, half=True)
    assert casts(emulated) == casts(one) + 2 * (pairs + 1)  # and what enters
    found = Session(emulated, quick=True).run({"x": X[:2, :4]})["y"]
    np.testing.assert_array_equal(found, found.astype(np.float16).astype(np.float32))


def test_what_moves_values_of_another_type_is_rounded() -> None:
    """A pick that a file types otherwise than what it picks from: the typing goes by what stands behind it."""
    nodes = [("Cast", "h", "f", {"to": 1}), ("Exp", "f", "e"), ("Transpose", "e", "t"), ("Cast", "t", "r", {"to": 10})]
    found = Session(runnable(halved(*nodes), half=True), quick=True).run({"x": X[:2, :4]})["y"]
    np.testing.assert_array_equal(found, found.astype(np.float16).astype(np.float32))


def test_ends_in_double_behind_a_cast_become_fp32() -> None:
    double, single = onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT
    proto = model(("Cast", "x", "a", {"to": single}), ("Relu", "a", "b"), ("Cast", "b", "y", {"to": double}),
                  inputs={"x": (np.float64, (2, 4))})  # fmt: skip
    original = Model(to_graph(proto), {}, None, 10)
    found = runnable(original)
    assert Session(found.graph).run({"x": np.ones((2, 4), np.float32)})["y"].dtype == np.float32
    assert graphs.dtype_of(original.graph.inputs[0]) == np.float64


def test_ends_in_double_that_something_computes_with_stay() -> None:
    original = Model(to_graph(model(("Relu", "x", "y"), inputs={"x": (np.float64, (2, 4))})), {}, None, 10)
    assert runnable(original) is original
