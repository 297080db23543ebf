"""FP8 in a model file is seen wherever it may be, and such graphs run although ONNX Runtime's optimiser breaks them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcompiler.ir import model as models
from qcompiler.passes.quantize.insert_qdq import InsertQDQ
from qcompiler.plan import Decision, Plan, Quantizer
from qcompiler.runtime import fp8
from qcompiler.runtime.session import Session
from qcompiler.target import DType
from tests.kit.rewrite import graph_proto, model, node, to_graph

W = np.random.default_rng(8).standard_normal((32, 16)).astype(np.float32)
X = np.random.default_rng(9).standard_normal((6, 32)).astype(np.float32)
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
CAST = ("Cast", "x", "c", {"to": TensorProto.FLOAT8E4M3FN})
BACK = ("Cast", "c", "y", {"to": TensorProto.FLOAT})


def clipped() -> Any:
    """Clip in front of a quantized product: both are what the optimiser would fuse."""
    proto = model(("Clip", "x lo hi", "c"), ("MatMul", "c w", "y"), inputs={"x": (6, 32)}, opset=21,
                  weights={"w": W, "lo": np.float32(0), "hi": np.float32(6)})  # fmt: skip
    graph = to_graph(proto)
    quantizers = {"c": Quantizer("c", DType.FP8, 6.0, "test", 6.0)}
    plan = Plan({"Y": Decision("Y", "MatMul", DType.FP8, "linear", "")}, quantizers, axes={"Y": 1})
    InsertQDQ(plan)(graph)
    return graph


def plain() -> onnx.ModelProto:
    return model(("MatMul", "x w", "y"), inputs={"x": (6, 32)}, weights={"w": W}, opset=21)


def branch() -> onnx.ModelProto:
    body = graph_proto([CAST, BACK], {}, ["y"])
    other = graph_proto([("Identity", "x", "y")], {}, ["y"])
    return model(
        ("If", "k", "y", {"then_branch": body, "else_branch": other}),
        inputs={"x": (2, 4), "k": (np.bool_, ())}, opset=21,
    )  # fmt: skip


def function() -> onnx.ModelProto:
    proto = model(("Round8", "x", "y", {}, "own"), opset=21, domains=("own",))
    nodes = [node(*CAST), node(*BACK)]
    proto.functions.append(helper.make_function("own", "Round8", ["x"], ["y"], nodes, [helper.make_opsetid("", 21)]))
    return proto


def constant() -> onnx.ModelProto:
    value = helper.make_tensor("v", TensorProto.FLOAT8E5M2, [1], b"\x3c", raw=True)
    return model(("Constant", "", "c", {"value": value}), BACK, opset=21)


@pytest.mark.parametrize(
    "proto",
    [
        model(CAST, BACK, opset=21), branch(), function(), constant(),
        model(("Cast", "x", "y", {"to": TensorProto.FLOAT}), inputs={"x": (E4M3, (2, 4))}, opset=21),
    ],
    ids=["cast", "branch", "function", "constant", "input"],
)  # fmt: skip
def test_fp8_is_found_wherever_it_is(proto: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(proto, tmp_path / "m.onnx")
    assert fp8.in_proto(proto)
    assert fp8.in_file(tmp_path / "m.onnx")


def test_other_models_and_other_files_have_none(tmp_path: Path) -> None:
    for path in (onnx_file := tmp_path / "m.onnx", text := tmp_path / "m.txt", empty := tmp_path / "empty"):
        path.touch()
    onnx.save(plain(), onnx_file)
    text.write_text("no model at all")
    assert not any(fp8.in_file(path) for path in (onnx_file, text, empty, tmp_path, tmp_path / "missing"))


def test_large_weights_are_not_read(tmp_path: Path) -> None:
    proto = plain()
    big = numpy_helper.from_array(np.zeros((1 << 20,), E4M3), "big")
    proto.graph.initializer.append(big)
    onnx.save(proto, tmp_path / "m.onnx")
    assert fp8.in_file(tmp_path / "m.onnx")


def test_a_session_runs_fp8_from_a_graph_and_from_a_file_as_numpy_computes_it(tmp_path: Path) -> None:
    graph = clipped()
    models.save(models.Model(graph, {}, None, 10), tmp_path / "m.onnx")
    scale = np.float32(6 / 448)
    x = (np.clip(X, 0, 6) / scale).astype(E4M3).astype(np.float32) * scale
    scales = np.abs(W).max(axis=0) / np.float32(448)
    w = (W / scales).astype(E4M3).astype(np.float32) * scales
    for source in (graph, models.Model(graph, {}, None, 10), tmp_path / "m.onnx"):
        for outputs in (None, ["y"]):
            found = Session(source, outputs=outputs, optimize=True).run({"x": X})
            np.testing.assert_allclose(found["y"], x @ w, rtol=1e-5, atol=1e-5)


def test_the_exporter_writes_fp8_that_reads_back_to_the_bit(tmp_path: Path) -> None:
    models.save(models.Model(clipped(), {}, None, 10), tmp_path / "m.onnx")
    onnx.checker.check_model(tmp_path / "m.onnx", full_check=True)
    stored = {one.name: one for one in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert stored["w/fp8"].data_type == stored["c/zero_point"].data_type == TensorProto.FLOAT8E4M3FN
    expected = (W / (np.abs(W).max(axis=0) / np.float32(448))).astype(E4M3)
    assert stored["w/fp8"].raw_data == expected.tobytes()
    again = models.load(tmp_path / "m.onnx")
    (weight,) = [t for one in again.graph.nodes for t in one.inputs if t.name == "w/fp8"]
    assert weight.dtype == E4M3
    np.testing.assert_array_equal(weight.values, expected)
