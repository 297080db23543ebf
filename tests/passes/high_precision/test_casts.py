"""Where the Casts stand: one for each tensor and type, none behind another, none behind a constant."""

from __future__ import annotations

import numpy as np
import onnx

from qcompiler.ir import graph as graphs
from qcompiler.passes.high_precision.high_precision import HighPrecision
from qcompiler.statistics import ranges
from qcompiler.target import DType
from tests.kit.rewrite import model, random_feeds, to_graph
from tests.kit.typed import F32, assert_no_cast_behind_a_cast, by_name, ops, quantized, typed, weight

F16 = np.dtype(np.float16)


def test_a_chain_runs_in_half_between_two_casts_and_keeps_its_interface() -> None:
    proto = model(("MatMul", "x w", "m"), ("Relu", "m", "y"), weights={"w": weight(4, 8)})
    graph, decisions = typed(proto)
    assert ops(graph) == ["Cast", "MatMul", "Relu", "Cast"]
    assert graphs.dtype_of(graph.inputs[0]) == F32
    assert (graph.outputs[0].name, graphs.dtype_of(graph.outputs[0])) == ("y", F32)
    assert {one.precision for one in decisions.values()} == {DType.FP16}
    assert not [t.name for t in graphs.tensors(graph) if graphs.is_constant(t) and graphs.dtype_of(t) == F32]


def test_one_cast_serves_all_consumers_of_a_tensor() -> None:
    proto = model(
        ("MatMul", "x a", "p"),
        ("MatMul", "x b", "q"),
        ("Add", "p q", "y"),
        weights={"a": weight(4, 4), "b": weight(4, 4)},
    )
    graph, _ = typed(proto)
    assert ops(graph).count("Cast") == 2
    assert_no_cast_behind_a_cast(graph)


def test_a_constant_read_in_both_types_has_two_copies_and_no_cast() -> None:
    proto = model(("Mul", "x c", "m"), ("Exp", "m", "e"), ("Pow", "e c", "y"), weights={"c": weight(1, 4) + 1})
    graph, _ = typed(proto, {"x": np.ones((2, 4), np.float32)})
    copies = [graphs.dtype_of(t) for t in graphs.tensors(graph) if graphs.is_constant(t)]
    assert sorted(map(str, copies)) == ["float16", "float32"]
    assert_no_cast_behind_a_cast(graph)


def test_a_cast_of_integers_goes_straight_to_half() -> None:
    proto = model(
        ("Cast", "i", "f", {"to": 1}),
        ("MatMul", "f w", "y"),
        inputs={"i": (np.int64, (2, 80))},
        weights={"w": weight(80, 80)},
    )
    graph, _ = typed(proto)
    assert ops(graph) == ["Cast", "MatMul", "Cast"]
    assert by_name(graph, "F").attrs["to"] == onnx.TensorProto.FLOAT16


def test_a_cast_of_integers_read_in_both_types_is_doubled_not_chained() -> None:
    proto = model(
        ("Cast", "i", "f", {"to": 1}),
        ("MatMul", "f w", "m"),
        ("Exp", "f", "e"),
        ("Add", "m e", "y"),
        inputs={"i": (np.int64, (2, 80))},
        weights={"w": weight(80, 80)},
    )
    graph, _ = typed(proto)
    assert sorted(node.attrs["to"] for node in graph.nodes if node.op == "Cast" and node.inputs[0].name == "i") == [
        1,
        10,
    ]
    assert_no_cast_behind_a_cast(graph)


def test_a_cast_to_integers_reads_half_directly() -> None:
    proto = model(
        ("MatMul", "x w", "m"), ("Relu", "m", "r"), ("Cast", "r", "y", {"to": 7}), weights={"w": np.eye(4, dtype=F32)}
    )
    graph, _ = typed(proto, {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}, tolerance=0)
    assert ops(graph) == ["Cast", "MatMul", "Relu", "Cast"]


def test_casts_to_half_and_back_that_a_model_brings_along_disappear() -> None:
    proto = model(
        ("MatMul", "x w", "m"),
        ("Cast", "m", "h", {"to": 10}),
        ("Relu", "h", "r"),
        ("Cast", "r", "f", {"to": 1}),
        ("MatMul", "f w", "y"),
        weights={"w": weight(4, 4)},
    )
    graph, _ = typed(proto)
    assert ops(graph) == ["Cast", "MatMul", "Relu", "MatMul", "Cast"]


def test_a_half_tensor_that_is_an_output_keeps_its_fp32_name() -> None:
    proto = model(("MatMul", "x w", "m"), ("Relu", "m", "y"), outputs=("m", "y"), weights={"w": weight(4, 4)})
    graph, _ = typed(proto)
    assert [(t.name, graphs.dtype_of(t)) for t in graph.outputs] == [("m", F32), ("y", F32)]
    assert by_name(graph, "Y").inputs[0].name != "m"


def test_resize_keeps_its_scales_in_fp32() -> None:
    proto = model(
        ("Relu", "x", "r"),
        ("Resize", "r _ s", "y", {"mode": "nearest"}),
        inputs={"x": (1, 2, 4, 4)},
        weights={"s": np.array([1, 1, 2, 2], np.float32)},
    )
    graph, decisions = typed(proto)
    assert decisions["Y"].precision is DType.FP16
    assert graphs.dtype_of(by_name(graph, "Y").inputs[2]) == F32


def test_dequantize_writes_half_itself_and_scales_stay_fp32() -> None:
    graph, _ = typed(quantized(23))
    assert ops(graph) == [
        "Cast",
        "Relu",
        "Cast",
        "QuantizeLinear",
        "DequantizeLinear",
        "DequantizeLinear",
        "MatMul",
        "Relu",
        "Cast",
    ]
    for node in graph.nodes:
        if "quantize" in node.op.lower():
            assert graphs.dtype_of(node.inputs[1]) == F32
    assert graphs.is_op(graphs.producer(by_name(graph, "M").inputs[0]), "DequantizeLinear")
    assert graphs.dtype_of(by_name(graph, "M").inputs[0]) == F16


def test_without_output_dtype_a_cast_follows_dequantize() -> None:
    graph, _ = typed(quantized(21), typed_dequantize=False)
    assert ops(graph).count("Cast") == 5
    assert graphs.is_op(graphs.producer(by_name(graph, "M").inputs[1]), "Cast")
    assert all("output_dtype" not in node.attrs for node in graph.nodes)


def test_a_dequantized_tensor_read_in_both_types_has_one_cast() -> None:
    graph, _ = typed(quantized(23, ("ReduceMean", "d", "mean"), outputs=("y", "mean")))
    readers = {node.op for node, _ in graphs.consumers(by_name(graph, "D").outputs[0])}
    assert readers == {"MatMul", "Cast"}


def test_quantize_behind_an_fp32_node_needs_no_cast() -> None:
    proto = model(
        ("Exp", "x", "e"),
        ("Unsqueeze", "e axes", "u"),
        ("QuantizeLinear", "u s z", "q"),
        ("DequantizeLinear", "q s z", "y"),
        weights={"s": F32.type(0.1), "z": np.int8(0), "axes": np.array([0])},
        opset=23,
    )
    proto.ir_version = 11
    graph = to_graph(proto)
    report = HighPrecision(ranges=ranges.measure(graph, [random_feeds(graph)]))(graph)
    assert not report.changed
    assert "Cast" not in ops(graph)
