"""Scales that are computed from constants: folded, but for the two levels of NVFP4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qcompiler.engines.tensorrt_rtx import TensorRTRTX
from qcompiler.ir.graph import constant_value
from qcompiler.passes.legalize.legalize import Legalize
from qcompiler.planning.placement.candidates import existing
from qcompiler.target import DType, parse_target
from tests.kit.quantized_models import CHANNEL_SCALES, RTX, W8, newer, op_named, product, refused
from tests.kit.rewrite import check, node, to_graph, whole

SM120 = parse_target("tensorrt-rtx:sm120")


def computed(*nodes: onnx.NodeProto, **weights: Any) -> onnx.ModelProto:
    """The product of the kit with a weight scale `ws` that nodes compute."""
    proto = product()
    kept = [one for one in proto.graph.initializer if one.name != "ws"]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in weights.items())
    former = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([*nodes, *former])
    return proto


@pytest.mark.parametrize(
    ("nodes", "weights", "expected"),
    [
        (
            [node("Mul", "a b", "ws")],
            {"a": CHANNEL_SCALES, "b": np.float32(2)},
            CHANNEL_SCALES * np.float32(2),
        ),
        (
            [node("Cast", "half", "ws", {"to": TensorProto.FLOAT})],
            {"half": CHANNEL_SCALES.astype(np.float16)},
            CHANNEL_SCALES.astype(np.float16).astype(np.float32),
        ),
        (
            [node("DequantizeLinear", "s8 g", "wide"), node("Reshape", "wide shape", "ws")],
            {"s8": np.full((4, 8), 3, np.int8), "g": np.float32(0.25), "shape": np.array([32])},
            np.full(32, 0.75, np.float32),
        ),
    ],
)
def test_a_scale_that_is_computed_from_constants_is_one(
    nodes: list[onnx.NodeProto], weights: dict[str, Any], expected: np.ndarray
) -> None:
    graph, _ = check(Legalize(RTX), computed(*nodes, **weights))
    np.testing.assert_array_equal(constant_value(op_named(graph, "W").inputs[1]), expected)


def nvfp4() -> onnx.ModelProto:
    """x → MatMul(DQ(w: FP4, DQ(s: FP8))) → y, in blocks of 16."""
    values = [
        helper.make_tensor("w4", TensorProto.FLOAT4E2M1, [32, 32], np.full(512, 0x22, np.uint8).tobytes(), raw=True),
        helper.make_tensor(
            "s8", TensorProto.FLOAT8E4M3FN, [2, 32], np.ones((2, 32), ml_dtypes.float8_e4m3fn).tobytes(), raw=True
        ),
        helper.make_tensor("g", TensorProto.FLOAT, [], [0.125]),
    ]
    nodes = [
        node("DequantizeLinear", "s8 g", "s"),
        node("DequantizeLinear", "w4 s", "w", {"axis": 0, "block_size": 16}),
        node("MatMul", "x w", "y"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 32]) for name in ("x", "y")]
    body = helper.make_graph(nodes, "g", ends[:1], ends[1:], values)
    return newer(helper.make_model(body, opset_imports=[helper.make_opsetid("", 23)]))


def test_the_two_levels_of_nvfp4_stay_and_are_built(tmp_path: Path) -> None:
    graph = to_graph(nvfp4())
    assert not [note for note in Legalize(SM120)(graph).notes if "folded" in note.text]
    assert constant_value(op_named(graph, "W").inputs[1]) is None
    assert [decision.precision for decision in existing(graph)] == [DType.FP4_WEIGHT]
    (tmp_path / "m.onnx").write_bytes(whole(graph).SerializeToString())
    assert TensorRTRTX(("sm120",)).build(tmp_path / "m.onnx", tmp_path / "m.engine").path.is_file()


@pytest.mark.parametrize("target", ["tensorrt-rtx:sm89", "tensorrt-rtx", "tensorrt:sm86"])
def test_gpus_without_fp4_are_named(target: str) -> None:
    refused(nvfp4(), "'W'", "FP4 (float4_e2m1fn)", "sm120", target=parse_target(target))


def test_integers_with_a_scale_of_two_levels_get_the_product() -> None:
    assert W8.dtype == np.int8
    nodes = [node("DequantizeLinear", "s8 g", "ws")]
    proto = computed(*nodes, s8=np.arange(1, 33, dtype=np.int8), g=np.float32(0.5))
    graph, _ = check(Legalize(RTX), proto)
    np.testing.assert_array_equal(constant_value(op_named(graph, "W").inputs[1]), np.arange(1, 33) / np.float32(2))
