"""Which doubles become FP32: parts that multiply."""

from __future__ import annotations

import numpy as np
import onnx

from qcompiler.ir import element_types
from qcompiler.ir import graph as graphs
from qcompiler.passes.types import _doubles as doubles
from tests.kit.rewrite import graph_proto, model, to_graph

F64 = np.float64
DOUBLE = onnx.TensorProto.DOUBLE
FLOAT = onnx.TensorProto.FLOAT


def found(proto: onnx.ModelProto) -> set[str]:
    graph = to_graph(proto)
    chosen = doubles.narrowed(graph, element_types.infer_all(graph))
    return {t.name for inner in graphs.graphs(graph) for t in graphs.tensors(inner) if id(t) in chosen}


def test_a_part_that_multiplies_becomes_fp32_as_a_whole() -> None:
    proto = model(("Sub", "x c", "d"), ("MatMul", "d w", "m"), ("Relu", "m", "y"),
                  inputs={"x": (F64, (2, 4))}, weights={"c": F64(1), "w": np.eye(4)})  # fmt: skip
    assert found(proto) == {"x", "c", "d", "w", "m", "y"}


def test_times_in_front_of_a_cast_stay_double() -> None:
    proto = model(
        ("Sub", "t t0", "d"), ("Cast", "d", "f", {"to": FLOAT}), ("MatMul", "f w", "y"),
        inputs={"t": (F64, (2, 4))}, weights={"t0": F64(1.7e9), "w": np.eye(4, dtype=np.float32)},
    )  # fmt: skip
    assert found(proto) == set()


def test_sizes_computed_in_double_stay_double_beside_a_double_network() -> None:
    proto = model(
        ("Shape", "x", "s"), ("Cast", "s", "sd", {"to": DOUBLE}), ("Mul", "sd two", "s2"), ("Floor", "s2", "s3"),
        ("Cast", "s3", "n", {"to": onnx.TensorProto.INT64}), ("MatMul", "x w", "m"), ("Expand", "m n", "y"),
        inputs={"x": (F64, (1, 4))}, weights={"two": np.array([2, 1], F64), "w": np.eye(4)},
    )  # fmt: skip
    assert found(proto) == {"x", "w", "m", "y"}


def test_what_an_operator_of_another_domain_makes_of_doubles_counts_as_double() -> None:
    proto = model(("Gelu", "x", "g", {}, "com.microsoft"), ("MatMul", "g w", "y"),
                  inputs={"x": (F64, (2, 4))}, weights={"w": np.eye(4)}, domains=["com.microsoft"])  # fmt: skip
    proto.graph.output[0].type.tensor_type.elem_type = DOUBLE
    assert {"x", "g", "y"} <= found(proto)


def test_a_branch_belongs_to_what_it_gives() -> None:
    then = graph_proto([("MatMul", "x w", "t")], {}, ["t"])
    other = graph_proto([("Neg", "x", "o")], {}, ["o"])
    proto = model(
        ("If", "c", "i", {"then_branch": then, "else_branch": other}), ("Relu", "i", "y"),
        inputs={"c": (np.bool_, ()), "x": (F64, (2, 4))}, weights={"w": np.eye(4)},
    )  # fmt: skip
    assert found(proto) == {"x", "w", "t", "o", "i", "y"}
