"""Models that come quantized, through the whole compiler: what is kept, what is completed, what is dropped and told."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qcompiler.compiler.compile import CompileResult, compile, quantize
from qcompiler.ir import model as models
from qcompiler.passes.cleanup.fold_batch_norm import FoldBatchNorm
from qcompiler.passes.legalize.release_quantizers import warning
from qcompiler.planning.placement import candidates
from qcompiler.planning.search.offers import opened as open_stored
from qcompiler.recipe.recipe import Recipe
from qcompiler.runtime.session import Session
from tests.kit.cases import convnet, transformer
from tests.kit.quantized_models import CHANNEL_SCALES, W8, f32, newer
from tests.kit.rewrite import Spec, check, check_skipped, model

ROWS = np.random.default_rng(4).standard_normal((12, 16, 32)).astype(np.float32)
RTX = Recipe(target="tensorrt-rtx:sm89", high_precision="fp32")
FLOAT_TOO = RTX.replace(allow_broken=True)  # a single layer that stays float: nothing of INT8 is reached
HALF = np.clip(W8, -63, 63)  # seven bits, as tools for old CPUs store weights: amax / 127 is not their scale


def stored(activation: bool = False, *more: Spec, weights: dict[str, Any] | None = None) -> onnx.ModelProto:
    """x (16 rows of 32) → MatMul with a stored weight → y; with a pair in front of it or not."""
    pair: tuple[Spec, ...] = (("QuantizeLinear", "x s z", "q"), ("DequantizeLinear", "q s z", "d"))
    nodes: tuple[Spec, ...] = (
        *(pair if activation else ()),
        ("DequantizeLinear", "w8 ws wz", "w", {"axis": 1}),
        ("MatMul", f"{'d' if activation else 'x'} w", "y"),
        *more,
    )
    held = {"w8": HALF, "ws": CHANNEL_SCALES, "wz": np.zeros(32, np.int8)} | (weights or {})
    held |= {"s": f32(0.03), "z": np.int8(0)} if activation else {}
    return newer(model(*nodes, inputs={"x": ("n", 16, 32)}, weights=held, opset=21))


def run(proto: onnx.ModelProto, folder: Path, recipe: Recipe = RTX) -> CompileResult:
    onnx.save(proto, folder / "given.onnx")
    return quantize(folder / "given.onnx", data=[{"x": x[None]} for x in ROWS], recipe=recipe, output=folder / "m.onnx")


def written(result: CompileResult) -> onnx.ModelProto:
    return onnx.load(result.qdq_path)


def constants(proto: onnx.ModelProto, op: str) -> list[tuple[Any, ...]]:
    """The constant inputs of all nodes of a kind."""
    held = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
    return [tuple(held.get(name) for name in node.input) for node in proto.graph.node if node.op_type == op]


# --- Weights ----------------------------------------------------------------------------------------------------------


def test_a_stored_weight_keeps_integers_and_scales_and_gets_a_pair_beside_it(tmp_path: Path) -> None:
    result = run(stored(), tmp_path)
    decision = result.plan.decisions["Y"]
    assert (str(decision.precision), decision.rule) == ("int8", "linear")
    assert "keeps the integers and scales" in decision.why
    proto = written(result)
    assert [node.op_type for node in proto.graph.node].count("QuantizeLinear") == 1
    weight = next(one for one in constants(proto, "DequantizeLinear") if one[0] is not None)
    np.testing.assert_array_equal(weight[0], HALF)
    np.testing.assert_array_equal(weight[1], CHANNEL_SCALES)


def test_a_stored_weight_of_a_layer_that_stays_float_stays_stored(tmp_path: Path) -> None:
    result = run(stored(), tmp_path, FLOAT_TOO.replace(keep=("^Y$",)))
    assert result.plan.decisions["Y"].rule == "kept"
    assert [node.op_type for node in written(result).graph.node] == ["DequantizeLinear", "MatMul"]
    small = stored(weights={"w8": HALF[:, :8], "ws": CHANNEL_SCALES[:8], "wz": np.zeros(8, np.int8)})
    result = run(small, tmp_path, FLOAT_TOO)
    assert result.plan.decisions["Y"].rule == "tiny"
    assert [node.op_type for node in written(result).graph.node] == ["DequantizeLinear", "MatMul"]
    np.testing.assert_array_equal(constants(written(result), "DequantizeLinear")[0][0], HALF[:, :8])


def test_a_weight_in_blocks_keeps_a_float_activation(tmp_path: Path) -> None:
    nodes = (("DequantizeLinear", "w8 ws wz", "w", {"axis": 0, "block_size": 16}), ("MatMul", "x w", "y"))
    held = {"w8": W8, "ws": np.full((2, 32), 0.01, np.float32), "wz": np.zeros((2, 32), np.int8)}
    result = run(newer(model(*nodes, inputs={"x": ("n", 16, 32)}, weights=held, opset=21)), tmp_path, FLOAT_TOO)
    assert result.plan.decisions["Y"].rule == "weight-only"
    assert "blocks" in result.plan.decisions["Y"].why
    assert "QuantizeLinear" not in {node.op_type for node in written(result).graph.node}


def test_a_stored_weight_that_is_an_output_too_stays_stored(tmp_path: Path) -> None:
    proto = stored()
    proto.graph.output.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, (32, 32)))
    result = run(proto, tmp_path, FLOAT_TOO)
    assert result.plan.decisions["Y"].rule == "weight-only"
    assert "gives its float values as an output" in result.plan.decisions["Y"].why
    assert [one.name for one in written(result).graph.output] == ["y", "w"]


def test_weights_are_opened_in_a_copy_and_once(tmp_path: Path) -> None:
    onnx.save(stored(), tmp_path / "given.onnx")
    loaded, target = models.load(tmp_path / "given.onnx"), RTX.resolve()
    opened = open_stored(loaded, candidates.find_candidates(loaded.graph, target)[0])
    assert [node.op for node in loaded.graph.nodes] == ["DequantizeLinear", "MatMul"]
    assert [node.op for node in opened.graph.nodes] == ["MatMul"]
    assert open_stored(opened, candidates.find_candidates(opened.graph, target)[0]) is opened


# --- Pairs ------------------------------------------------------------------------------------------------------------


def test_pairs_are_kept_as_they_came_and_the_rest_is_completed(tmp_path: Path) -> None:
    extra = {"v": W8.astype(np.float32) / 500}
    proto = stored(True, ("Relu", "y", "r"), ("MatMul", "r v", "u"), weights=extra)
    proto.graph.output[0].name = "u"
    result = run(proto, tmp_path)
    rules = {one.node: one.rule for one in result.plan if one.op == "MatMul"}
    assert rules == {"Y": "quantized-already", "U": "linear"}
    scales = [float(one[1]) for one in constants(written(result), "QuantizeLinear")]
    assert len(scales) == 2
    assert scales[0] == np.float32(0.03)


def test_another_reader_of_a_quantized_tensor_takes_the_scale_that_is_there(tmp_path: Path) -> None:
    extra = {"v": W8.astype(np.float32) / 500}
    proto = stored(True, ("MatMul", "x v", "u"), ("Add", "y u", "t"), weights=extra)
    proto.graph.output[0].name = "t"
    result = run(proto, tmp_path)
    assert "scale of the pair" in result.plan.decisions["U"].why
    scales = {float(one[1]) for one in constants(written(result), "QuantizeLinear")}
    assert scales == {float(np.float32(0.03))}


def test_a_float_weight_behind_a_quantized_activation_is_stored_and_the_pair_is_not_doubled(tmp_path: Path) -> None:
    nodes = (("QuantizeLinear", "x s z", "q"), ("DequantizeLinear", "q s z", "d"), ("MatMul", "d v", "y"))
    held = {"s": f32(0.03), "z": np.int8(0), "v": W8.astype(np.float32) / 500}
    result = run(newer(model(*nodes, inputs={"x": ("n", 16, 32)}, weights=held, opset=21)), tmp_path)
    assert str(result.plan.precision("Y")) == "int8"
    found = constants(written(result), "QuantizeLinear")
    assert [float(one[1]) for one in found] == [pytest.approx(0.03, rel=1e-6)]


def test_pairs_stay_whatever_precision_is_asked_for(tmp_path: Path) -> None:
    result = run(stored(True), tmp_path, Recipe(target="tensorrt-rtx:sm89", precision="fp16"))
    assert (result.plan.decisions["Y"].rule, str(result.plan.precision("Y"))) == ("quantized-already", "int8")


def test_a_dropped_pair_is_told(tmp_path: Path) -> None:
    proto = stored(True)
    next(one for one in proto.graph.initializer if one.name == "z").CopyFrom(
        numpy_helper.from_array(np.array(9, np.int8), "z")
    )
    result = run(proto, tmp_path)
    assert "was dropped because its zero point is 9" in result.plan.decisions["Y"].why
    assert any("'x'" in text and "zero point is 9" in text for text in result.manifest["warnings"])
    assert "'x'" in warning({"x": "its zero point is 9"})


# --- Batch normalisation ----------------------------------------------------------------------------------------------


def normalised(*, gamma: Any) -> onnx.ModelProto:
    nodes = (
        ("DequantizeLinear", "k ws wz", "kd", {"axis": 0}),
        ("Conv", "x kd", "c"),
        ("BatchNormalization", "c gamma beta mean var", "y"),
    )
    held = {"k": W8[:8, :8].reshape(8, 8, 1, 1), "ws": CHANNEL_SCALES[:8], "wz": np.zeros(8, np.int8)}
    held |= {name: f32(np.linspace(0.5, 2, 8)) for name in ("beta", "mean", "var")} | {"gamma": f32(gamma)}
    return newer(model(*nodes, inputs={"x": (1, 8, 6, 6)}, weights=held, opset=21))


def test_batch_normalisation_goes_into_the_scales_of_a_stored_weight() -> None:
    graph, _ = check(FoldBatchNorm(), normalised(gamma=[1, -1, 2, 0, 1, 1, -3, 1]), ops=["DequantizeLinear", "Conv"])
    integers = graph.nodes[0].inputs[0].values
    signs = np.array([1, -1, 1, 0, 1, 1, -1, 1], np.int8)
    np.testing.assert_array_equal(integers, W8[:8, :8].reshape(8, 8, 1, 1) * signs.reshape(8, 1, 1, 1))
    assert (graph.nodes[0].inputs[1].values > 0).all()


def test_batch_normalisation_stays_where_an_integer_has_no_opposite() -> None:
    proto = normalised(gamma=-np.ones(8))
    lowest = W8[:8, :8].reshape(8, 8, 1, 1).copy()
    lowest[0, 0] = -128
    next(one for one in proto.graph.initializer if one.name == "k").CopyFrom(numpy_helper.from_array(lowest, "k"))
    check_skipped(FoldBatchNorm(), proto, "-128")


# --- What ONNX Runtime's own tools write ------------------------------------------------------------------------------

SHAPES = {"conv": (3, 16, 16), "transformer": (16, 64)}
EXACT_DB = 60.0  # nothing is calibrated again: only what lies on the middle between two integers differs
FP32 = {"high_precision": "fp32", "target": "tensorrt-rtx:sm89"}


def data_of(name: str) -> list[dict[str, Any]]:
    rows = np.random.default_rng(13).standard_normal((12, *SHAPES[name])).astype(np.float32)
    return [{"x": rows[i : i + 2]} for i in range(0, 12, 2)]


def produced(name: str, how: str, folder: Path) -> Path:
    """One of the two small models, quantized by ONNX Runtime."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
        from onnxruntime.quantization.calibrate import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest: Iterator[dict[str, Any]] = iter(data_of(name))

        def get_next(self) -> dict[str, Any] | None:
            return next(self.rest, None)

    source, output = folder / f"{name}.onnx", folder / f"{name}.{how}.onnx"
    onnx.save({"conv": convnet, "transformer": transformer}[name](), source)
    unsigned = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QUInt8}
    symmetric = {"per_channel": True, "extra_options": {"ActivationSymmetric": True}}
    ways: dict[str, dict[str, Any]] = {
        "default": {},
        "unsigned": unsigned,
        "symmetric": symmetric,
        "operators": unsigned | {"quant_format": QuantFormat.QOperator},
        "symmetric-operators": symmetric | {"quant_format": QuantFormat.QOperator, "activation_type": QuantType.QInt8},
        "sixteen": {"activation_type": QuantType.QUInt16, "weight_type": QuantType.QUInt8},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "dynamic":
            quantize_dynamic(source, output, weight_type=QuantType.QInt8, per_channel=True)
        else:
            quantize_static(source, output, Reader(), **ways[how])
    return output


@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.parametrize(
    ("how", "least"),
    [
        ("default", 28.0),
        ("unsigned", 28.0),
        ("symmetric", EXACT_DB),
        ("operators", 28.0),
        ("symmetric-operators", 28.0),
        ("sixteen", 35.0),
        ("dynamic", 34.0),
    ],
)
def test_what_onnx_runtime_quantized_computes_the_same_afterwards(
    name: str, how: str, least: float, tmp_path: Path
) -> None:
    given = produced(name, how, tmp_path)
    result = quantize(given, data=data_of(name), recipe=Recipe(**FP32), output=tmp_path / "out.onnx")  # type: ignore[arg-type]
    reached = result.verification.worst_sqnr_db if result.verification is not None else None
    assert reached is not None
    assert reached > least
    assert any(str(one.precision) == "int8" for one in result.plan)
    assert not [one for one in result.plan if one.rule == "half-quantized"]


def test_a_relu_that_only_a_quantizer_stood_for_is_not_lost(tmp_path: Path) -> None:
    given = produced("conv", "unsigned", tmp_path)
    assert "Relu" not in {node.op_type for node in onnx.load(given).graph.node}
    result = quantize(given, data=data_of("conv"), recipe=Recipe(**FP32), output=tmp_path / "out.onnx")  # type: ignore[arg-type]
    feeds = data_of("conv")[0]
    ours = Session(models.load(result.qdq_path)).run(feeds)["y"]
    reference = Session(models.load(tmp_path / "conv.onnx")).run(feeds)["y"]
    assert np.abs(ours - reference).max() < 0.05 * np.abs(reference).max()


@pytest.mark.parametrize("how", ["default", "symmetric-operators", "dynamic"])
def test_what_onnx_runtime_quantized_builds_and_keeps_its_promises(how: str, tmp_path: Path) -> None:
    given = produced("conv", how, tmp_path)
    result = compile(
        given, data=data_of("conv"), recipe=Recipe(target="tensorrt-rtx:sm89"), output=tmp_path / "out.engine"
    )
    assert result.manifest["audit"]["mismatches"] == []
    assert {"C1", "C2", "C3"} <= {one.node.split("_")[0].split("/")[0] for one in result.plan.quantized()}
