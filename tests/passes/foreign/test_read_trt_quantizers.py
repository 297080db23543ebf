"""Quantizers of domain trt become ONNX's own, and compute what those do."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from qcompiler.errors import ModelError
from qcompiler.ir.qdq import FP8, INT4
from qcompiler.passes.foreign.read_trt_quantizers import ReadTrtQuantizers, is_trt_quantizer, opset_for
from qcompiler.runtime.session import Session
from tests.kit.rewrite import check_untouched, model, to_graph

RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 32)).astype(np.float32)
SCALE = np.float32(0.01)


def fp8(stored: Any) -> onnx.ModelProto:
    """A pair at an activation, and a weight that is stored so."""
    proto = model(
        ("TRT_FP8QuantizeLinear", "x s", "q", {}, "trt"),
        ("TRT_FP8DequantizeLinear", "q s", "d", {}, "trt"),
        ("TRT_FP8DequantizeLinear", "w s", "v", {}, "trt"),
        ("MatMul", "d v", "y"),
        inputs={"x": (4, 32)}, weights={"s": SCALE}, opset=21,
    )  # fmt: skip
    proto.graph.initializer.append(stored)
    return proto


VALUES = RNG.integers(-100, 100, (32, 8)).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
RIGHT = (np.clip(X / SCALE, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * SCALE) @ (
    VALUES.astype(np.float32) * SCALE
)


@pytest.mark.parametrize("kind", [onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.UINT8])
def test_fp8_whatever_type_its_bytes_have(kind: int) -> None:
    stored = onnx.TensorProto(name="w", data_type=kind, dims=[32, 8], raw_data=VALUES.tobytes())
    graph = to_graph(fp8(stored))
    assert opset_for(graph) == 19
    assert ReadTrtQuantizers()(graph).changed == 3
    assert {node.domain for node in graph.nodes} <= {None, ""}
    assert graph.nodes[2].inputs[0].values.dtype == FP8
    np.testing.assert_allclose(Session(graph).run({"x": X})["y"], RIGHT, rtol=1e-5)


@pytest.mark.parametrize("wide", [False, True], ids=["int4", "int8"])
@pytest.mark.parametrize("sized", [False, True], ids=["told by shapes", "said"])
@pytest.mark.parametrize("op", ["TRT_INT4DequantizeLinear", "DequantizeLinear"])
def test_int4_in_blocks(op: str, sized: bool, wide: bool) -> None:
    if op == "DequantizeLinear" and wide:
        op = "TRT_INT4DequantizeLinear"  # the plain one says nothing of its type
    values = RNG.integers(-8, 8, (32, 6)).astype(np.int8)
    steps = (RNG.random((2, 6)) + 0.1).astype(np.float32)
    proto = model(
        (op, "w s", "v", {"axis": 0} | ({"block_size": 16} if sized else {}), "trt"), ("MatMul", "x v", "y"),
        inputs={"x": (4, 32)}, weights={"s": steps}, opset=21,
    )  # fmt: skip
    kind = onnx.TensorProto.INT8 if wide else onnx.TensorProto.INT4
    proto.graph.initializer.append(onnx.helper.make_tensor("w", kind, (32, 6), values.ravel().astype(int).tolist()))
    graph = to_graph(proto)
    assert opset_for(graph) == 21
    ReadTrtQuantizers()(graph)
    node = graph.nodes[0]
    assert (node.attrs["axis"], node.attrs["block_size"], node.inputs[0].values.dtype) == (0, 16, INT4)
    right = X @ (values * steps.repeat(16, 0))
    np.testing.assert_allclose(Session(graph).run({"x": X})["y"], right, rtol=1e-4)


def test_scales_that_are_powers_of_two_make_exact_floats() -> None:
    exponents = RNG.integers(118, 124, (32, 2)).astype(np.uint8)
    values = RNG.integers(-100, 100, (32, 64)).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
    attrs = {"axis": -1, "block_size": 32, "output_dtype": onnx.TensorProto.FLOAT}
    proto = model(
        ("TRT_MXFP8DequantizeLinear", "w e", "v", attrs, "trt"), ("MatMul", "x v", "y"),
        inputs={"x": (4, 32)}, weights={"e": exponents}, opset=21,
    )  # fmt: skip
    proto.graph.initializer.append(
        onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT8E4M3FN, dims=[32, 64], raw_data=values.tobytes())
    )
    graph = to_graph(proto)
    ReadTrtQuantizers()(graph)
    right = values.astype(np.float32) * np.exp2(exponents.astype(np.float32) - 127).repeat(32, 1)
    np.testing.assert_array_equal(graph.nodes[0].inputs[1].values, right)


@pytest.mark.parametrize(
    ("op", "writes"),
    [
        ("TRT_MXFP8DynamicQuantize", "q e"), ("TRT_FP4DynamicQuantize", "q e"), ("TRT_FP4QDQ", "q"),
        ("TRT_MXFP8QuantizeLinear", "q"),
    ],
)  # fmt: skip
def test_what_has_no_form_in_onnx_is_refused_or_left_to_tensorrt(op: str, writes: str) -> None:
    proto = model((op, "x", writes, {}, "trt"), inputs={"x": (4, 32)}, outputs=writes.split(), opset=21)
    with pytest.raises(ModelError, match=rf"node 'Q' \({op} of domain 'trt'\)"):
        ReadTrtQuantizers()(to_graph(proto))
    graph = to_graph(proto)
    assert not ReadTrtQuantizers(strict=False)(graph).changed
    assert graph.nodes[0].op == op


def test_values_that_are_no_int4_are_refused() -> None:
    proto = model(
        ("TRT_INT4DequantizeLinear", "w s", "y", {"axis": 0, "block_size": 16}, "trt"),
        inputs={"x": (4, 32)}, weights={"w": np.full((32, 6), 100, np.int8), "s": np.ones((2, 6), np.float32)},
        opset=21,
    )  # fmt: skip
    with pytest.raises(ModelError, match="reads 'w', int8 values that are no int4"):
        ReadTrtQuantizers()(to_graph(proto))


def test_others_are_left_alone() -> None:
    check_untouched(ReadTrtQuantizers(), model(("Relu", "x", "y")))
    graph = to_graph(model(("QuantizeLinear", "x s", "y"), weights={"s": SCALE}, opset=21))
    assert not is_trt_quantizer(graph.nodes[0])
    assert opset_for(graph) == 0
