"""Zero points and stored integers that TensorRT cannot take: the same numbers in a form that it takes."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime

from qcompiler.engines.tensorrt_rtx import TensorRTRTX
from qcompiler.ir import graph as graphs
from qcompiler.passes.legalize.legalize import Legalize
from qcompiler.runtime.session import Session
from tests.kit.quantized_models import CHANNEL_SCALES, RTX, W8, built, f32, newer, op_named, product, rng
from tests.kit.rewrite import check, model, random_feeds, to_graph, whole


def test_unsigned_activations_around_128_become_signed_exactly(tmp_path: Path) -> None:
    graph, _ = check(Legalize(RTX), product(zero=np.uint8(128)), tolerance=0)
    assert graphs.dtype_of(op_named(graph, "Q").inputs[2]) == np.int8
    assert built(graph, tmp_path, "Y")[:2] == ("int8", "int8")


def test_the_whole_way_of_the_integers_becomes_signed() -> None:
    proto = newer(
        model(
            ("QuantizeLinear", "x s z", "q"),
            ("MaxPool", "q", "p", {"kernel_shape": [2, 2]}),
            ("Transpose", "p", "t", {"perm": [0, 1, 3, 2]}),
            ("Concat", "t c", "cc", {"axis": 1}),
            ("DequantizeLinear", "cc s z", "y"),
            inputs={"x": (1, 2, 5, 5)},
            weights={"s": f32(0.05), "z": np.uint8(128), "c": rng().integers(0, 256, (1, 1, 4, 4)).astype(np.uint8)},
            opset=21,
        )
    )
    graph, _ = check(Legalize(RTX), proto, tolerance=0)
    assert {str(graphs.dtype_of(op_named(graph, name).outputs[0])) for name in ("Q", "P", "T", "CC")} == {"int8"}


def test_unsigned_weights_become_signed_where_their_values_fit() -> None:
    proto = product(weight=(W8.astype(np.int16) + 128).astype(np.uint8), weight_zero=np.full(32, 128, np.uint8))
    graph, _ = check(Legalize(RTX), proto, tolerance=0)
    np.testing.assert_array_equal(graphs.values_of(op_named(graph, "W").inputs[0]), W8)


def test_asymmetric_weights_that_fit_lose_their_offset() -> None:
    values = np.clip(W8, -100, 100).astype(np.int8)
    graph, _ = check(Legalize(RTX), product(weight=values, weight_zero=np.full(32, 5, np.int8)), tolerance=0)
    np.testing.assert_array_equal(graphs.values_of(op_named(graph, "W").inputs[0]), values - 5)


def test_unsigned_four_bit_weights_become_signed() -> None:
    values = rng().integers(0, 16, (32, 32)).astype(ml_dtypes.uint4)
    proto = newer(
        model(
            ("DequantizeLinear", "w4 ws wz", "w", {"axis": 1}),
            ("MatMul", "x w", "y"),
            inputs={"x": (4, 32)},
            weights={"w4": values, "ws": CHANNEL_SCALES, "wz": np.full(32, 8, ml_dtypes.uint4)},
            opset=21,
        )
    )
    graph, _ = check(Legalize(RTX), proto, tolerance=0)
    assert graphs.dtype_of(op_named(graph, "W").inputs[0]) == np.dtype(ml_dtypes.int4)


def test_an_omitted_zero_point_of_int8_data_is_written_out() -> None:
    proto = newer(
        model(
            ("DequantizeLinear", "w8 ws", "w", {"axis": 1}),
            ("MatMul", "x w", "y"),
            inputs={"x": (4, 32)},
            weights={"w8": W8, "ws": CHANNEL_SCALES},
            opset=21,
        )
    )
    graph, _ = check(Legalize(RTX), proto, tolerance=0)
    zero = op_named(graph, "W").inputs[2]
    assert graphs.dtype_of(zero) == np.int8
    assert zero.shape == (32,)


def test_a_quantized_constant_that_an_operator_reads_goes_through_dq_and_q(tmp_path: Path) -> None:
    proto = newer(
        model(
            ("Transpose", "table", "g"),
            ("DequantizeLinear", "g s z", "d"),
            ("Add", "d x", "y"),
            inputs={"x": (32, 32)},
            weights={"table": W8, "s": f32(0.02), "z": np.int8(0)},
            opset=21,
        )
    )
    graph, _ = check(
        Legalize(RTX),
        proto,
        ops=["DequantizeLinear", "QuantizeLinear", "Transpose", "DequantizeLinear", "Add"],
        tolerance=0,
    )
    (tmp_path / "m.onnx").write_bytes(whole(graph).SerializeToString())
    assert TensorRTRTX(("sm89",)).build(tmp_path / "m.onnx", tmp_path / "m.engine").bytes


def test_onnx_runtime_s_own_domain_is_onnx_s() -> None:
    proto = product()
    for one in proto.graph.node:
        if "quantize" in one.op_type.lower():
            one.domain = "com.microsoft"
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    graph = to_graph(proto)
    feeds = random_feeds(graph)
    before = Session(graph, optimize=False).run(feeds)["y"]
    assert Legalize(RTX)(graph).changed == 3
    assert all(graphs.is_standard(node) for node in graph.nodes)
    np.testing.assert_array_equal(Session(graph, optimize=False).run(feeds)["y"], before)


def test_an_fp8_quantizer_behind_a_relu_keeps_the_relu_in_onnxruntime() -> None:
    """Which takes the zero point for the lowest value of the type, and optimises the Relu away."""
    proto = newer(
        model(
            ("Relu", "x", "r"), ("QuantizeLinear", "r s z", "q"), ("DequantizeLinear", "q s z", "y"),
            weights={"s": f32(0.01)}, opset=21,
        )
    )  # fmt: skip
    zero = onnx.TensorProto(name="z", data_type=onnx.TensorProto.FLOAT8E4M3FN, raw_data=b"\0")
    proto.graph.initializer.append(zero)
    graph = to_graph(proto)
    Legalize(RTX)(graph)
    quantizer = op_named(graph, "Q")
    assert (len(quantizer.inputs), quantizer.attrs["output_dtype"]) == (2, onnx.TensorProto.FLOAT8E4M3FN)
    found = onnxruntime.InferenceSession(whole(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = found.run(["y"], {"x": np.full((2, 4), -1, np.float32)})
    np.testing.assert_array_equal(y, 0)
