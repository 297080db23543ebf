"""Models in FP16, BF16 and double: quantized like their FP32 twins, with their own types at the ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from benchmarks.twins import twin
from qcompiler.compiler.compile import CompileResult, quantize
from qcompiler.errors import AccuracyError, DataError, EngineError, ModelError
from qcompiler.ir import model as models
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import SafetyTable
from qcompiler.runtime.session import Session
from qcompiler.tools.verify import verify
from tests.kit.cases import QUANTIZED, Case, prepared
from tests.kit.rewrite import model

F16, BF16, F64 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float64)
ELEMENT = {F16: onnx.TensorProto.FLOAT16, BF16: onnx.TensorProto.BFLOAT16, F64: onnx.TensorProto.DOUBLE}


def of_type(folder: Path, name: str, dtype: np.dtype[Any]) -> Case:
    """A case whose model and data are of another type."""
    case = prepared(folder, name)
    source = models.load(case.source)
    models.save(twin(source, dtype), folder / "twin.onnx")
    (folder / "twin.onnx").replace(case.source)
    np.savez(case.data, x=case.rows.astype(dtype))  # numpy has no bfloat16: it is read back as raw bytes
    return case


def quantized(case: Case, **recipe: Any) -> CompileResult:
    return quantize(case.source, data=str(case.data), recipe=Recipe(**recipe), output=case.out / "m.qdq.onnx")


def ends(path: Path) -> dict[str, int]:
    proto = onnx.load(path)
    return {one.name: one.type.tensor_type.elem_type for one in (*proto.graph.input, *proto.graph.output)}


@pytest.mark.parametrize(
    ("name", "dtype", "target"),
    [
        ("conv", F16, "tensorrt-rtx:sm89"),
        ("conv", BF16, "tensorrt"),
        ("conv", BF16, "onnxruntime"),
        ("transformer", BF16, "tensorrt-rtx:sm89"),
        ("transformer", F16, "onnxruntime"),
    ],
)
def test_a_twin_has_the_layers_of_its_source_in_int8_and_its_own_ends(
    tmp_path: Path, name: str, dtype: np.dtype[Any], target: str
) -> None:
    goal = SafetyTable(target_sqnr_db=15)  # not so near to what is reached that other bytes decide
    source = quantized(prepared(tmp_path, name), target=target, safety=goal)
    result = quantized(of_type(tmp_path, name, dtype), target=target, safety=goal)
    assert {one.node for one in result.plan.quantized()} == {one.node for one in source.plan.quantized()}
    assert {one.node for one in result.plan.quantized()} >= QUANTIZED[name]
    assert result.verification is not None
    assert source.verification is not None
    # other bytes are dealt into other parts, so that the samples that judge differ
    assert (result.verification.worst_sqnr_db or 0) > (source.verification.worst_sqnr_db or 0) - 6
    kept = target != "onnxruntime" or dtype == F16
    assert ends(result.qdq_path) == dict.fromkeys("xy", ELEMENT[dtype] if kept else onnx.TensorProto.FLOAT)
    warned = [text for text in result.manifest["warnings"] if "bfloat16 in the source" in text]
    assert len(warned) == int(not kept)
    assert result.manifest["types"]["ends"] == dict.fromkeys("xy", dtype.name)
    if target == "onnxruntime":
        Session(result.qdq_path)


@pytest.mark.parametrize("target", ["tensorrt-rtx:sm89", "onnxruntime"])
def test_double_is_rounded_and_comes_back_where_the_engine_has_it(tmp_path: Path, target: str) -> None:
    case = of_type(tmp_path, "transformer", F64)
    result = quantized(case, target=target)
    assert {one.node for one in result.plan.quantized()} >= QUANTIZED["transformer"]
    has = target == "onnxruntime"
    assert ends(result.qdq_path) == dict.fromkeys("xy", ELEMENT[F64] if has else onnx.TensorProto.FLOAT)
    assert any("float64 in the source" in text for text in result.manifest["warnings"]) is not has
    again = verify(case.source, result.qdq_path, data=str(case.data), recipe=Recipe(target=target))
    assert (again.worst_sqnr_db or 0) > 25


@pytest.mark.parametrize("precision", ["int8-weight", "int4-weight", "fp8", "fp16", "int8-dynamic"])
def test_other_precisions_find_the_same_layers_as_in_float32(tmp_path: Path, precision: str) -> None:
    source = quantized(prepared(tmp_path, "transformer"), precision=precision)
    result = quantized(of_type(tmp_path, "transformer", BF16), precision=precision)
    assert [one.node for one in result.plan.quantized()] == [one.node for one in source.plan.quantized()]
    assert result.plan.quantized() or precision == "fp16"


def test_half_precision_ends_may_be_the_targets_instead(tmp_path: Path) -> None:
    case = of_type(tmp_path, "conv", BF16)
    assert set(ends(quantized(case, io_types="high-precision").qdq_path).values()) == {onnx.TensorProto.FLOAT16}
    wide = quantized(case, io_types="high-precision", high_precision="fp32")
    assert set(ends(wide.qdq_path).values()) == {onnx.TensorProto.FLOAT}


def test_float32_data_is_rounded_to_the_type_of_the_input(tmp_path: Path) -> None:
    case = of_type(tmp_path, "conv", F16)
    first = quantized(case)
    np.savez(case.data, x=case.rows)
    second = quantized(case)
    assert first.manifest["data"]["fingerprint"] == second.manifest["data"]["fingerprint"]
    np.savez(case.data, x=case.rows.astype(np.float64))
    with pytest.raises(DataError, match="input 'x' is float64, the model takes float16"):
        quantized(case)


def test_a_metric_feeds_the_types_of_the_source(tmp_path: Path) -> None:
    case = of_type(tmp_path, "conv", F16)
    metric = tmp_path / "metric.py"
    metric.write_text(
        "import numpy as np\n"
        "def score(run):\n"
        f"    return float(np.abs(run({{'x': np.load({str(case.data)!r})['x'][:4]}})['y']).mean())\n"
    )
    result = quantized(case, metric=f"{metric}:score")
    assert result.manifest["verification"]["score"]["float_score"] > 0


def test_a_model_of_halves_that_has_nothing_to_quantize_ends_as_in_float32(tmp_path: Path) -> None:
    onnx.save(model(("Relu", "x", "y"), inputs={"x": (F16, (2, 4))}), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.ones((24, 4), F16))
    with pytest.raises(AccuracyError, match="nothing"):
        quantize(tmp_path / "m.onnx", data=str(tmp_path / "d.npz"), output=tmp_path / "o.qdq.onnx")


def test_onnx_runtime_is_not_given_what_it_cannot_run(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no BF16 kernels"):
        quantized(of_type(tmp_path, "conv", BF16), target="onnxruntime", precision="bf16")


def test_times_in_double_are_refused_where_float32_loses_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    proto = model(("Sub", "t t0", "d"), ("MatMul", "d w", "y"), inputs={"t": (F64, ("n", 32))},
                  weights={"t0": np.float64(1.7e9), "w": rng.normal(size=(32, 16))})  # fmt: skip
    onnx.save(proto, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", t=1.7e9 + rng.normal(size=(24, 32)))
    with pytest.raises(ModelError, match="agrees with double"):
        quantize(tmp_path / "m.onnx", data=str(tmp_path / "d.npz"), output=tmp_path / "o.qdq.onnx")


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_a_mask_that_the_converter_rounded_to_infinity_is_compiled_and_told(
    tmp_path: Path, dtype: np.dtype[Any]
) -> None:
    """softmax(x w + (1 - mask) * -3.4e38) v, where -3.4e38 is -inf in 16 bits."""
    rng = np.random.default_rng(0)
    with np.errstate(over="ignore"):
        far = np.full((), np.finfo(np.float32).min).astype(dtype)
    held = {"w": rng.standard_normal((32, 32)) / 6, "v": rng.standard_normal((32, 32)) / 6, "one": np.ones(())}
    proto = model(
        ("MatMul", "x w", "p"), ("Sub", "one mask", "i"), ("Mul", "i far", "m"), ("Add", "p m", "s"),
        ("Softmax", "s", "a"), ("MatMul", "a v", "y"),
        inputs={"x": (dtype, ("n", 32, 32)), "mask": (dtype, ("n", 1, 32))},
        weights={**{name: one.astype(dtype) for name, one in held.items()}, "far": far}, opset=22,
    )  # fmt: skip
    onnx.save(proto, tmp_path / "m.onnx")
    x, mask = rng.standard_normal((24, 32, 32)), rng.random((24, 1, 32)) < 0.7
    np.savez(tmp_path / "d.npz", x=x.astype(dtype), mask=mask.astype(dtype))
    made = quantize(tmp_path / "m.onnx", data=str(tmp_path / "d.npz"), output=tmp_path / "q.onnx")
    assert any("largest or smallest number of their type: 'far'" in text for text in made.manifest["warnings"])
    assert made.manifest["types"]["mended"] == ["far"]
    assert made.manifest["macs"]["quantized_share"] == 1
    assert made.manifest["verification"]["worst_sqnr_db"] > 25
