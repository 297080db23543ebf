"""What TensorRT cannot take: exact repairs and refusals that name node, tensor and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from qcompiler.engines.audit import audit
from qcompiler.engines.tensorrt_rtx import TensorRTRTX
from qcompiler.ir import graph as graphs
from qcompiler.passes.legalize.legalize import REPAIRS, Legalize
from qcompiler.runtime.session import Session
from qcompiler.target import parse_target
from tests.kit.quantized_models import CHANNEL_SCALES, RTX, W8, built, f32, newer, op_named, product, rng
from tests.kit.rewrite import check, check_untouched, model, random_feeds, to_graph, whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


# --- Legal graphs -----------------------------------------------------------------------------------------------------


def test_a_legal_graph_is_left_alone() -> None:
    check_untouched(Legalize(RTX), product())
    check_untouched(Legalize(RTX), model(("Relu", "x", "y")))


def test_onnx_runtime_takes_asymmetric_and_unsigned_models() -> None:
    check_untouched(Legalize(parse_target("onnxruntime")), product(zero=np.uint8(7)))


def test_weights_alone_may_be_blocked() -> None:
    proto = newer(
        model(
            ("DequantizeLinear", "w8 ws wz", "w", {"axis": 0, "block_size": 16}),
            ("MatMul", "x w", "y"),
            inputs={"x": (4, 32)},
            weights={"w8": W8, "ws": np.full((2, 32), 0.01, np.float32), "wz": np.zeros((2, 32), np.int8)},
            opset=21,
        )
    )
    check_untouched(Legalize(RTX), proto)


# --- Repairs ----------------------------------------------------------------------------------------------------------


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


def test_an_int32_bias_becomes_its_float_values(tmp_path: Path) -> None:
    proto = newer(
        model(
            ("QuantizeLinear", "x s z", "q"),
            ("DequantizeLinear", "q s z", "d"),
            ("DequantizeLinear", "w8 ws wz", "w", {"axis": 0}),
            ("DequantizeLinear", "b32 bs", "b", {"axis": 0}),
            ("Conv", "d w b", "y"),
            inputs={"x": (1, 8, 6, 6)},
            weights={
                "s": f32(0.05), "z": np.int8(0), "w8": W8[:8, :8].reshape(8, 8, 1, 1), "ws": CHANNEL_SCALES[:8],
                "wz": np.zeros(8, np.int8), "b32": np.arange(-400, 400, 100).astype(np.int32),
                "bs": CHANNEL_SCALES[:8] / 20,
            },
            opset=21,
        )
    )  # fmt: skip
    graph, report = check(Legalize(RTX), proto, tolerance=1e-6)
    assert [note.node for note in report.notes] == ["B"]
    assert graphs.is_constant(op_named(graph, "Y").inputs[2])
    assert built(graph, tmp_path, "Y")[:2] == ("int8", "int8")


@pytest.mark.parametrize(("engine", "opset", "casts"), [("tensorrt-rtx", 23, 1), ("tensorrt", 21, 3)])
def test_half_scales_become_fp32_and_types_around_stay(engine: str, opset: int, casts: int) -> None:
    proto = newer(
        model(
            ("QuantizeLinear", "x s z", "q"),
            ("DequantizeLinear", "q s z", "d"),
            ("DequantizeLinear", "w8 ws wz", "w", {"axis": 1}),
            ("MatMul", "d w", "y"),
            inputs={"x": (np.float16, (4, 32))},
            weights={
                "s": np.float16(0.0625), "z": np.int8(0), "w8": W8, "ws": CHANNEL_SCALES.astype(np.float16),
                "wz": np.zeros(32, np.int8),
            },
            opset=opset,
        )
    )  # fmt: skip
    graph, _ = check(Legalize(parse_target(engine)), proto, tolerance=2e-3)
    assert [node.op for node in graph.nodes].count("Cast") == casts
    assert all(graphs.dtype_of(node.inputs[1]) == np.float32 for node in graph.nodes if "Linear" in node.op)
    assert graphs.dtype_of(graph.outputs[0]) == np.float16


@pytest.mark.parametrize(("smallest", "ops"), [(0.01, 2), (1e-6, 3)])
def test_blocks_have_scales_of_the_type_they_are_dequantized_to(smallest: float, ops: int, tmp_path: Path) -> None:
    scales = np.full((2, 32), 0.02, np.float32)
    scales[0, 0] = smallest
    proto = newer(
        model(
            ("DequantizeLinear", "w4 ws wz", "w", {"axis": 0, "block_size": 32, "output_dtype": 10}),
            ("MatMul", "x w", "y"),
            inputs={"x": (np.float16, (4, 64))},
            weights={
                "w4": rng().integers(-8, 8, (64, 32)).astype(ml_dtypes.int4), "ws": scales,
                "wz": np.zeros((2, 32), ml_dtypes.int4),
            },
            opset=23,
        )
    )  # fmt: skip
    graph, _ = check(Legalize(RTX), proto, tolerance=2e-3)
    assert len(graph.nodes) == ops
    (tmp_path / "m.onnx").write_bytes(whole(graph).SerializeToString())
    assert TensorRTRTX(("sm89",)).build(tmp_path / "m.onnx", tmp_path / "m.engine").bytes


def stored_weight(scales: Array, dtype: int = 10, *, cast: bool = False) -> onnx.ModelProto:
    """x(fp16) · DQ(int8) with FP32 scales: written in half by the DQ itself, or by a Cast behind it."""
    back = (
        "DequantizeLinear",
        "w8 ws wz",
        "wf" if cast else "w",
        {"axis": 1} | ({} if cast else {"output_dtype": dtype}),
    )
    return newer(
        model(
            back,
            *([("Cast", "wf", "w", {"to": dtype})] if cast else []),
            ("MatMul", "x w", "y"),
            inputs={"x": (np.float16, (4, 32))},
            weights={"w8": W8, "ws": scales, "wz": np.zeros(32, np.int8)},
            opset=23,
        )
    )


HALF_SCALES = CHANNEL_SCALES.astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("engine", ["tensorrt-rtx", "tensorrt"])
@pytest.mark.parametrize("cast", [False, True])
def test_scales_of_a_weight_that_half_holds_are_stored_in_half(engine: str, cast: bool, tmp_path: Path) -> None:
    proto = stored_weight(HALF_SCALES, cast=cast)
    graph, _ = check(Legalize(parse_target(engine)), proto, ops=["DequantizeLinear", "MatMul"], tolerance=1e-3)
    (back,) = (node for node in graph.nodes if node.op == "DequantizeLinear")
    assert graphs.dtype_of(back.inputs[1]) == np.float16
    np.testing.assert_array_equal(graphs.values_of(back.inputs[1]).astype(np.float32), HALF_SCALES)


@pytest.mark.parametrize("engine", ["tensorrt-rtx", "tensorrt"])
def test_scales_of_a_weight_that_half_does_not_hold_stay(engine: str, tmp_path: Path) -> None:
    assert not np.array_equal(CHANNEL_SCALES, HALF_SCALES)
    proto = stored_weight(CHANNEL_SCALES)
    graph, _ = check(Legalize(parse_target(engine)), proto, ops=["DequantizeLinear", "Cast", "MatMul"], tolerance=1e-3)
    np.testing.assert_array_equal(graphs.values_of(graph.nodes[0].inputs[1]), CHANNEL_SCALES)
    (tmp_path / "m.onnx").write_bytes(whole(graph).SerializeToString())
    engine_file = TensorRTRTX(("sm89",)).build(tmp_path / "m.onnx", tmp_path / "m.engine")
    assert audit(engine_file.path, tmp_path / "m.onnx", {}).compiled == {"Y": "woq-int8"}


@pytest.mark.parametrize("scales", [HALF_SCALES, CHANNEL_SCALES], ids=["half", "wide"])
def test_a_weight_alone_in_a_graph_in_half_runs_in_onnx_runtime(scales: Array) -> None:
    # Joined to one operator, weight and activation must be of one type.
    graph = to_graph(stored_weight(scales))
    Legalize(RTX)(graph)
    x = rng().standard_normal((4, 32)).astype(np.float16)
    wanted = x.astype(np.float64) @ (W8 * scales.astype(np.float64))
    found = Session(graph).run({"x": x})["y"]
    assert np.abs(found - wanted).max() < 2e-3 * np.abs(wanted).max()


def test_output_dtype_becomes_a_cast_where_the_target_does_not_read_it() -> None:
    proto = newer(
        model(
            ("Cast", "x", "xf", {"to": 1}),
            ("QuantizeLinear", "xf s z", "q"),
            ("DequantizeLinear", "q s z", "d", {"output_dtype": 10}),
            ("DequantizeLinear", "w8 ws wz", "w", {"axis": 1, "output_dtype": 10}),
            ("MatMul", "d w", "y"),
            inputs={"x": (np.float16, (4, 32))},
            weights={"w8": W8, "ws": CHANNEL_SCALES, "wz": np.zeros(32, np.int8), "s": f32(0.05), "z": np.int8(0)},
            opset=23,
        )
    )
    check_untouched(Legalize(RTX), proto)
    # ONNX Runtime multiplies in half where DequantizeLinear writes half, in FP32 before the Cast.
    graph, _ = check(Legalize(parse_target("tensorrt")), proto, tolerance=1e-3)
    assert [node.op for node in graph.nodes].count("Cast") == 3


def test_a_list_of_one_scale_becomes_a_scalar() -> None:
    graph, _ = check(Legalize(RTX), product(weight_scale=f32([0.01]), axis=None), tolerance=0)
    assert op_named(graph, "W").inputs[1].shape == ()


def test_the_scale_of_a_dead_channel_may_be_anything() -> None:
    values, scales = W8.copy(), CHANNEL_SCALES.copy()
    values[:, 4] = 0
    scales[4] = 0
    graph, _ = check(Legalize(RTX), product(weight=values, weight_scale=scales), tolerance=0)
    assert graphs.values_of(op_named(graph, "W").inputs[1])[4] == 1


def test_weights_of_recurrent_layers_become_float() -> None:
    proto = newer(
        model(
            ("DequantizeLinear", "w8 ws wz", "w"),
            ("GRU", "x w r", "_ y", {"hidden_size": 3}),
            inputs={"x": (5, 2, 4)},
            weights={
                "w8": W8[:9, :4].reshape(1, 9, 4), "ws": f32(0.01), "wz": np.int8(0),
                "r": rng().random((1, 9, 3), np.float32),
            },
            opset=21,
        )
    )  # fmt: skip
    check(Legalize(RTX), proto, ops=["GRU"], tolerance=0)


def test_transposed_convolution_stays_quantized_only_where_there_is_a_kernel() -> None:
    proto = newer(
        model(
            ("DequantizeLinear", "w8 ws wz", "w", {"axis": 1}),
            ("ConvTranspose", "x w", "y"),
            inputs={"x": (1, 4, 3, 3)},
            weights={"w8": W8[:4, :4].reshape(4, 4, 1, 1), "ws": CHANNEL_SCALES[:4], "wz": np.zeros(4, np.int8)},
            opset=21,
        )
    )
    check(Legalize(RTX), proto, ops=["ConvTranspose"], tolerance=0)
    check_untouched(Legalize(parse_target("tensorrt")), proto)


def test_a_quantized_constant_that_an_operator_reads_goes_through_dq_and_q(tmp_path: Path) -> None:
    proto = newer(
        model(
            ("Gather", "table i", "g"),
            ("DequantizeLinear", "g s z", "d"),
            ("Relu", "d", "y"),
            inputs={"i": (np.int64, (3,))},
            weights={"table": W8, "s": f32(0.02), "z": np.int8(0)},
            opset=21,
        )
    )
    graph, _ = check(
        Legalize(RTX),
        proto,
        ops=["DequantizeLinear", "QuantizeLinear", "Gather", "DequantizeLinear", "Relu"],
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


@pytest.mark.parametrize("bias", [True, False])
def test_quantized_convolution_is_written_out(bias: bool, tmp_path: Path) -> None:
    weights = {
        "xs": f32(0.04), "z": np.int8(0), "w8": W8[:8, :8].reshape(8, 8, 1, 1), "ws": CHANNEL_SCALES[:8],
        "wz": np.zeros(8, np.int8), "ys": f32(0.05), "b": np.arange(-400, 400, 100).astype(np.int32),
    }  # fmt: skip
    proto = newer(
        model(
            ("QuantizeLinear", "x xs z", "q"),
            ("QLinearConv", "q xs z w8 ws wz ys z" + (" b" if bias else ""), "c"),
            ("DequantizeLinear", "c ys z", "y"),
            inputs={"x": (1, 8, 6, 6)},
            weights={name: weights[name] for name in weights if bias or name != "b"},
            opset=21,
        )
    )
    graph, _ = check(Legalize(RTX), proto, tolerance=2e-2)  # one step where a tie rounds the other way
    assert [node.op for node in graph.nodes].count("Conv") == 1
    assert built(graph, tmp_path, "C")[:2] == ("int8", "int8")


def test_quantized_product_is_written_out() -> None:
    proto = newer(
        model(
            ("QuantizeLinear", "x xs z", "q"),
            ("QLinearMatMul", "q xs z w8 ws wz ys z", "m"),
            ("DequantizeLinear", "m ys z", "y"),
            inputs={"x": (4, 32)},
            weights={
                "xs": f32(0.04), "z": np.int8(0), "w8": W8, "ws": CHANNEL_SCALES, "wz": np.zeros(32, np.int8),
                "ys": f32(0.05),
            },
            opset=21,
        )
    )  # fmt: skip
    graph, _ = check(Legalize(RTX), proto, tolerance=2e-2)
    assert [node.op for node in graph.nodes].count("MatMul") == 1


def test_repairs_say_nothing_about_a_legal_graph_each_for_itself() -> None:
    graph = to_graph(product())
    assert [note for repair in REPAIRS for note in repair(graph, RTX)] == []
