"""The whole way: a float model and data in, four artefacts out, all of them true."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qcompiler.compiler.build import build
from qcompiler.compiler.compile import CompileResult, compile, quantize
from qcompiler.ir import model as models
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import SafetyTable
from qcompiler.report import manifest
from qcompiler.runtime.session import Session
from qcompiler.target import DType
from tests.kit.cases import MODELS, QUANTIZED, SAMPLES, Case, prepared, state


@pytest.fixture
def conv(tmp_path: Path) -> Case:
    return prepared(tmp_path, "conv")


@pytest.fixture
def block(tmp_path: Path) -> Case:
    return prepared(tmp_path, "transformer")


def quantized(case: Case, data: Any = None, name: str = "m", **recipe: Any) -> CompileResult:
    return quantize(
        case.source,
        data=str(case.data) if data is None else data,
        recipe=Recipe(**recipe),
        output=case.out / f"{name}.qdq.onnx",
    )


@dataclass
class Compiled:
    case: Case
    result: CompileResult
    before: tuple[str, int]
    onnx: onnx.ModelProto
    record: dict[str, Any]


def sqnr_of(result: CompileResult) -> float:
    assert result.verification is not None
    assert result.verification.worst_sqnr_db is not None
    return result.verification.worst_sqnr_db


@pytest.fixture(scope="module", params=sorted(MODELS))
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Each model compiled once to a real TensorRT-RTX engine, with the default recipe."""
    case = prepared(tmp_path_factory.mktemp(request.param), request.param)
    before = state(case.source)
    result = compile(case.source, data=str(case.data), output=case.out / "m.engine")
    record = json.loads((case.out / "m.manifest.json").read_text(encoding="utf8"))
    return Compiled(case, result, before, onnx.load(case.out / "m.qdq.onnx"), record)


def test_four_artefacts_and_nothing_else_are_written(compiled: Compiled) -> None:
    assert compiled.case.left() == ["m.engine", "m.manifest.json", "m.qdq.onnx", "m.report.html"]
    result = compiled.result
    assert result.engine_path == compiled.case.out / "m.engine"
    assert result.qdq_path == compiled.case.out / "m.qdq.onnx"
    assert result.manifest_path == compiled.case.out / "m.manifest.json"
    assert result.report_path == compiled.case.out / "m.report.html"
    assert all(path.stat().st_size > 1000 for path in compiled.case.out.iterdir())


def test_the_float_model_is_not_touched(compiled: Compiled) -> None:
    assert state(compiled.case.source) == compiled.before
    assert sorted(one.name for one in compiled.case.folder.iterdir()) == ["data.npz", "float.onnx", "out"]


def test_the_manifest_tells_everything(compiled: Compiled) -> None:
    record = compiled.record
    assert record == manifest.read(compiled.result.manifest_path)
    assert record["source"]["sha256"] == compiled.before[0]
    assert record["export"] is None
    qdq = (compiled.case.out / "m.qdq.onnx").read_bytes()
    assert record["files"]["qdq"] == {
        "name": "m.qdq.onnx", "sha256": hashlib.sha256(qdq).hexdigest(), "bytes": len(qdq), "data": [],
    }  # fmt: skip
    assert record["data"]["feeds"] == SAMPLES
    assert record["random_data"] is False
    assert record["engine"]["bytes"] == (compiled.case.out / "m.engine").stat().st_size
    stages = "load clean_up preflight estimate observe calibrate decide lower verify write build_engine audit predict"
    assert set(stages.split()) <= set(record["timings"])  # rungs that are not needed take no time
    assert {one["pass"].partition("{")[0] for one in record["passes"]} >= {"fold-constants", "insert-qdq", "legalize"}
    assert [row["node"] for row in record["plan"]] == [one.node for one in compiled.result.plan]
    assert all(row["why"] for row in record["plan"])
    assert record["data"]["parts"] == {"calibrate": 14, "choose": 5, "judge": 5}
    assert record["verification"]["samples"] == 5
    verdict, reasons = record["verdict"]["verdict"], record["verdict"]["reasons"]
    assert verdict == ("doubtful" if reasons else "holds")
    assert [text for text in record["warnings"] if text.startswith("the result is")] == [
        f"the result is doubtful: {'; '.join(reasons)}" for _ in reasons[:1]
    ]
    assert manifest.replay(compiled.result.manifest_path) == Recipe()


def test_every_promise_of_the_plan_is_in_the_engines_own_listing(compiled: Compiled) -> None:
    audit = compiled.record["audit"]
    promised = {one.node for one in compiled.result.plan.quantized()}
    assert audit["mismatches"] == []
    assert audit["promised"] == audit["confirmed"] == len(promised)
    assert {name for name, found in audit["nodes"].items() if found == "int8"} == promised
    assert compiled.record["warnings"][0].startswith("axis 'n' (size 1) is free in the model")
    assert not any("audit" in text for text in compiled.record["warnings"])


def test_all_layers_that_can_be_are_quantized(compiled: Compiled) -> None:
    assert {one.node for one in compiled.result.plan.quantized()} == QUANTIZED[compiled.case.name]
    assert compiled.result.plan.share() > 0.9


def test_weights_are_int8_and_no_float_copy_is_left(compiled: Compiled) -> None:
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in compiled.onnx.graph.initializer}
    large = {name: array for name, array in stored.items() if array.size > 500}
    kept = [name for name, array in large.items() if array.dtype != np.int8]
    # The head of the convnet is a matrix-vector product and stays FP16
    assert [stored[name].shape for name in kept] == ([(32, 64)] if compiled.case.name == "conv" else [])
    assert len(large) - len(kept) == len(QUANTIZED[compiled.case.name])
    assert not any(node.op_type == "Constant" for node in compiled.onnx.graph.node)
    source = compiled.case.source.stat().st_size
    assert (compiled.case.out / "m.qdq.onnx").stat().st_size < 0.45 * source


def test_no_scale_is_fp16_and_every_zero_point_is_there_and_int8(compiled: Compiled) -> None:
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in compiled.onnx.graph.initializer}
    pairs = [n for n in compiled.onnx.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) >= 2 * len(QUANTIZED[compiled.case.name])
    for node in pairs:
        scale, zero = stored[node.input[1]], stored[node.input[2]]
        assert (scale.dtype.name, zero.dtype.name) == ("float32", "int8")
        assert scale.min() > 0
        assert np.isfinite(scale).all()
        assert not zero.any()


def test_the_rest_is_half_precision_and_the_interface_is_kept(compiled: Compiled) -> None:
    before = onnx.load(compiled.case.source)
    for ours, theirs in (
        (compiled.onnx.graph.input, before.graph.input),
        (compiled.onnx.graph.output, before.graph.output),
    ):
        assert [one.name for one in ours] == [one.name for one in theirs]
        assert [one.type.tensor_type.elem_type for one in ours] == [one.type.tensor_type.elem_type for one in theirs]
    inferred = onnx.shape_inference.infer_shapes(compiled.onnx, strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    linear = [node for node in compiled.onnx.graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    halves = [types.get(node.output[0]) == onnx.TensorProto.FLOAT16 for node in linear]
    assert all(halves)
    onnx.checker.check_model(compiled.onnx, full_check=True)


def test_the_quantized_model_computes_nearly_what_the_float_model_does(compiled: Compiled) -> None:
    x = compiled.case.rows[:4]
    exact = Session(compiled.case.source).run({"x": x})["y"]
    error = Session(compiled.case.out / "m.qdq.onnx").run({"x": x})["y"] - exact
    sqnr = 10 * np.log10((exact**2).sum() / (error**2).sum())
    assert sqnr > 25
    verification = compiled.result.verification
    assert verification is not None
    (whole,) = (view.sqnr_db for view in verification.views if view.name == "y")
    assert whole is not None
    assert whole == pytest.approx(sqnr, abs=3)
    assert 25 < sqnr_of(compiled.result) <= whole  # the worst view: channels of y that are small stand alone
    assert verification.failures == ()
    assert verification.layers


def test_the_report_is_a_page(compiled: Compiled) -> None:
    text = (compiled.case.out / "m.report.html").read_text(encoding="utf8")
    assert text.startswith("<!doctype html>")
    assert text.rstrip().endswith("</html>")
    assert all(one.node in text for one in compiled.result.plan.quantized())


def test_the_profile_comes_from_the_data(compiled: Compiled) -> None:
    shape = list(MODELS[compiled.case.name][1])
    (profile,) = compiled.record["engine"]["profiles"]
    assert profile["shapes"] == {"x": [[1, *shape]] * 3}


def test_the_quantized_file_builds_again_and_is_not_touched(compiled: Compiled, tmp_path: Path) -> None:
    qdq = compiled.case.out / "m.qdq.onnx"
    before = state(qdq)
    result = build(qdq, data=str(compiled.case.data), output=tmp_path / "again.engine")
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        "again.engine", "again.manifest.json", "again.report.html",
    ]  # fmt: skip
    assert state(qdq) == before
    assert {one.node for one in result.plan.quantized()} == QUANTIZED[compiled.case.name]
    assert result.manifest["audit"]["mismatches"] == []
    assert result.verification is None


# --- Determinism ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_same_inputs_in_any_order_with_any_workers_give_the_same_bytes(tmp_path: Path, name: str) -> None:
    case = prepared(tmp_path, name)
    shuffled = case.rows[np.random.default_rng(5).permutation(SAMPLES)]
    runs = [
        quantized(case, name="a"),
        quantized(case, name="b"),
        quantized(case, [{"x": shuffled[i : i + 1]} for i in range(SAMPLES)], name="c"),
        quantized(case, name="d", workers=2),
        quantized(case, [{"x": shuffled[i : i + 1]} for i in range(SAMPLES)], name="e", workers=2),
    ]
    assert len({one.qdq_path.read_bytes() for one in runs}) == 1
    assert len({one.plan.to_json() for one in runs}) == 1
    assert runs[0].manifest["data"]["fingerprint"] == runs[2].manifest["data"]["fingerprint"]


def activation_scales(result: CompileResult) -> dict[str, float]:
    return {name: one.amax / 127 for name, one in result.plan.quantizers.items()}


@pytest.mark.parametrize("calibrator", ["auto", "entropy", "minmax", "percentile"])
def test_batches_do_not_move_the_scales(conv: Case, calibrator: str) -> None:
    one = {"x": ((1, 3, 16, 16),) * 3}  # the same rows: else the head is a matrix-vector product in one of them
    single = activation_scales(quantized(conv, calibrator=calibrator, batch=1, shapes=one))
    batched = activation_scales(quantized(conv, calibrator=calibrator, batch=16, shapes=one))
    assert single.keys() == batched.keys()
    assert len(single) == 3
    for name, scale in single.items():
        assert batched[name] == pytest.approx(scale, rel=1e-6)


# --- What can be asked for --------------------------------------------------------------------------------------------


def test_quantize_stops_before_the_engine(conv: Case) -> None:
    result = quantized(conv)
    assert conv.left() == ["m.manifest.json", "m.qdq.onnx", "m.report.html"]
    assert (result.engine_path, result.manifest["engine"], result.manifest["audit"]) == (None, None, None)


def test_a_loaded_model_is_compiled_and_stays_as_it_is(conv: Case) -> None:
    loaded = models.load(conv.source)
    before = [node.op for node in loaded.graph.nodes]
    from_memory = quantize(loaded, data=str(conv.data), output=conv.out / "a.qdq.onnx")
    assert [node.op for node in loaded.graph.nodes] == before
    assert from_memory.qdq_path.read_bytes() == quantized(conv, name="b").qdq_path.read_bytes()


def test_kept_nodes_stay_in_high_precision_with_the_reason(conv: Case) -> None:
    result = quantized(conv, keep=("^C2$",))
    one = result.plan.decisions["C2"]
    assert (one.precision, one.rule) == (DType.FP16, "kept")
    assert {row.node for row in result.plan.quantized()} == {"C1", "C3"}
    halves = [t for t in onnx.load(result.qdq_path).graph.initializer if t.data_type == onnx.TensorProto.FLOAT16]
    assert any(tuple(t.dims) == (32, 32, 3, 3) for t in halves)


@pytest.mark.parametrize(("precision", "element"), [("fp16", "float16"), ("bf16", "bfloat16")])
def test_a_float_precision_quantizes_nothing(block: Case, precision: str, element: str) -> None:
    result = quantized(block, precision=precision)
    proto = onnx.load(result.qdq_path)
    assert not any("Quantize" in node.op_type for node in proto.graph.node)
    large = [numpy_helper.to_array(t) for t in proto.graph.initializer if np.prod(t.dims) > 500]
    assert {array.dtype.name for array in large} == {element}
    assert sqnr_of(result) > 35
    assert result.plan.quantized() == []


def test_bf16_needs_no_data(block: Case) -> None:
    result = quantize(block.source, recipe=Recipe(precision="bf16"), output=block.out / "m.qdq.onnx")
    assert result.verification is None
    assert result.manifest["data"] is None


def test_fp16_builds_an_engine_too(block: Case) -> None:
    result = compile(block.source, data=str(block.data), recipe=Recipe(precision="fp16"), output=block.out / "m.engine")
    assert result.manifest["audit"]["mismatches"] == []
    assert block.left() == ["m.engine", "m.manifest.json", "m.qdq.onnx", "m.report.html"]


@pytest.mark.parametrize("high", ["fp32", "bf16"])
def test_the_rest_can_be_another_type(conv: Case, high: str) -> None:
    result = quantized(conv, high_precision=high)
    assert {one.node for one in result.plan.quantized()} == QUANTIZED["conv"]
    assert result.plan.decisions["S2"].precision == high
    assert sqnr_of(result) > 25


def test_onnxruntime_is_a_target(conv: Case) -> None:
    result = compile(
        conv.source, data=str(conv.data), recipe=Recipe(target="onnxruntime"), output=conv.out / "m.engine"
    )
    assert conv.left()[0] == "m.engine"
    assert result.manifest["engine"]["engine"] == "onnxruntime"


def test_strict_is_content_where_every_promise_is_kept_and_batches_widen_the_profile(conv: Case) -> None:
    recipe = Recipe(strict=True, batch=8)
    result = compile(conv.source, data=str(conv.data), recipe=recipe, output=conv.out / "m.engine")
    assert result.manifest["audit"]["mismatches"] == []
    (profile,) = result.manifest["engine"]["profiles"]
    assert profile["shapes"] == {"x": [[1, 3, 16, 16], [8, 3, 16, 16], [8, 3, 16, 16]]}


def test_only_the_first_samples_are_read(conv: Case) -> None:
    assert quantized(conv, samples=3).manifest["data"]["feeds"] == 3


def test_without_verification_nothing_is_compared(conv: Case) -> None:
    assert quantized(conv, verify_samples=0).verification is None


def test_other_data_can_be_compared_on(conv: Case) -> None:
    np.savez(conv.folder / "held.npz", x=conv.rows[:5] * 0.5)
    result = quantized(conv, verify_data=str(conv.folder / "held.npz"))
    assert result.verification is not None
    assert result.verification.samples == 5
    assert "held.npz" in result.verification.data


def test_random_data_is_stamped_everywhere(conv: Case) -> None:
    result = quantized(conv, "random")
    assert result.manifest["random_data"] is True
    assert result.verification is not None
    assert result.verification.random
    assert "andom data" in result.report_path.read_text(encoding="utf8")


def test_a_gate_makes_the_safety_net_stricter_before_it_gives_up(block: Case) -> None:
    plain = quantized(block, name="a")
    asked = sqnr_of(plain) + 1
    gated = quantized(block, name="b", min_sqnr=asked)
    assert sqnr_of(gated) >= asked
    assert len(gated.plan.quantized()) < len(plain.plan.quantized())
    assert any(one.rule == "sensitive" for one in gated.plan)
    assert [bool(one["missed"]) for one in gated.manifest["tries"]][-1] is False


def test_a_replayed_manifest_gives_the_same_bytes(conv: Case) -> None:
    first = quantized(conv, name="a", calibrator="entropy", keep=("C1",), safety=SafetyTable(target_sqnr_db=30))
    again = quantize(
        conv.source, data=str(conv.data), recipe=manifest.replay(first.manifest_path), output=conv.out / "b.qdq.onnx"
    )
    assert again.qdq_path.read_bytes() == first.qdq_path.read_bytes()
