"""What is refused for TensorRT, by which words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from qcompiler.engines.tensorrt_rtx import TensorRTRTX
from qcompiler.errors import EngineError
from qcompiler.passes.legalize import _refuse_quantized as refuse_quantized
from qcompiler.passes.legalize.legalize import Legalize
from qcompiler.target import Target, parse_target
from tests.kit.quantized_models import CHANNEL_SCALES, RTX, W8, f32, newer, product, refused
from tests.kit.rewrite import check_untouched, graph_proto, model, to_graph, whole

if TYPE_CHECKING:
    pass


def test_asymmetric_activations_are_refused() -> None:
    refused(product(zero=np.int8(3)), "'Q'", "zero point 3", "symmetric")


def test_unsigned_activations_that_do_not_fit_are_refused() -> None:
    refused(product(zero=np.uint8(0)), "'Q'", "uint8", "read as int8")
    refused(product(zero=None), "'Q'", "uint8")


def test_asymmetric_weights_that_do_not_fit_are_refused() -> None:
    refused(product(weight_zero=np.full(32, 50, np.int8)), "'W'", "zero point 50")


@pytest.mark.parametrize("value", [0.0, -0.1, np.nan, np.inf, 1e-40])
def test_impossible_scales_are_refused_everywhere(value: float) -> None:
    refused(product(scale=f32(value)), "'Q'", "index 0", "calibrate")
    scales = CHANNEL_SCALES.copy()
    scales[7] = value
    refused(product(weight_scale=scales), "'W'", "index 7", target=parse_target("onnxruntime"))


def test_scales_computed_at_run_time_are_refused() -> None:
    proto = newer(
        model(
            ("ReduceMax", "x", "s", {"keepdims": 0}),
            ("QuantizeLinear", "x s z", "q"),
            ("DequantizeLinear", "q s z", "y"),
            weights={"z": np.int8(0)},
            opset=21,
        )
    )
    refused(proto, "'Q'", "computed at run time")


def test_activations_with_several_scales_are_refused() -> None:
    proto = newer(
        model(
            ("QuantizeLinear", "x s z", "q", {"axis": 1}),
            ("DequantizeLinear", "q s z", "y", {"axis": 1}),
            weights={"s": np.full(4, 0.1, np.float32), "z": np.zeros(4, np.int8)},
            opset=21,
        )
    )
    refused(proto, "'Q'", "4 scales", "one scale per tensor")


def test_weight_scales_on_the_input_channels_are_refused() -> None:
    refused(product(axis=0), "'W'", "axis 0", "axis 1", "float without a word")


def test_the_axis_is_followed_through_a_transpose() -> None:
    def transposed(axis: int) -> onnx.ModelProto:
        proto = product(axis=axis)
        proto.graph.node.insert(3, onnx.helper.make_node("Transpose", ["w"], ["wt"], "T", perm=[1, 0]))
        proto.graph.node[4].input[1] = "wt"
        return proto

    check_untouched(Legalize(RTX), transposed(0))
    refused(transposed(1), "'W'", "axis 0", "axis 1")


def test_blocked_weights_against_quantized_activations_are_refused() -> None:
    scales = np.full((2, 32), 0.01, np.float32)
    proto = product(weight_scale=scales, weight_zero=np.zeros((2, 32), np.int8), axis=0, block=16)
    refused(proto, "'W'", "blocked", "'Y'", "wrong results")


def test_operands_of_two_types_are_refused() -> None:
    fp8 = np.zeros((32, 32), ml_dtypes.float8_e4m3fn)
    refused(product(weight=fp8, weight_zero=np.zeros(32, fp8.dtype)), "'Y'", "int8", "float8_e4m3fn")
    int4 = np.zeros((32, 32), ml_dtypes.int4)
    refused(product(weight=int4, weight_zero=np.zeros(32, int4.dtype)), "'Y'", "int4")


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e5m2, np.int16, np.uint16])
def test_types_that_the_parser_does_not_import_are_refused(dtype: Any) -> None:
    refused(product(weight=np.zeros((32, 32), dtype), weight_zero=np.zeros(32, dtype)), "'W'", np.dtype(dtype).name)


def test_e5m2_is_refused_with_the_format_that_there_is() -> None:
    e5m2 = np.zeros((32, 32), ml_dtypes.float8_e5m2)
    proto = product(weight=e5m2, weight_zero=np.zeros(32, e5m2.dtype))
    refused(proto, "float8_e5m2", "E4M3 only", "int8", target=parse_target("tensorrt:sm90"))


def test_fp8_needs_a_gpu_that_has_it() -> None:
    fp8 = ml_dtypes.float8_e4m3fn
    proto = product(zero=np.zeros((), fp8), weight=np.zeros((32, 32), fp8), weight_zero=np.zeros(32, fp8))
    refused(proto, "FP8", "sm86", target=parse_target("tensorrt-rtx:sm86,sm89"))
    check_untouched(Legalize(RTX), proto)
    check_untouched(Legalize(parse_target("tensorrt-rtx")), proto)


def test_turing_multiplies_in_half_only(tmp_path: Path) -> None:
    old = parse_target("tensorrt-rtx:sm75,sm89")
    refused(product(), "'Y'", "FP32 matrix product", "sm75", target=old)
    kernel = np.ones((1, 1, 3, 3), np.float32)
    check_untouched(Legalize(old), model(("Conv", "x w", "y"), inputs={"x": (1, 1, 4, 4)}, weights={"w": kernel}))
    x = {"x": (np.float16, (64, 32))}
    half = to_graph(model(("MatMul", "x w", "y"), inputs=x, weights={"w": W8.astype(np.float16)}))
    assert not Legalize(old)(half).notes
    (tmp_path / "m.onnx").write_bytes(whole(half).SerializeToString())
    assert TensorRTRTX(("sm75",)).build(tmp_path / "m.onnx", tmp_path / "m.engine").bytes
    bf16 = to_graph(model(("Cast", "x", "b", {"to": 16}), ("Cast", "b", "y", {"to": 1})))
    with pytest.raises(EngineError, match="'B'.*BF16"):
        Legalize(old)(bf16)


def test_dynamically_quantized_operators_are_refused() -> None:
    proto = model(
        ("DynamicQuantizeLinear", "x", "q s z"),
        ("MatMulInteger", "q w8 z", "i"),
        ("Cast", "i", "f", {"to": 1}),
        ("Mul", "f s", "y"),
        weights={"w8": W8[:4, :4]},
    )
    refused(proto, "'Q'", "DynamicQuantizeLinear", "--data")


def test_nested_graphs_are_looked_into() -> None:
    body = graph_proto(
        [("QuantizeLinear", "x s z", "q"), ("DequantizeLinear", "q s z", "inside")], {}, ["inside"], {"z": np.int8(9)}
    )
    other = graph_proto([("Abs", "x", "beside")], {}, ["beside"])
    proto = newer(
        model(
            ("If", "c", "y", {"then_branch": body, "else_branch": other}),
            inputs={"x": (2, 4), "c": (np.bool_, ())},
            weights={"s": f32(0.1)},
            opset=21,
        )
    )
    refused(proto, "'Q'", "zero point 9")


@pytest.mark.parametrize("rule", refuse_quantized.RULES, ids=lambda rule: rule.__name__)
def test_no_rule_refuses_a_legal_graph(rule: Callable[[gs.Graph, Target], None]) -> None:
    graph = to_graph(product())
    before = whole(graph).SerializeToString(deterministic=True)
    rule(graph, RTX)
    assert whole(graph).SerializeToString(deterministic=True) == before


def test_the_real_parser_agrees_that_asymmetric_models_are_impossible(tmp_path: Path) -> None:
    """The rules exist because the library says so, or because it says nothing and computes something else."""
    (tmp_path / "m.onnx").write_bytes(product(zero=np.int8(3)).SerializeToString())
    assert any("zero point" in str(one).lower() for one in TensorRTRTX(("sm89",)).check(tmp_path / "m.onnx"))
