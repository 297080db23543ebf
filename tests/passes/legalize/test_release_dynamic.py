"""Scales that are found at run time: products and pairs of dynamic quantization become float, weights stay stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.ir import graph as graphs
from qcompiler.passes.legalize.release_quantizers import ReleaseQuantizers
from tests.kit.quantized_models import CHANNEL_SCALES, W8, f32, giving, newer
from tests.kit.rewrite import Spec, check, model

K8 = W8[:8, :8].reshape(8, 8, 1, 1)


def dynamic(op: str, weight: Any, wz: Any, shape: tuple[int, ...], **attrs: Any) -> onnx.ModelProto:
    nodes = (
        ("DynamicQuantizeLinear", "x", "q s z"),
        (op, "q w z wz", "p", attrs),
        ("Cast", "p", "f", {"to": onnx.TensorProto.FLOAT}),
        ("Mul", "s ws", "sw"),
        ("Mul", "f sw", "y"),
    )
    held = {"w": weight, "ws": f32(0.002), "wz": wz}
    return newer(model(*nodes, inputs={"x": shape}, weights=held, opset=21))


@pytest.mark.parametrize(("op", "weight", "shape"), [("MatMulInteger", W8, (4, 32)), ("ConvInteger", K8, (1, 8, 6, 6))])
def test_an_integer_product_with_scales_found_at_run_time_becomes_float(
    op: str, weight: Any, shape: tuple[int, ...]
) -> None:
    graph, report = check(ReleaseQuantizers(), dynamic(op, weight, np.int8(0), shape), tolerance=0.02)
    made = next(node for node in graph.nodes if node.op == op.removesuffix("Integer"))
    stored = graphs.producer(made.inputs[1])
    assert stored is not None
    np.testing.assert_array_equal(graphs.values_of(stored.inputs[0]), weight)
    assert made.inputs[0].name == "x"
    assert "run time" in report.released["x"]


def test_an_unsigned_weight_of_an_integer_product_becomes_signed_where_it_fits() -> None:
    unsigned = (W8.astype(np.int16) + 128).astype(np.uint8)
    graph, _ = check(ReleaseQuantizers(), dynamic("MatMulInteger", unsigned, np.uint8(128), (4, 32)), tolerance=0.02)
    stored = next(node for node in graph.nodes if node.op == "DequantizeLinear")
    np.testing.assert_array_equal(graphs.values_of(stored.inputs[0]), W8)


def test_onnx_runtime_s_fused_dynamic_product_becomes_float() -> None:
    held = {"w": W8, "ws": CHANNEL_SCALES, "wz": np.zeros(32, np.int8), "b": f32(np.arange(32))}
    node: Spec = ("DynamicQuantizeMatMul", "x w ws wz b", "y", {}, "com.microsoft")
    proto = giving(model(node, inputs={"x": (4, 32)}, weights=held, opset=21, domains=("com.microsoft",)), 4, 32)
    check(ReleaseQuantizers(), proto, ops=["DequantizeLinear", "MatMul", "Add", "Cast", "Reshape"], tolerance=0.02)


def test_a_dynamic_pair_passes_its_input_on() -> None:
    nodes = (("DynamicQuantizeLinear", "x", "q s z"), ("DequantizeLinear", "q s z", "d"), ("Relu", "d", "y"))
    graph, _ = check(ReleaseQuantizers(), newer(model(*nodes, inputs={"x": (4, 8)}, opset=21)), tolerance=0.01)
    assert [node.op for node in graph.nodes if node.name != "Q"] == ["Identity", "Relu"]
