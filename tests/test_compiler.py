"""The whole way: a float model and data in, four artefacts out, all of them true; and nothing where it fails."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qcompiler import manifest
from qcompiler import model as models
from qcompiler.cli import main
from qcompiler.compiler import CompileResult, build, compile, quantize
from qcompiler.errors import AccuracyError, DataError, EngineError, ModelError, UsageError
from qcompiler.recipe import Recipe, Safety
from qcompiler.session import Session
from qcompiler.target import DType
from tests.rewrite import model

SAMPLES = 24


def convnet() -> onnx.ModelProto:
    """A stem, a residual block with batch norm, pooling and a head."""
    rng = np.random.default_rng(11)

    def kernel(*shape: int) -> Any:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    values: dict[str, Any] = {"w1": kernel(32, 3, 3, 3), "w2": kernel(32, 32, 3, 3), "w3": kernel(64, 32, 3, 3)}
    values |= {"b1": rng.standard_normal(32).astype(np.float32), "head": kernel(64, 32).T.copy().T}
    values |= {"gamma": rng.uniform(0.5, 2, 32).astype(np.float32), "beta": rng.standard_normal(32).astype(np.float32)}
    values |= {"mean": values["beta"] / 4, "var": rng.uniform(0.5, 2, 32).astype(np.float32)}
    values["head"] = kernel(32, 64)
    return model(
        ("Conv", "x w1 b1", "c1", {"pads": [1] * 4}),
        ("Relu", "c1", "r1"),
        ("Conv", "r1 w2", "c2", {"pads": [1] * 4}),
        ("BatchNormalization", "c2 gamma beta mean var", "n2"),
        ("Add", "n2 r1", "s2"),
        ("Relu", "s2", "r2"),
        ("Conv", "r2 w3", "c3", {"pads": [1] * 4, "strides": [2, 2]}),
        ("Relu", "c3", "r3"),
        ("GlobalAveragePool", "r3", "p"),
        ("Flatten", "p", "f"),
        ("Gemm", "f head", "y", {"transB": 1}),
        inputs={"x": ("n", 3, 16, 16)},
        weights=values,
    )


def transformer() -> onnx.ModelProto:
    """One block of attention and feed-forward over 16 tokens, 64 wide, both residual."""
    rng = np.random.default_rng(12)
    shapes = {"wq": (64, 64), "wk": (64, 64), "wv": (64, 64), "wo": (64, 64), "w1": (64, 256), "w2": (256, 64)}
    values: dict[str, Any] = {
        name: (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32) for name, shape in shapes.items()
    }
    values |= {"g": np.ones(64, np.float32), "root": np.float32(8), "b1": rng.standard_normal(256).astype(np.float32)}
    return model(
        ("LayerNormalization", "x g", "l1", {"axis": -1}),
        ("MatMul", "l1 wq", "q"),
        ("MatMul", "l1 wk", "k"),
        ("MatMul", "l1 wv", "v"),
        ("Transpose", "k", "kt", {"perm": [0, 2, 1]}),
        ("MatMul", "q kt", "s"),
        ("Div", "s root", "sd"),
        ("Softmax", "sd", "a", {"axis": -1}),
        ("MatMul", "a v", "o"),
        ("MatMul", "o wo", "p"),
        ("Add", "x p", "x1"),
        ("LayerNormalization", "x1 g", "l2", {"axis": -1}),
        ("MatMul", "l2 w1", "h0"),
        ("Add", "h0 b1", "h1"),
        ("Relu", "h1", "h2"),
        ("MatMul", "h2 w2", "f"),
        ("Add", "x1 f", "y"),
        inputs={"x": ("n", 16, 64)},
        weights=values,
    )


MODELS = {"conv": (convnet, (3, 16, 16)), "transformer": (transformer, (16, 64))}
QUANTIZED = {"conv": {"C1", "C2", "C3"}, "transformer": {"Q", "K", "V", "P", "H0", "F"}}


@dataclass
class Case:
    """A model file and its data, alone in a folder."""

    folder: Path
    name: str

    @property
    def source(self) -> Path:
        return self.folder / "float.onnx"

    @property
    def data(self) -> Path:
        return self.folder / "data.npz"

    @property
    def rows(self) -> Any:
        shape = MODELS[self.name][1]
        return np.random.default_rng(13).standard_normal((SAMPLES, *shape)).astype(np.float32)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def left(self) -> list[str]:
        """Whatever lies in the output folder."""
        return sorted(one.name for one in self.out.rglob("*")) if self.out.exists() else []


def prepared(folder: Path, name: str) -> Case:
    case = Case(folder, name)
    onnx.save(MODELS[name][0](), case.source)
    np.savez(case.data, x=case.rows)
    return case


@pytest.fixture
def conv(tmp_path: Path) -> Case:
    return prepared(tmp_path, "conv")


@pytest.fixture
def block(tmp_path: Path) -> Case:
    return prepared(tmp_path, "transformer")


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


def state(path: Path) -> tuple[str, int]:
    return hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns


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
    qdq = (compiled.case.out / "m.qdq.onnx").read_bytes()
    assert record["files"]["qdq"] == {
        "name": "m.qdq.onnx", "sha256": hashlib.sha256(qdq).hexdigest(), "bytes": len(qdq),
    }  # fmt: skip
    assert record["data"]["feeds"] == SAMPLES
    assert record["random_data"] is False
    assert record["engine"]["bytes"] == (compiled.case.out / "m.engine").stat().st_size
    assert {"load", "clean up", "pre-flight", "observe", "decide", "lower", "verify", "write", "build", "audit"} <= set(
        record["timings"]
    )
    assert record["equivalence"] if "equivalence" in record else record["passes"]
    assert [row["node"] for row in record["plan"]] == [one.node for one in compiled.result.plan]
    assert all(row["why"] for row in record["plan"])
    assert record["verification"]["samples"] == 16
    assert manifest.replay(compiled.result.manifest_path) == Recipe()


def test_every_promise_of_the_plan_is_in_the_engines_own_listing(compiled: Compiled) -> None:
    audit = compiled.record["audit"]
    promised = {one.node for one in compiled.result.plan.quantized()}
    assert audit["mismatches"] == []
    assert audit["promised"] == audit["confirmed"] == len(promised)
    assert {name for name, found in audit["nodes"].items() if found == "int8"} == promised
    assert compiled.record["warnings"] == []


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
    assert sqnr_of(compiled.result) == pytest.approx(sqnr, abs=3)
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


def quantized(case: Case, data: Any = None, name: str = "m", **recipe: Any) -> CompileResult:
    return quantize(
        case.source,
        data=str(case.data) if data is None else data,
        recipe=Recipe(**recipe),
        output=case.out / f"{name}.qdq.onnx",
    )


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
    single = activation_scales(quantized(conv, calibrator=calibrator, batch=1))
    batched = activation_scales(quantized(conv, calibrator=calibrator, batch=16))
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
    stored = {t.dims[0]: t.data_type for t in onnx.load(result.qdq_path).graph.initializer if len(t.dims) == 4}
    assert sorted(stored.values()) == [onnx.TensorProto.INT8, onnx.TensorProto.FLOAT16] or len(stored) < 3
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
    assert result.plan.decisions["Y"].precision == high
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
    asked = sqnr_of(plain) + 4
    gated = quantized(block, name="b", min_sqnr=asked)
    assert sqnr_of(gated) >= asked
    assert len(gated.plan.quantized()) < len(plain.plan.quantized())
    assert any(one.rule == "sensitive" for one in gated.plan)


def test_a_replayed_manifest_gives_the_same_bytes(conv: Case) -> None:
    first = quantized(conv, name="a", calibrator="entropy", keep=("C1",), safety=Safety(target_sqnr_db=30))
    again = quantize(
        conv.source, data=str(conv.data), recipe=manifest.replay(first.manifest_path), output=conv.out / "b.qdq.onnx"
    )
    assert again.qdq_path.read_bytes() == first.qdq_path.read_bytes()


# --- Refusals leave nothing behind ------------------------------------------------------------------------------------


def refused(case: Case, error: type[Exception], match: str, *, data: Any = None, **recipe: Any) -> None:
    """A compile that must end with this error and leave the output folder as it was: with an older engine in it."""
    case.out.mkdir(exist_ok=True)
    (case.out / "m.engine").write_bytes(b"older")
    before = state(case.source)
    with pytest.raises(error, match=match) as caught:
        compile(
            case.source,
            data=str(case.data) if data is None else data or None,
            recipe=Recipe(**recipe),
            output=case.out / "m.engine",
        )
    assert "\n" not in str(caught.value)
    assert case.left() == ["m.engine"]
    assert (case.out / "m.engine").read_bytes() == b"older"
    assert state(case.source) == before


def test_data_with_nan_is_refused_with_sample_and_input(conv: Case) -> None:
    rows = conv.rows
    rows[17, 1, 2, 3] = np.nan
    refused(conv, DataError, "sample 17.*'x'", data=[{"x": rows[i : i + 1]} for i in range(SAMPLES)])


def test_a_model_that_overflows_is_refused_with_the_node(conv: Case) -> None:
    proto = model(
        ("Conv", "x w", "c"),
        ("Mul", "c c", "e"),
        ("Conv", "e v", "y"),
        inputs={"x": ("n", 3, 8, 8)},
        weights={"w": np.full((16, 3, 1, 1), 1e20, np.float32), "v": np.eye(16, dtype="f").reshape(16, 16, 1, 1)},
    )
    onnx.save(proto, conv.source)
    refused(conv, ModelError, r"'E' \(Mul\)", data=[{"x": np.ones((1, 3, 8, 8), np.float32)}])


def test_a_weight_that_is_not_finite_is_named(conv: Case) -> None:
    proto = convnet()
    weight = next(t for t in proto.graph.initializer if t.name == "w2")
    values = numpy_helper.to_array(weight).copy()
    values[3, 4, 1, 1] = np.inf
    weight.CopyFrom(numpy_helper.from_array(values, "w2"))
    onnx.save(proto, conv.source)
    refused(conv, ModelError, "w2")


def test_an_operator_that_the_engine_lacks_is_refused_before_anything_long(conv: Case) -> None:
    proto = model(
        ("Conv", "x w", "c"),
        ("Flatten", "c", "f", {"axis": 0}),
        ("Unique", "f", "u"),
        ("Reshape", "u s", "r"),
        ("ReduceSum", "r", "y"),
        inputs={"x": ("n", 3, 8, 8)},
        weights={"w": np.ones((16, 3, 3, 3), np.float32), "s": np.array([-1])},
    )
    onnx.save(proto, conv.source)
    started: list[str] = []

    def watched() -> Iterator[Any]:
        started.append("data")
        yield {"x": np.ones((1, 3, 8, 8), np.float32)}

    refused(conv, EngineError, r"U \(Unique\).*onnxruntime", data=watched)
    assert len(started) == 1  # for the equivalence gate, not to observe


@pytest.mark.parametrize("gate", [{"min_sqnr": 150.0}, {"max_drop": 0.0, "metric": "METRIC"}])
def test_a_gate_that_cannot_be_met_is_an_error_and_nothing_is_written(conv: Case, gate: dict[str, Any]) -> None:
    file = conv.folder / "metric.py"
    x = np.linspace(-1, 1, 768, dtype=np.float32).reshape(1, 3, 16, 16)
    file.write_text(
        "import numpy as np\nx = np.linspace(-1, 1, 768, dtype=np.float32).reshape(1, 3, 16, 16)\n"
        "def exact(run): return 100 - abs(run({'x': x})['y'] - WANTED).sum()\n"
        f"WANTED = np.array({Session(conv.source).run({'x': x})['y'].tolist()})\n"
    )
    if "metric" in gate:
        gate = {**gate, "metric": f"{file}:exact"}
    refused(conv, AccuracyError, "asked for|allowed", **gate)


def test_wrong_requests_are_refused_before_the_model_is_read(conv: Case) -> None:
    conv.source.write_bytes(b"this is no model")
    refused(conv, UsageError, "precision 'fp8' is not in this release", precision="fp8", target="tensorrt-rtx:sm89")
    refused(conv, UsageError, "give --data", data="")
    refused(conv, UsageError, "give --data", data="", precision="fp16")
    refused(conv, UsageError, "contradict", precision="fp16", high_precision="fp32")
    refused(conv, ModelError, "not a readable ONNX model")
    with pytest.raises(EngineError, match="TensorRT-RTX has no sm90"):
        Recipe(target="tensorrt-rtx:sm90")


def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_read(conv: Case) -> None:
    conv.source.write_bytes(b"this is no model")
    (conv.folder / "file").write_text("in the way")
    (conv.folder / "taken.engine").mkdir()
    for output in (conv.folder / "file" / "m.engine", conv.folder / "taken.engine"):
        with pytest.raises(UsageError, match="cannot write"):
            compile(conv.source, data=str(conv.data), output=output)
    assert sorted(one.name for one in conv.folder.iterdir()) == ["data.npz", "file", "float.onnx", "taken.engine"]


def test_the_output_may_not_be_the_model_itself(conv: Case) -> None:
    before = state(conv.source)
    with pytest.raises(UsageError, match="is the model itself"):
        quantize(conv.source, data=str(conv.data), output=conv.source)
    with pytest.raises(UsageError, match="is the model itself"):
        build(conv.source, data=str(conv.data), output=conv.source)
    assert state(conv.source) == before


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--data", "DATA", "--precision", "fp8"], 2),
        ([], 2),
        (["--data", "DATA", "--target", "tensorrt-rtx:sm90"], 6),
        (["--data", "WRONG"], 4),
        (["--data", "DATA", "--min-sqnr", "150"], 5),
    ],
)
def test_the_command_ends_with_the_exit_code_of_the_failure(
    conv: Case, capfd: pytest.CaptureFixture[str], options: list[str], code: int
) -> None:
    np.savez(conv.folder / "wrong.npz", x=np.ones((2, 3, 16, 17), np.float64))
    places = {"DATA": str(conv.data), "WRONG": str(conv.folder / "wrong.npz")}
    given = [places.get(option, option) for option in options]
    conv.out.mkdir()
    line = ["compile", str(conv.source), *given, "-o", str(conv.out / "m.engine"), "--quiet"]
    assert main(line) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert conv.left() == []


# --- Interruptions ----------------------------------------------------------------------------------------------------

SLOW = """
import time
import numpy as np
def slow():
    for k in range(4):
        yield {"x": np.ones((1, 3, 16, 16), np.float32) * k}
    open(r"MARKER", "w").close()
    time.sleep(600)
"""
RUN = "import sys; from qcompiler.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def running(conv: Case) -> Iterator[Any]:
    """Starts `qcompiler compile` in a process of its own; ends it whatever happens."""
    started: list[subprocess.Popen[str]] = []

    def start(data: str) -> subprocess.Popen[str]:
        line = ["compile", str(conv.source), "--data", data, "-o", str(conv.out / "m.engine")]
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, *line], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen[str], found: Any) -> None:
    limit = time.monotonic() + 120
    while not found():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.005)


FINAL = {"m.engine", "m.qdq.onnx", "m.manifest.json", "m.report.html"}


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_compile_that_is_killed_while_it_reads_data_leaves_nothing(conv: Case, running: Any, how: int) -> None:
    marker = conv.folder / "marker"
    (conv.folder / "slow.py").write_text(SLOW.replace("MARKER", str(marker)))
    process = running(f"{conv.folder / 'slow.py'}:slow")
    wait_for(process, marker.exists)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    assert conv.left() == []
    assert how != signal.SIGINT or err.endswith("interrupted: nothing was written\n")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_compile_that_is_killed_while_it_builds_leaves_nothing_under_a_final_name(
    conv: Case, running: Any, how: int
) -> None:
    process = running(str(conv.data))
    wait_for(process, lambda: any(name == "m.qdq.onnx" for name in conv.left()))  # in the folder of unfinished work
    process.send_signal(how)
    process.communicate(timeout=60)
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    assert not {one.name for one in conv.out.iterdir()} & FINAL
    assert how != signal.SIGINT or conv.left() == []
