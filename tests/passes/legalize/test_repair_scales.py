"""Scales that TensorRT cannot take: the same numbers in a form that it takes."""

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
from qcompiler.passes.legalize.legalize import Legalize
from qcompiler.runtime.session import Session
from qcompiler.target import parse_target
from tests.kit.quantized_models import CHANNEL_SCALES, RTX, W8, f32, newer, op_named, product, rng
from tests.kit.rewrite import check, check_untouched, model, to_graph, whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


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
