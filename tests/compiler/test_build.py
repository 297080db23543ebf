"""An engine from an ONNX file that is quantized already, or float."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from qcompiler.compiler.build import build
from qcompiler.compiler.compile import quantize
from qcompiler.errors import UsageError
from qcompiler.recipe.recipe import Recipe
from tests.kit.cases import Case, prepared, state
from tests.kit.rewrite import model


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return prepared(tmp_path, "conv")


def test_a_float_file_builds_and_nothing_is_promised(case: Case) -> None:
    result = build(case.source, output=case.out / "m.engine", data=str(case.data))
    assert result.engine_path is not None
    assert result.engine_path.is_file()
    assert result.manifest["macs"]["quantized_share"] == 0
    assert result.manifest["audit"]["promised"] == 0
    assert case.left() == ["m.engine", "m.manifest.json", "m.report.html"]


def test_an_axis_that_the_data_pins_is_told(case: Case) -> None:
    (text,) = build(case.source, output=case.out / "m.engine", data=str(case.data)).manifest["warnings"]
    assert "axis 'n' (size 1) is free" in text
    recipe = Recipe(shapes={"x": ((1, 3, 16, 16), (2, 3, 16, 16), (4, 3, 16, 16))})
    told = build(case.source, output=case.out / "m.engine", data=str(case.data), recipe=recipe).manifest["warnings"]
    assert told == []


def test_a_quantized_file_keeps_its_plan_and_its_bytes(case: Case) -> None:
    made = quantize(case.source, data=str(case.data), output=case.out / "m.qdq.onnx")
    before = state(made.qdq_path)
    result = build(made.qdq_path, output=case.folder / "other" / "m.engine", data=str(case.data))
    quantized = {decision.node for decision in made.plan.quantized()}
    assert {decision.node for decision in result.plan.quantized()} == quantized
    assert state(made.qdq_path) == before
    assert result.manifest["macs"]["total"] == made.manifest["macs"]["total"] > 0
    assert result.manifest["macs"]["quantized_share"] == made.manifest["macs"]["quantized_share"]
    assert result.manifest["source"]["sha256"] == before[0]


def test_the_engine_may_not_take_the_place_of_the_file(case: Case) -> None:
    with pytest.raises(UsageError, match="never written to"):
        build(case.source, output=case.source)


def test_the_recipe_goes_into_the_manifest(case: Case) -> None:
    recipe = Recipe(target="onnxruntime")
    result = build(case.source, output=case.out / "m.engine", recipe=recipe)
    assert result.manifest["recipe"] == recipe.to_dict()
    assert result.manifest["audit"] is None


def test_the_profile_is_that_of_the_data_with_the_batch_from_one_up(case: Case) -> None:
    feeds = [
        {"x": np.random.default_rng(rows).standard_normal((rows, 3, 16, 16)).astype(np.float32)} for rows in (4, 8)
    ]
    result = build(case.source, output=case.out / "m.engine", data=feeds)
    assert result.manifest["batch"] == {"axes": {"x": 0}, "how": "run"}
    (profile,) = result.manifest["engine"]["profiles"]
    assert profile["shapes"] == {"x": [[1, 3, 16, 16], [4, 3, 16, 16], [8, 3, 16, 16]]}
    told = build(case.source, output=case.out / "t.engine", data=feeds, recipe=Recipe(batch_axis={"x": None}))
    assert told.manifest["engine"]["profiles"][0]["shapes"]["x"][0] == [4, 3, 16, 16]


def test_what_the_file_holds_is_told_whatever_the_recipe_would_do(tmp_path: Path) -> None:
    """Quantizers of domain trt, as other tools write them."""
    values = np.random.default_rng(0).integers(-100, 100, (64, 64)).astype(np.float32)
    proto = model(
        ("TRT_FP8QuantizeLinear", "x s", "q", {}, "trt"), ("TRT_FP8DequantizeLinear", "q s", "d", {}, "trt"),
        ("TRT_FP8DequantizeLinear", "w s", "v", {}, "trt"), ("MatMul", "d v", "y"),
        inputs={"x": (32, 64)}, weights={"s": np.float32(0.01)}, opset=21,
    )  # fmt: skip
    stored = values.astype(ml_dtypes.float8_e4m3fn).tobytes()
    kind = onnx.TensorProto.FLOAT8E4M3FN
    proto.graph.initializer.append(onnx.TensorProto(name="w", data_type=kind, dims=[64, 64], raw_data=stored))
    proto.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [32, 64]))
    onnx.save(proto, tmp_path / "m.onnx")
    made = build(tmp_path / "m.onnx", output=tmp_path / "m.engine", recipe=Recipe(target="tensorrt-rtx:sm89"))
    assert made.manifest["holds"] == ["fp8"]
    assert made.manifest["macs"]["by_precision"] == {"fp8": 32 * 64 * 64}
    assert made.manifest["audit"]["confirmed"] == 1


def test_the_time_beside_the_twin_in_high_precision_is_predicted(case: Case) -> None:
    made = quantize(case.source, data=str(case.data), output=case.out / "m.qdq.onnx")
    recipe = Recipe(target="tensorrt-rtx:sm89")
    found = build(made.qdq_path, output=case.out / "m.engine", data=str(case.data), recipe=recipe).manifest
    times = found["prediction"]["sms"]["sm89"]
    assert min(times["high_us"], times["engine_us"]) > 0
    assert "int8" in found["prediction"]["engine"]["macs"]
    assert "int8" not in found["prediction"]["high"]["macs"]
    assert sum(found["prediction"]["high"]["macs"].values()) == found["macs"]["total"]
    assert "priced" not in "".join(case.left())
    assert not any("--objective" in text for text in found["warnings"])


def test_nothing_is_predicted_where_nothing_is_quantized(case: Case) -> None:
    found = build(case.source, output=case.out / "m.engine", data=str(case.data)).manifest
    assert found["prediction"] is None
