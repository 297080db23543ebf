"""Operators on integers written as Q/DQ around float operators: the same numbers, or the reason why not."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from qcompiler.ir import graph as graphs
from qcompiler.passes.legalize.convert_qoperator import FORMS, ConvertQoperator
from tests.kit.quantized_models import CHANNEL_SCALES, W8, f32, giving, newer, op_named, rng
from tests.kit.rewrite import Spec, check, check_skipped, check_untouched, model

MICROSOFT = "com.microsoft"
Case = tuple[str, dict[str, Any], str, tuple[int, ...]]

# By operator: inputs, attributes, domain and the shape of x. `q` is x as uint8 around 120.
CASES: dict[str, Case] = {
    "QLinearConv": ("q s z k ws wz ys yz b", {"pads": [1] * 4}, "", (1, 8, 6, 6)),
    "QLinearMatMul": ("q s z w ws wz ys yz", {}, "", (4, 32)),
    "QGemm": ("q s z w s1 z1 c ys yz", {"alpha": 0.5}, MICROSOFT, (4, 32)),
    "QLinearAdd": ("q s z q s z ys yz", {}, MICROSOFT, (4, 32)),
    "QLinearMul": ("q s z q s z ys yz", {}, MICROSOFT, (4, 32)),
    "QLinearSigmoid": ("q s z ys yz", {}, MICROSOFT, (4, 32)),
    "QLinearLeakyRelu": ("q s z ys yz", {"alpha": 0.2}, MICROSOFT, (4, 32)),
    "QLinearSoftmax": ("q s z ss zero", {"axis": -1, "opset": 13}, MICROSOFT, (4, 32)),
    "QLinearGlobalAveragePool": ("q s z ys yz", {}, MICROSOFT, (1, 8, 6, 6)),
    "QLinearAveragePool": ("q s z ys yz", {"kernel_shape": [2, 2]}, MICROSOFT, (1, 8, 6, 6)),
    "QLinearConcat": ("ys yz q s z q s z", {"axis": 1}, MICROSOFT, (4, 32)),
    "QLinearWhere": ("m q s z q s z ys yz", {}, MICROSOFT, (4, 32)),
}  # fmt: skip
GIVES = {
    "QLinearGlobalAveragePool": (1, 8, 1, 1),
    "QLinearAveragePool": (1, 8, 5, 5),
    "QLinearConcat": (4, 64),
}
HELD: dict[str, Any] = {
    "s": f32(0.03), "z": np.uint8(120), "ys": f32(0.05), "yz": np.uint8(120), "ss": f32(1 / 256), "zero": np.uint8(0),
    "k": W8[:8, :8].reshape(8, 8, 1, 1).repeat(3, 2).repeat(3, 3), "w": W8, "ws": CHANNEL_SCALES,
    "wz": np.zeros(32, np.int8), "b": np.arange(-400, 400, 100).astype(np.int32), "s1": f32(0.002), "z1": np.int8(0),
    "c": (np.arange(32) * 50).astype(np.int32), "m": rng().integers(0, 2, (4, 32)).astype(bool),
}  # fmt: skip


def quantized(op: str, **changed: Any) -> onnx.ModelProto:
    """x → Q → the operator → DQ → y."""
    reads, attrs, domain, shape = CASES[op]
    held = HELD | changed
    if op == "QLinearConv":
        held |= {"ws": CHANNEL_SCALES[:8], "wz": np.zeros(8, np.int8)} | changed
    scale, zero = ("ss", "zero") if op == "QLinearSoftmax" else ("ys", "yz")
    nodes: tuple[Spec, ...] = (
        ("QuantizeLinear", "x s z", "q"),
        (op, reads, "r", attrs, domain),
        ("DequantizeLinear", f"r {scale} {zero}", "y"),
    )
    used = {name for _, text, *_ in nodes for name in text.split()}
    weights = {name: value for name, value in held.items() if name in used}
    proto = model(*nodes, inputs={"x": shape}, weights=weights, opset=21, domains=(MICROSOFT,))
    return giving(proto, *GIVES.get(op, shape))


def test_every_form_but_one_has_a_case() -> None:
    assert set(FORMS) - set(CASES) == {"QLinearReduceMean"}  # ONNX Runtime has no kernel for it on every CPU


@pytest.mark.parametrize("op", list(CASES))
def test_an_operator_on_integers_computes_the_same_between_pairs(op: str) -> None:
    # One step of the result where a tie rounds the other way, or where ONNX Runtime looks up a table
    graph, report = check(ConvertQoperator(), quantized(op), tolerance=0.04)
    assert [node.op for node in graph.nodes].count(FORMS[op].op) == 1
    assert all(graphs.is_standard(node) for node in graph.nodes)
    assert [note.node for note in report.notes] == ["R"]


def test_the_weight_keeps_its_integers_and_scales() -> None:
    graph, _ = check(ConvertQoperator(), quantized("QLinearMatMul"), tolerance=0.03)
    weight = graphs.producer(op_named(graph, "R").inputs[1])
    assert weight is not None
    np.testing.assert_array_equal(graphs.values_of(weight.inputs[0]), W8)
    np.testing.assert_array_equal(graphs.values_of(weight.inputs[1]), CHANNEL_SCALES)
    assert weight.attrs["axis"] == 1


def test_a_product_without_a_result_scale_writes_floats() -> None:
    nodes: tuple[Spec, ...] = (("QuantizeLinear", "x s z", "q"), ("QGemm", "q s z w s1 z1 c", "y", {}, MICROSOFT))
    held = {name: HELD[name] for name in ("s", "z", "w", "s1", "z1", "c")}
    proto = giving(model(*nodes, inputs={"x": (4, 32)}, weights=held, opset=21, domains=(MICROSOFT,)), 4, 32)
    check(
        ConvertQoperator(),
        proto,
        ops=["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "Gemm", "Cast", "Reshape"],
        tolerance=1e-5,
    )


def test_a_softmax_over_several_axes_is_flattened() -> None:
    nodes: tuple[Spec, ...] = (
        ("QuantizeLinear", "x s z", "q"),
        ("QLinearSoftmax", "q s z ss zero", "r", {"axis": 1, "opset": 11}, MICROSOFT),
        ("DequantizeLinear", "r ss zero", "y"),
    )
    held = {name: HELD[name] for name in ("s", "z", "ss", "zero")}
    proto = giving(model(*nodes, inputs={"x": (2, 3, 4)}, weights=held, opset=21, domains=(MICROSOFT,)), 2, 3, 4)
    graph, _ = check(ConvertQoperator(), proto, tolerance=0.03)
    assert {"Flatten", "Softmax", "Reshape"} <= {node.op for node in graph.nodes}


def test_scales_that_are_computed_and_channels_that_come_last_stay() -> None:
    nodes: tuple[Spec, ...] = (
        ("QuantizeLinear", "x s z", "q"),
        ("Abs", "t", "n"),
        ("QLinearAdd", "q n z q s z ys yz", "r", {}, MICROSOFT),
        ("DequantizeLinear", "r ys yz", "y"),
    )
    held = {name: HELD[name] for name in ("s", "z", "ys", "yz")}
    proto = newer(model(*nodes, inputs={"x": (4, 32), "t": ()}, weights=held, opset=21, domains=(MICROSOFT,)))
    check_skipped(ConvertQoperator(), proto, "computed at run time")
    last = quantized("QLinearGlobalAveragePool")
    last.graph.node[1].attribute.append(onnx.helper.make_attribute("channels_last", 1))
    check_skipped(ConvertQoperator(), last, "last axis")


# --- Four bits --------------------------------------------------------------------------------------------------------


def four_bits(**attrs: int) -> onnx.ModelProto:
    """MatMulNBits of a [32, 8] weight in two blocks of 16 a column."""
    held = {"w": rng().integers(0, 256, (8, 2, 8)).astype(np.uint8), "ws": f32(np.linspace(0.01, 0.03, 16))}
    given: dict[str, Any] = {"K": 32, "N": 8, "bits": 4, "block_size": 16} | attrs
    node = ("MatMulNBits", "x w ws", "y", given, MICROSOFT)
    return giving(model(node, inputs={"x": (4, 32)}, weights=held, opset=21, domains=(MICROSOFT,)), 4, 8)


def test_four_bit_weights_become_blocks_along_the_depth() -> None:
    graph, _ = check(
        ConvertQoperator(), four_bits(), ops=["DequantizeLinear", "MatMul", "Cast", "Reshape"], tolerance=1e-5
    )
    weight = graph.nodes[0]
    assert graphs.dtype_of(weight.inputs[0]) == np.dtype(ml_dtypes.int4)
    assert (weight.attrs["axis"], weight.attrs["block_size"], weight.inputs[1].shape) == (0, 16, (2, 8))


def test_four_bit_weights_of_another_kind_become_floats() -> None:
    proto = four_bits()
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.full(8, 0x79, np.uint8), "wz"))
    proto.graph.node[0].input.append("wz")
    graph, report = check(ConvertQoperator(), proto, tolerance=1e-5)
    assert "DequantizeLinear" not in [node.op for node in graph.nodes]
    assert "its weight in floats: it is asymmetric" in report.notes[0].text


def test_pairs_and_float_models_are_left_alone() -> None:
    check_untouched(ConvertQoperator(), model(("Relu", "x", "y")))
