"""Inputs and outputs get the types again that they have in the source."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto

from qcompiler.ir import graph as graphs
from qcompiler.passes.base import Report
from qcompiler.passes.types.restore_ends import RestoreEnds
from qcompiler.runtime.session import Session
from tests.kit.rewrite import graph_proto, model, to_graph, whole

F16, BF16, F64 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float64)
HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def restored(
    proto: onnx.ModelProto, ends: dict[str, np.dtype[Any]], engine: str = "onnxruntime"
) -> tuple[gs.Graph, Report]:
    graph = to_graph(proto)
    report = RestoreEnds(ends, engine)(graph)
    onnx.checker.check_model(whole(graph), full_check=True)
    assert not RestoreEnds(ends, engine)(graph).changed
    return graph, report


def kinds(graph: gs.Graph) -> dict[str, str]:
    return {one.name: str(graphs.dtype_of(one)) for one in (*graph.inputs, *graph.outputs)}


@pytest.mark.parametrize("dtype", [F16, F64], ids=str)
def test_casts_stand_at_the_ends(dtype: np.dtype[Any]) -> None:
    graph, _ = restored(model(("Relu", "x", "a"), ("Neg", "a", "y")), {"x": dtype, "y": dtype})
    assert [node.op for node in graph.nodes] == ["Cast", "Relu", "Neg", "Cast"]
    assert kinds(graph) == {"x": str(dtype), "y": str(dtype)}
    x = np.array([[1, -2, 3, 4]] * 2, dtype)
    np.testing.assert_array_equal(Session(graph).run({"x": x})["y"], -np.maximum(x, 0))


def test_what_computes_in_that_type_already_meets_the_ends_without_a_cast() -> None:
    proto = model(("Cast", "x", "h", {"to": HALF}), ("Relu", "h", "r"), ("Cast", "r", "y", {"to": FLOAT}))
    graph, _ = restored(proto, {"x": F16, "y": F16})
    assert [node.op for node in graph.nodes] == ["Relu"]
    assert kinds(graph) == {"x": "float16", "y": "float16"}


def test_a_cast_to_integers_reads_the_input_itself() -> None:
    graph, _ = restored(model(("Cast", "x", "y", {"to": TensorProto.INT64})), {"x": F16})
    assert [(node.op, node.inputs[0].name) for node in graph.nodes] == [("Cast", "x")]


def test_readers_of_an_output_read_it_before_it_is_rounded() -> None:
    graph, _ = restored(model(("Relu", "x", "y"), ("Neg", "y", "z"), outputs=["y", "z"]), {"y": F16})
    assert kinds(graph) == {"x": "float32", "y": "float16", "z": "float32"}
    x = np.full((2, 4), 1 + 2.0**-15, np.float32)
    np.testing.assert_array_equal(Session(graph).run({"x": x})["z"], -x)


def test_an_input_that_is_an_output_and_one_that_is_a_constant() -> None:
    proto = model(("Relu", "x", "y"), outputs=["y"])
    proto.graph.output.append(onnx.helper.make_tensor_value_info("x", FLOAT, (2, 4)))
    assert kinds(restored(proto, {"x": F16, "y": F16})[0]) == {"x": "float16", "y": "float16"}
    held = model(("Add", "x k", "y"), weights={"k": np.array([1, 2, 3, 4], np.float32)})
    held.graph.output.append(onnx.helper.make_tensor_value_info("k", FLOAT, (4,)))
    graph, _ = restored(held, {"k": F16})
    assert kinds(graph)["k"] == "float16"
    assert graphs.dtype_of(graph.nodes[0].inputs[1]) == np.float32


def test_branches_read_what_was_cast() -> None:
    then = graph_proto([("Neg", "x", "t")], {}, ["t"])
    other = graph_proto([("Abs", "x", "o")], {}, ["o"])
    proto = model(("If", "c", "y", {"then_branch": then, "else_branch": other}),
                  inputs={"c": (np.bool_, ()), "x": (2, 4)})  # fmt: skip
    graph, _ = restored(proto, {"x": F16, "y": F16})
    x = np.array([[1, -2, 3, 4]] * 2, F16)
    np.testing.assert_array_equal(Session(graph).run({"c": np.array(True), "x": x})["y"], -x)


def test_ends_that_are_fp32_no_more_are_left_alone() -> None:
    proto = model(("Relu", "x", "y"), inputs={"x": (np.float16, (2, 4))})
    graph = to_graph(proto)
    assert not RestoreEnds({"x": BF16, "y": BF16}, "tensorrt")(graph).notes
    assert kinds(graph) == {"x": "float16", "y": "float16"}


@pytest.mark.parametrize(
    ("engine", "dtype", "words"),
    [
        ("tensorrt-rtx", F64, "no inputs and outputs in double"),
        ("tensorrt", F64, "double"),
        ("onnxruntime", BF16, "numpy"),
    ],
)
def test_what_an_engine_cannot_have_stays_float32_and_is_told(engine: str, dtype: np.dtype[Any], words: str) -> None:
    graph, report = restored(model(("Relu", "x", "y")), {"x": dtype, "y": dtype}, engine)
    assert kinds(graph) == {"x": "float32", "y": "float32"}
    ((text, names),) = report.widened.items()
    assert names == ["x", "y"]
    assert words in text


def test_tensorrt_has_bf16_ends() -> None:
    graph, report = restored(model(("Relu", "x", "y")), {"x": BF16, "y": BF16}, "tensorrt-rtx")
    assert kinds(graph) == {"x": "bfloat16", "y": "bfloat16"}
    assert not report.widened


def test_an_input_of_a_recurrent_layer_has_no_cast_on_tensorrt_rtx() -> None:
    w = np.random.default_rng(1).normal(size=(1, 24, 8)).astype(np.float32)
    proto = model(
        ("GRU", "x w r", "g", {"hidden_size": 8}), ("Squeeze", "g one", "y"), inputs={"x": (5, 1, 8)},
        weights={"w": w, "r": w[:, ::-1].copy(), "one": np.array([1])},
    )  # fmt: skip
    graph, report = restored(proto, {"x": F16, "y": F16}, "tensorrt-rtx")
    assert kinds(graph) == {"x": "float32", "y": "float16"}
    assert any("'G' reads it, a recurrent layer" in text for text in report.widened)
    assert kinds(restored(proto, {"x": F16, "y": F16}, "tensorrt")[0]) == {"x": "float16", "y": "float16"}
