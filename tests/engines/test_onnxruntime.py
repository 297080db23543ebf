from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from qcompiler.engines import onnxruntime as ort_engine
from qcompiler.engines.onnxruntime import OnnxRuntime, available
from qcompiler.errors import DataError, EngineError, UsageError
from qcompiler.numerics import blocks
from qcompiler.numerics.sqnr import sqnr_of
from qcompiler.passes.quantize.weight_only import WeightOnly
from tests.kit import graphs
from tests.kit.rewrite import model, to_graph, whole

X = np.random.default_rng(3).standard_normal((64, 128)).astype(np.float16)


def _reference(model: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    found = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, feeds)
    return [np.asarray(one, np.float32) for one in found]


@pytest.mark.parametrize("graph", [graphs.matmul(), graphs.fp8()], ids=["int8", "fp8"])
@pytest.mark.parametrize("level", ["off", "extended", "all"])
def test_the_stored_graph_computes_the_same(graph: graphs.Builder, level: str, tmp_path: Path) -> None:
    model = graph.save(tmp_path / "m.onnx")
    engine = OnnxRuntime(level=level).build(model, tmp_path / "m.engine")
    with OnnxRuntime().open(engine) as runner:
        (found,) = runner.infer({"x": X}).values()
    np.testing.assert_allclose(np.asarray(found, np.float32), _reference(model, {"x": X})[0], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("size", [None, 32], ids=["int8", "int4 in blocks"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("level", ["extended", "all"])
def test_activations_beside_weights_in_few_bits_are_not_rounded(
    level: str, dtype: type, size: int | None, tmp_path: Path
) -> None:
    weight = np.random.default_rng(4).standard_normal((128, 96)).astype(np.float32)
    stored = blocks.round_to_nearest(weight, size, "int4" if size else "int8")
    graph = to_graph(model(("MatMul", "x w", "y"), inputs={"x": (64, 128)}, weights={"w": weight}, opset=21))
    WeightOnly({"Y": stored})(graph)
    proto = whole(graph)
    if dtype is np.float16:
        (scale,) = (one for one in proto.graph.initializer if one.name.endswith("/scale"))
        scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale).astype(dtype), scale.name))
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
        del proto.graph.value_info[:]
    onnx.save(proto, tmp_path / "m.onnx")
    engine = OnnxRuntime(level=level).build(tmp_path / "m.onnx", tmp_path / "m.engine")
    with OnnxRuntime().open(engine) as runner:
        (found,) = runner.infer({"x": X.astype(dtype)}).values()
    wanted = X.astype(np.float64) @ blocks.dequantize(stored)
    assert sqnr_of(wanted, found - wanted) > (65 if dtype is np.float16 else 100)  # 45 with rounded activations


def test_the_file_is_onnx_whatever_its_suffix_and_alone(tmp_path: Path) -> None:
    engine = OnnxRuntime().build(graphs.matmul().save(tmp_path / "m.onnx"), tmp_path / "m.ort")
    assert onnx.load(engine.path).graph.output[0].name == "relu_out"
    assert engine.bytes == engine.path.stat().st_size
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.ort"]


def test_large_weights_go_into_a_file_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_engine, "EXTERNAL_ABOVE", 1000)
    model = graphs.matmul().save(tmp_path / "m.onnx", external=True)
    engine = OnnxRuntime().build(model, tmp_path / "m.engine")
    assert sorted(os.listdir(tmp_path)) == ["m.engine", "m.engine.data", "m.onnx", "m.onnx.data"]
    with OnnxRuntime().open(engine.path) as runner:
        (found,) = runner.infer({"x": X}).values()
    np.testing.assert_allclose(np.asarray(found, np.float32), _reference(model, {"x": X})[0], rtol=2e-2, atol=2e-2)


def _without_kernel(path: Path) -> Path:
    values = [helper.make_tensor_value_info(name, TensorProto.UINT16, [1]) for name in ("x", "y")]
    node = helper.make_node("BitShift", ["x", "x"], ["y"], name="shift", direction="LEFT")
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def test_a_node_without_a_kernel_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    model = _without_kernel(tmp_path / "m.onnx")
    assert [(one.node, one.op) for one in OnnxRuntime().check(model)] == [("shift", "BitShift")]
    with pytest.raises(EngineError, match=r"at shift \(BitShift\)"):
        OnnxRuntime().build(model, tmp_path / "m.engine")
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_a_good_model_has_no_diagnostics(tmp_path: Path) -> None:
    assert OnnxRuntime().check(graphs.fp8().save(tmp_path / "m.onnx")) == []


@pytest.mark.parametrize(
    ("feeds", "words"),
    [({}, "'x' is missing"), ({"x": X, "z": X}, "no input 'z'"), ({"x": X[:3]}, "does not fit")],
)
def test_a_wrong_feed_is_a_data_error(feeds: dict[str, np.ndarray], words: str, tmp_path: Path) -> None:
    engine = OnnxRuntime().build(graphs.matmul().save(tmp_path / "m.onnx"), tmp_path / "m.engine")
    with OnnxRuntime().open(engine) as runner, pytest.raises(DataError, match=words):
        runner.infer(feeds)


def test_a_closed_runner_says_so(tmp_path: Path) -> None:
    runner = OnnxRuntime().open(OnnxRuntime().build(graphs.matmul().save(tmp_path / "m.onnx"), tmp_path / "m.engine"))
    runner.close()
    runner.close()
    with pytest.raises(EngineError, match="closed"):
        runner.infer({"x": X})


def test_only_providers_that_load_are_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cpu" in available()
    monkeypatch.setattr(ort_engine, "available", lambda: ("cpu",))
    with pytest.raises(EngineError, match="cannot run on cuda here, only on cpu"):
        OnnxRuntime(provider="cuda").check(__file__)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(UsageError, match="provider 'abacus'"):
        OnnxRuntime(provider="abacus")
    with pytest.raises(UsageError, match="level 'most'"):
        OnnxRuntime(level="most")


def test_opening_nothing_is_an_engine_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="there is no engine"):
        OnnxRuntime().open(tmp_path / "m.engine")
    (tmp_path / "m.engine").write_bytes(b"\x08\x09garbage" * 100)
    with pytest.raises(EngineError, match=r"m\.engine"):
        OnnxRuntime().open(tmp_path / "m.engine")
