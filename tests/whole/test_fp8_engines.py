"""FP8 from the recipe to the engine: every layer confirmed, nothing that could overflow, numbers as E4M3 has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcompiler.compiler.build import build
from qcompiler.compiler.compile import compile
from qcompiler.engines.onnxruntime import OnnxRuntime
from qcompiler.errors import EngineError
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import SafetyTable
from qcompiler.runtime.session import Session
from qcompiler.target import DType
from tests.kit.rewrite import model

ASKED = Recipe(
    precision="fp8", target="tensorrt-rtx:sm89,sm120", safety=SafetyTable(target_sqnr_db=5), calibrator="mse"
)
RNG = np.random.default_rng(12)


def weight(*shape: int) -> Any:
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def chain() -> onnx.ModelProto:
    """Conv, depthwise Conv, siblings with weights of different size, Gemm."""
    return model(
        ("Conv", "x w1 b1", "a", {"pads": [1, 1, 1, 1]}),
        ("Relu", "a", "b"),
        ("Conv", "b w2", "c", {"pads": [1, 1, 1, 1], "group": 32}),
        ("Reshape", "c rows", "d"),
        ("MatMul", "d w3", "e"),
        ("MatMul", "d w4", "f"),
        ("Sigmoid", "f", "g"),
        ("Mul", "e g", "h"),
        ("Reshape", "h flat", "i"),
        ("Gemm", "i w5 b5", "y", {"transB": 1}),
        inputs={"x": (2, 32, 16, 16)},
        weights={
            "w1": weight(32, 32, 3, 3), "b1": weight(32), "w2": weight(32, 1, 3, 3),
            "rows": np.array([2, 32, 256]), "w3": weight(256, 64), "w4": 5 * weight(256, 64),
            "flat": np.array([64, 64]), "w5": weight(48, 64), "b5": weight(48),
        },
    )  # fmt: skip


FEEDS = [{"x": RNG.standard_normal((2, 32, 16, 16)).astype(np.float32)} for _ in range(4)]


@pytest.mark.parametrize("high", ["fp16", "bf16", "fp32"])
def test_every_layer_of_a_chain_computes_in_fp8_on_ada_and_blackwell(high: str, tmp_path: Path) -> None:
    onnx.save(chain(), tmp_path / "m.onnx")
    recipe = ASKED.replace(high_precision=high)
    result = compile(tmp_path / "m.onnx", data=FEEDS, recipe=recipe, output=tmp_path / "m.engine")
    layers = {name: result.plan.decisions[name].precision for name in "ACEFY"}
    assert set(layers.values()) == {DType.FP8}
    assert set(result.plan.axes.values()) == {None}
    audited = result.manifest["audit"]
    assert audited["ok"]
    assert audited["confirmed"] == audited["promised"] == 5
    assert audited["sms"] == ["sm89", "sm120"]
    assert result.verification is not None
    assert result.verification.worst_sqnr_db is not None
    assert 15 < result.verification.worst_sqnr_db < 40
    onnx.checker.check_model(result.qdq_path, full_check=True)


def test_a_portable_engine_with_fp8_begins_with_sm89(tmp_path: Path) -> None:
    onnx.save(chain(), tmp_path / "m.onnx")
    recipe = ASKED.replace(target="tensorrt-rtx")
    result = compile(tmp_path / "m.onnx", data=FEEDS, recipe=recipe, output=tmp_path / "m.engine")
    assert result.manifest["audit"]["ok"]
    assert result.manifest["audit"]["sms"] == ["sm89"]


def test_onnx_runtime_takes_fp8_and_is_told_to_leave_it_as_it_is(tmp_path: Path) -> None:
    onnx.save(chain(), tmp_path / "m.onnx")
    recipe = ASKED.replace(target="onnxruntime")
    result = compile(tmp_path / "m.onnx", data=FEEDS, recipe=recipe, output=tmp_path / "m.engine")
    assert {result.plan.decisions[name].precision for name in "ACEFY"} == {DType.FP8}
    assert result.plan.axes["A"] == 0
    assert any("optimisations break FP8" in text for text in result.manifest["warnings"])
    found = OnnxRuntime().open(tmp_path / "m.engine").infer(FEEDS[0])["y"]
    expected = Session(result.model).run(FEEDS[0])["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_model_that_comes_in_e5m2_is_refused_for_engines(tmp_path: Path) -> None:
    proto = model(
        ("QuantizeLinear", "x s z", "q"),
        ("DequantizeLinear", "q s z", "d"),
        ("MatMul", "d w", "y"),
        weights={"s": np.array(0.01, np.float32), "w": weight(4, 4)},
        opset=21,
    )
    proto.graph.initializer.append(helper.make_tensor("z", TensorProto.FLOAT8E5M2, [], b"\0", raw=True))
    onnx.save(proto, tmp_path / "m.onnx")
    assert numpy_helper.to_array(proto.graph.initializer[-1]).dtype.name == "float8_e5m2"
    with pytest.raises(EngineError, match=r"'Q'.*stores float8_e5m2.*E4M3 only") as caught:
        build(tmp_path / "m.onnx", output=tmp_path / "m.engine", recipe=Recipe(target="tensorrt-rtx:sm89"))
    assert caught.value.exit_code == 6
    assert not (tmp_path / "m.engine").exists()
