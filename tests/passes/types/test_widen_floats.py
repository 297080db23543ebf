"""FP16, BF16 and double become FP32: values, types that nodes state, nested graphs, functions; what is refused."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcompiler.errors import ModelError
from qcompiler.ir import element_types
from qcompiler.ir import graph as graphs
from qcompiler.passes.types.widen_floats import WidenFloats
from qcompiler.runtime.session import Session
from tests.kit.rewrite import content, graph_proto, model, to_graph

F16, BF16, F64 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float64)
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def weight(*shape: int) -> Any:
    return np.random.default_rng(3).standard_normal(shape)


def widened(proto: onnx.ModelProto) -> gs.Graph:
    """The graph after the pass, which leaves no other float and does nothing the second time."""
    graph = to_graph(proto)
    assert WidenFloats()(graph).changed
    left = {str(dtype) for dtype in element_types.infer_all(graph).values()}
    assert not left & {"float16", "bfloat16", "float64"}
    before = content(graph)
    assert not WidenFloats()(graph).changed
    assert content(graph) == before
    return graph


def ops(graph: gs.Graph) -> list[str]:
    return [str(node.op) for node in graph.nodes]


@pytest.mark.parametrize("dtype", [F16, BF16, F64], ids=str)
def test_all_of_it_is_float32_with_the_same_numbers(dtype: np.dtype[Any]) -> None:
    w, b = weight(4, 8).astype(dtype), weight(8).astype(dtype)
    proto = model(("MatMul", "x w", "m"), ("Add", "m b", "a"), ("Relu", "a", "y"),
                  inputs={"x": (dtype, ("n", 4))}, weights={"w": w, "b": b}, opset=22)  # fmt: skip
    graph = widened(proto)
    assert [graphs.dtype_of(one) for one in (*graph.inputs, *graph.outputs)] == [np.dtype(np.float32)] * 2
    x = weight(3, 4).astype(np.float32)
    expected = np.maximum(x @ w.astype(np.float32) + b.astype(np.float32), 0)
    np.testing.assert_allclose(Session(graph).run({"x": x})["y"], expected, rtol=1e-5, atol=1e-6)


def test_the_original_graph_keeps_its_arrays() -> None:
    graph = to_graph(
        model(("MatMul", "x w", "y"), inputs={"x": (F16, (2, 4))}, weights={"w": weight(4, 4).astype(F16)})
    )
    before = content(graph)
    WidenFloats()(graph.copy())
    assert content(graph) == before


@pytest.mark.parametrize("dtype", [F16, BF16, F64], ids=str)
def test_a_weight_behind_a_cast_stands_at_its_layer(dtype: np.dtype[Any]) -> None:
    proto = model(
        ("Cast", "w16", "w", {"to": FLOAT}), ("MatMul", "x w", "y"), weights={"w16": weight(4, 4).astype(dtype)}
    )
    graph = to_graph(proto)
    WidenFloats()(graph)
    if dtype != F64:  # a double that only a Cast reads multiplies nothing; folding makes a weight of it
        assert ops(graph) == ["MatMul"]
        assert isinstance(graph.nodes[0].inputs[1], gs.Constant)


def test_half_inside_with_float32_ends_loses_its_casts() -> None:
    proto = model(
        ("Cast", "x", "h", {"to": HALF}), ("MatMul", "h w", "m"), ("Cast", "m", "y", {"to": FLOAT}),
        weights={"w": weight(4, 4).astype(F16)},
    )  # fmt: skip
    graph = widened(proto)
    assert ops(graph) == ["MatMul"]
    assert (graph.inputs[0].name, graph.outputs[0].name) == ("x", "y")


def test_a_cast_that_stood_there_to_round_goes_too_and_one_to_integers_stays() -> None:
    proto = model(("Cast", "x", "h", {"to": HALF}), ("Cast", "h", "f", {"to": FLOAT}),
                  ("Cast", "f", "y", {"to": TensorProto.INT32}))  # fmt: skip
    assert ops(widened(proto)) == ["Cast"]


def test_cast_like_a_half_is_none() -> None:
    proto = model(("CastLike", "x w", "h"), ("MatMul", "h w", "y"), weights={"w": weight(4, 4).astype(F16)})
    assert ops(widened(proto)) == ["MatMul"]


def test_types_that_nodes_state_become_float32() -> None:
    like = helper.make_tensor("v", HALF, [1], [0.5])
    proto = model(
        ("Shape", "x", "s"), ("ConstantOfShape", "s", "c", {"value": like}),
        ("RandomNormal", "", "r", {"shape": [2, 4], "dtype": HALF}),
        ("EyeLike", "i", "e", {"dtype": HALF}),
        ("Constant", "", "k", {"value": helper.make_tensor("k", HALF, [], [2])}),
        ("Add", "c r", "a"), ("Add", "a e", "b"), ("Mul", "b k", "d"), ("Add", "d x", "y"),
        inputs={"x": (F16, (2, 4)), "i": (np.int64, (2, 4))},
    )  # fmt: skip
    graph = widened(proto)
    feeds: dict[str, Any] = {"x": np.ones((2, 4), np.float32), "i": np.zeros((2, 4), np.int64)}
    assert Session(graph).run(feeds)["y"].dtype == np.float32


def test_a_normalisation_that_computes_in_half_computes_in_float32() -> None:
    proto = model(("LayerNormalization", "x g", "y", {"stash_type": TensorProto.BFLOAT16}),
                  inputs={"x": (BF16, (2, 4))}, weights={"g": weight(4).astype(BF16)})  # fmt: skip
    assert widened(proto).nodes[0].attrs["stash_type"] == FLOAT


def test_scales_in_half_are_widened_and_stored_integers_stay() -> None:
    proto = model(
        ("DequantizeLinear", "q s", "w"), ("MatMul", "x w", "y"), inputs={"x": (F16, (2, 4))},
        weights={"q": np.arange(16, dtype=np.int8).reshape(4, 4), "s": np.array(0.1, F16)}, opset=21,
    )  # fmt: skip
    graph = widened(proto)
    assert [graphs.dtype_of(one) for one in graph.nodes[0].inputs] == [np.dtype(np.int8), np.dtype(np.float32)]
    assert float(graph.nodes[0].inputs[1].values) == float(np.float16(0.1))


def test_branches_and_loops_are_widened() -> None:
    step = graph_proto(
        [("Identity", "go", "on"), ("MatMul", "state w", "next"), ("Cast", "next", "wide", {"to": FLOAT})],
        {"i": (np.int64, ()), "go": (np.bool_, ()), "state": (F16, (2, 4))}, ["on", "next", "wide"],
    )  # fmt: skip
    proto = model(
        ("Loop", "count true x", "last all", {"body": step}), ("Cast", "last", "y", {"to": FLOAT}),
        inputs={"x": (F16, (2, 4))}, outputs=["y", "all"],
        weights={"count": np.array(3), "true": np.array(True), "w": (weight(4, 4) / 4).astype(F16)},
    )  # fmt: skip
    graph = widened(proto)
    (body,) = graphs.subgraphs(graph.nodes[0])
    assert graphs.dtype_of(body.inputs[2]) == np.float32
    assert Session(graph).run({"x": np.ones((2, 4), np.float32)})["all"].shape == (3, 2, 4)


def test_sequences_and_optionals_of_halves_hold_float32() -> None:
    proto = model(
        ("SequenceEmpty", "", "none", {"dtype": HALF}), ("SequenceInsert", "none x", "one"),
        ("ConcatFromSequence", "one", "y", {"axis": 0}), inputs={"x": (F16, (2, 4))},
    )  # fmt: skip
    info = helper.make_value_info("one", helper.make_sequence_type_proto(helper.make_tensor_type_proto(HALF, None)))
    proto.graph.value_info.append(info)
    graph = widened(proto)
    assert Session(graph).run({"x": np.ones((2, 4), np.float32)})["y"].shape == (2, 4)


def test_a_sparse_weight_stays_sparse() -> None:
    proto = model(("MatMul", "x w", "y"), inputs={"x": (F16, (2, 4)), "w": (F16, (4, 4))})
    del proto.graph.input[1]
    values = numpy_helper.from_array(np.array([1, 2], F16), "w")
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0, 5])), [4, 4])
    )
    graph = widened(proto)
    np.testing.assert_array_equal(graphs.values_of(graph.nodes[0].inputs[1]), np.diag([1, 2, 0, 0]).astype(np.float32))


def test_masks_keep_their_meaning() -> None:
    proto = model(("Where", "m zero low", "b"), ("Add", "x b", "a"), ("Softmax", "a", "y"),
                  inputs={"x": (F16, (2, 4)), "m": (np.bool_, (2, 4))},
                  weights={"zero": np.array(0, F16), "low": np.array(-np.inf, F16)})  # fmt: skip
    graph = widened(proto)
    mask = np.array([[True, False, True, True]] * 2)
    found = Session(graph).run({"x": np.zeros((2, 4), np.float32), "m": mask})["y"]
    np.testing.assert_allclose(found, mask / 3, atol=1e-6)


def test_a_function_that_stays_a_call_computes_in_float32() -> None:
    body = [
        helper.make_node("Constant", [], ["k"], value=helper.make_tensor("k", HALF, [], [2.0])),
        helper.make_node("Cast", ["a"], ["h"], to=HALF),
        helper.make_node("Mul", ["h", "k"], ["b"]),
    ]
    function = helper.make_function("local", "Double", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    proto = model(("Double", "x", "y", {}, "local"), domains=["local"], inputs={"x": (F16, (2, 4))})
    proto.functions.append(function)
    proto.graph.output[0].type.tensor_type.elem_type = HALF
    graph = widened(proto)
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(Session(graph).run({"x": x})["y"], 2 * x)


def test_a_double_weight_beyond_float32_is_refused_by_name() -> None:
    w = weight(4, 4)
    w[1, 2] = 1e300
    graph = to_graph(model(("MatMul", "x heavy", "y"), inputs={"x": (F64, (2, 4))}, weights={"heavy": w}))
    with pytest.raises(ModelError, match=r"'heavy' of node 'Y' \(MatMul\) is double, and 1 of its 16"):
        WidenFloats()(graph)


def test_times_in_double_stay_double() -> None:
    proto = model(
        ("Sub", "t t0", "d"), ("Cast", "d", "f", {"to": FLOAT}), ("MatMul", "f w", "y"),
        inputs={"t": (F64, (2, 4))}, weights={"t0": np.float64(1.7e9), "w": weight(4, 4).astype(np.float32)},
    )  # fmt: skip
    graph = to_graph(proto)
    assert not WidenFloats()(graph).changed
    assert graphs.dtype_of(graph.inputs[0]) == F64


@pytest.mark.parametrize(
    ("dtype", "words"),
    [(ml_dtypes.float8_e4m3fn, "input 'x' of the model is float8_e4m3fn"), (np.complex64, "input 'x'.*complex64")],
)
def test_ends_that_cannot_be_had_are_refused_by_name(dtype: Any, words: str) -> None:
    graph = to_graph(model(("Identity", "x", "y"), inputs={"x": (dtype, (2, 4))}, opset=21))
    with pytest.raises(ModelError, match=words):
        WidenFloats()(graph)


def test_complex_numbers_inside_are_refused_by_node() -> None:
    graph = to_graph(model(("Identity", "c", "z"), ("Relu", "x", "y"), outputs=["y"],
                           weights={"c": np.ones(2, np.complex64)}))  # fmt: skip
    with pytest.raises(ModelError, match="node 'Z'.*complex64"):
        WidenFloats()(graph)
