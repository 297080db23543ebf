"""Quantizers that the target cannot have are dropped, what they bounded stays bounded, all others are kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.ir import graph as graphs
from qcompiler.passes.legalize.release_quantizers import ReleaseQuantizers
from qcompiler.target import parse_target
from tests.kit.quantized_models import CHANNEL_SCALES, W8, f32, newer, op_named, product, rng
from tests.kit.rewrite import Spec, check, check_untouched, model

K8 = W8[:8, :8].reshape(8, 8, 1, 1)
CONV = {"ws": CHANNEL_SCALES[:8], "wz": np.zeros(8, np.int8), "k": K8}


def test_what_the_target_can_have_is_kept() -> None:
    check_untouched(ReleaseQuantizers(), product())
    check_untouched(ReleaseQuantizers(), model(("Relu", "x", "y")))
    check_untouched(ReleaseQuantizers(parse_target("onnxruntime")), product(zero=np.int8(3)))


@pytest.mark.parametrize(
    ("zero", "why"),
    [(np.int8(3), "zero point is 3"), (np.uint8(100), "uint8 with zero point 100"), (np.uint16(32000), "uint16")],
)
def test_an_asymmetric_pair_is_dropped_and_the_weight_stays_stored(zero: Any, why: str) -> None:
    proto = product(scale=0.05 if zero.dtype.itemsize == 1 else 2e-4, zero=zero)
    graph, report = check(ReleaseQuantizers(), proto, tolerance=0.05)
    assert why in report.released["x"]
    assert sorted(node.op for node in graph.nodes) == ["DequantizeLinear", "Identity", "Identity", "MatMul"]
    np.testing.assert_array_equal(graphs.values_of(op_named(graph, "W").inputs[0]), W8)


def behind(op: str, zero: Any, *extra: str) -> onnx.ModelProto:
    """x → Conv → (op) → Q → DQ → y; `zero` says where the integers begin."""
    nodes: list[Spec] = [("DequantizeLinear", "k ws wz", "kd", {"axis": 0}), ("Conv", "x kd", "c")]
    nodes += [(op, "c", "a")] if op else []
    nodes += [("QuantizeLinear", f"{'a' if op else 'c'} s z", "q"), ("DequantizeLinear", "q s z", "y")]
    held = CONV | {"s": f32(0.01), "z": zero}
    return newer(model(*nodes, inputs={"x": (1, 8, 6, 6)}, weights=held, opset=21))


@pytest.mark.parametrize("zero", [np.uint8(0), np.int8(-128)])
def test_a_quantizer_that_took_the_place_of_a_relu_leaves_its_bounds(zero: Any) -> None:
    graph, report = check(ReleaseQuantizers(), behind("", zero), tolerance=0.01)
    clip = op_named(graph, "Q")
    assert clip.op == "Clip"
    assert [float(graphs.values_of(tensor)) for tensor in clip.inputs[1:]] == pytest.approx([0, 2.55])
    assert "bound" in report.notes[0].text


def test_a_quantizer_behind_a_relu_has_no_bounds_to_leave() -> None:
    graph, _ = check(ReleaseQuantizers(), behind("Relu", np.uint8(0)), tolerance=0.01)
    assert "Clip" not in {node.op for node in graph.nodes}


def test_a_quantizer_behind_a_convolution_may_have_taken_the_place_of_a_clip() -> None:
    graph, _ = check(ReleaseQuantizers(), behind("", np.uint8(100)), tolerance=0.01)
    assert [float(graphs.values_of(tensor)) for tensor in op_named(graph, "Q").inputs[1:]] == pytest.approx([-1, 1.55])


def test_the_whole_way_of_the_integers_becomes_float() -> None:
    proto = newer(
        model(
            ("QuantizeLinear", "x s z", "q"),
            ("MaxPool", "q", "p", {"kernel_shape": [2, 2]}),
            ("Concat", "p c", "cc", {"axis": 1}),
            ("DequantizeLinear", "cc s z", "y"),
            inputs={"x": (1, 2, 5, 5)},
            weights={"s": f32(0.05), "z": np.uint8(90), "c": rng().integers(0, 256, (1, 1, 4, 4)).astype(np.uint8)},
            opset=21,
        )
    )
    graph, _ = check(ReleaseQuantizers(), proto, tolerance=0.01)
    assert [node.op for node in graph.nodes] == ["Identity", "MaxPool", "Concat", "Identity"]


def test_an_activation_with_a_scale_per_channel_is_released() -> None:
    nodes = (
        ("QuantizeLinear", "x cs cz", "q", {"axis": 1}),
        ("DequantizeLinear", "q cs cz", "d", {"axis": 1}),
        ("DequantizeLinear", "w ws wz", "v", {"axis": 1}),
        ("MatMul", "d v", "y"),
    )
    zeros = np.zeros(32, np.int8)
    held = {"cs": f32(np.full(32, 0.03)), "cz": zeros, "w": W8, "ws": CHANNEL_SCALES, "wz": zeros}
    _, report = check(
        ReleaseQuantizers(), newer(model(*nodes, inputs={"x": (4, 32)}, weights=held, opset=21)), tolerance=0.05
    )
    assert report.released["x"] == "it has 32 scales"


def test_scales_that_no_quantizer_may_have_are_left_to_be_refused() -> None:
    check_untouched(ReleaseQuantizers(), product(scale=-0.05, zero=np.int8(3)))


def test_a_weight_whose_offset_does_not_fit_becomes_float() -> None:
    zero = np.full(32, 90, np.uint8)
    proto = product(weight=(W8.astype(np.int16) + 128).astype(np.uint8), weight_zero=zero)
    graph, _ = check(ReleaseQuantizers(), proto, tolerance=1e-6)
    weight = op_named(graph, "Y").inputs[1]
    np.testing.assert_allclose(graphs.values_of(weight), (W8.astype(np.float32) + 38) * CHANNEL_SCALES, rtol=1e-6)


def test_a_weight_scaled_along_the_depth_becomes_float_beside_a_quantized_activation() -> None:
    graph, _ = check(ReleaseQuantizers(), product(axis=0), tolerance=1e-6)
    assert graphs.is_constant(op_named(graph, "Y").inputs[1])


def test_a_weight_in_blocks_gets_a_float_activation() -> None:
    proto = product(weight_scale=f32(np.full((2, 32), 0.01)), axis=0, block=16)
    graph, report = check(ReleaseQuantizers(), proto, tolerance=0.05)
    assert op_named(graph, "Y").inputs[0].name == "x"
    assert "blocked" in report.released["x"]


def test_a_product_of_activations_that_lost_one_pair_loses_the_other() -> None:
    nodes = (
        ("QuantizeLinear", "x s z", "q"),
        ("DequantizeLinear", "q s z", "d"),
        ("QuantizeLinear", "t s z8", "r"),
        ("DequantizeLinear", "r s z8", "e"),
        ("MatMul", "d e", "y"),
    )
    held = {"s": f32(0.03), "z": np.int8(0), "z8": np.uint8(100)}
    proto = newer(model(*nodes, inputs={"x": (4, 8), "t": (8, 4)}, weights=held, opset=21))
    graph, report = check(ReleaseQuantizers(), proto, tolerance=0.05)
    assert op_named(graph, "Y").inputs[0].name == "x"
    assert any("as it does its other operand" in note.text for note in report.notes)
