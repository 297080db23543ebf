"""Models that came quantized or hold what is not quantized: what is refused, and what passes through with a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from tests.kit.quantized_models import product
from tests.kit.rewrite import model
from tests.kit.room import WEIGHT, Room, furnished, layers, rows


@pytest.fixture
def room(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Room:
    return furnished(tmp_path, capfd)


# --- Models that came quantized ---------------------------------------------------------------------------------------


def operators() -> onnx.ModelProto:
    """A product as ONNX Runtime's QOperator format writes it."""
    return model(
        ("QuantizeLinear", "x s z", "q"),
        ("QLinearMatMul", "q s z w s zw s z", "p"),
        ("DequantizeLinear", "p s z", "y"),
        inputs={"x": ("n", 32)},
        weights={"s": np.float32(0.05), "z": np.uint8(128), "zw": np.int8(0), "w": np.ones((32, 32), np.int8)},
    )


def dynamic() -> onnx.ModelProto:
    return model(
        ("DynamicQuantizeLinear", "x", "q s z"),
        ("MatMulInteger", "q w z zw", "p"),
        ("Cast", "p", "f", {"to": TensorProto.FLOAT}),
        ("Mul", "f s", "y"),
        inputs={"x": ("n", 16, 32)},
        weights={"zw": np.int8(0), "w": np.ones((32, 32), np.int8)},
    )


CAME: dict[str, tuple[Callable[[], onnx.ModelProto], tuple[str, ...]]] = {
    "asymmetric": (lambda: product(zero=np.int8(3)), ("QuantizeLinear", "zero point")),
    "asymmetric-unsigned": (lambda: product(zero=np.uint8(100)), ("QuantizeLinear", "uint8")),
    "dynamic": (dynamic, ("DynamicQuantizeLinear", "--data")),
    "negative-scale": (lambda: product(scale=-0.05), ("scale -0.05", "calibrate")),
}


@pytest.mark.parametrize("name", list(CAME))
def test_quantized_parts_that_would_compute_something_else_are_not_built(room: Room, name: str) -> None:
    came_data(room, name)
    room.refused(6, "node '", *CAME[name][1], command="build")


@pytest.mark.parametrize("name", [name for name in CAME if name != "negative-scale"])
def test_compile_drops_what_cannot_be_and_quantizes_anew(room: Room, name: str) -> None:
    came_data(room, name)
    record = room.passes(CAME[name][0](), command="compile", output=room.folder / "out" / "m.engine")
    assert any("lost theirs" in text for text in record["warnings"])
    products = [one for one in record["plan"] if one["op"] == "MatMul"]
    assert [(one["precision"], one["rule"]) for one in products] == [("int8", "linear")]
    assert "was dropped because" in products[0]["why"]
    assert record["audit"]["mismatches"] == []


def test_a_scale_that_means_nothing_is_refused_by_compile_too(room: Room) -> None:
    came_data(room, "negative-scale")
    room.refused(6, "node '", *CAME["negative-scale"][1], command="compile")


def came_data(room: Room, name: str) -> None:
    proto = CAME[name][0]()
    onnx.save(proto, room.model)
    shape = (6, 16, 32) if name == "dynamic" else (64, 32)
    np.savez(room.data, x=np.random.default_rng(5).standard_normal(shape).astype(np.float32))


def test_unsigned_quantization_that_has_an_exact_signed_form_is_mended_and_builds(room: Room) -> None:
    np.savez(room.data, x=np.ones((64, 32), np.float32))
    record = room.passes(product(zero=np.uint8(128)), command="build", output=room.folder / "built" / "m.engine")
    assert [one["precision"] for one in record["plan"] if one["op"] == "MatMul"] == ["int8"]
    assert record["audit"]["mismatches"] == []
    record = room.passes(product(zero=np.uint8(128)), command="compile", output=room.folder / "out" / "m.engine")
    assert [one["rule"] for one in record["plan"] if one["op"] == "MatMul"] == ["quantized-already"]
    assert record["audit"]["mismatches"] == []


# --- What passes through as it is, with a reason ----------------------------------------------------------------------

LAYER = [numpy_helper.from_array(WEIGHT, "w"), numpy_helper.from_array(WEIGHT, "v")]


def parsed(text: str, opset: int = 17) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]> {text}')
    proto.graph.initializer.extend(LAYER)
    return proto


IF = """g (float[n, 16, 32] x) => (float[n, 16, 32] y) {
    [layer] h = MatMul(x, w)
    [total] t = ReduceSum <keepdims = 0> (h)
    zero = Constant <value = float {0}> ()
    [sign] c = Greater(t, zero)
    [choice] y = If (c) < then_branch = yes () => (float[n, 16, 32] p) { [inner] p = MatMul(h, v) },
                          else_branch = no () => (float[n, 16, 32] q) { [turned] q = Neg(h) } > }"""
LOOP = """g (float[n, 16, 32] x) => (float[n, 16, 32] y) {
    [layer] h = MatMul(x, w)
    times = Constant <value = int64 {3}> ()
    yes = Constant <value = bool {1}> ()
    [again] y = Loop (times, yes, h) < body = b (int64 i, bool c, float[n, 16, 32] a)
        => (bool d, float[n, 16, 32] e) { d = Identity(c) [inner] e = MatMul(a, v) } > }"""
SCAN = """g (float[n, 16, 32] x) => (float[32] last, float[16, 32] y) {
    [layer] h = MatMul(x, w)
    one = Constant <value = int64[1] {0}> ()
    start = Constant <value = float[32] {0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0}> ()
    [flat] s = ReduceMean <axes = [0], keepdims = 0> (h)
    [again] last, y = Scan <num_scan_inputs = 1, body = b (float[32] a, float[32] r)
        => (float[32] e, float[32] f) { [sum] e = Add(a, r) [inner] f = MatMul(e, v) }> (start, s) }"""
SEQUENCE = """g (float[n, 16, 32] x) => (float[n, 16, 32] y) {
    [layer] h = MatMul(x, w)
    one = Constant <value = int64 {1}> ()
    [parts] s = SplitToSequence <axis = 1> (h, one)
    [whole] k = ConcatFromSequence <axis = 1> (s)
    [after] y = MatMul(k, v) }"""
CUSTOM = """g (float[n, 16, 32] x) => (float[n, 16, 32] y) {
    [layer] h = MatMul(x, w)
    [gelu] e = com.microsoft.Gelu(h)
    [fused] y = com.microsoft.FusedMatMul(e, v) }"""
STRINGS = """g (float[n, 16, 32] x, string[n] name) => (float[n, 16, 32] y, string[n] same) {
    [layer] y = MatMul(x, w)
    [copy] same = Identity(name) }"""
FUNCTION = """g (float[n, 16, 32] x) => (float[n, 16, 32] y) {
    [layer] h = MatMul(x, w)
    [called] y = local.twice(h, v) }
    <domain: "local", opset_import: ["" : 17]> twice (a, b) => (d) { c = MatMul(a, b) d = MatMul(c, b) }"""


def with_function() -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17, "local" : 1]> {FUNCTION}')
    proto.graph.initializer.extend(LAYER)
    return proto


ODD: dict[str, tuple[Callable[[], onnx.ModelProto], dict[str, str]]] = {
    "if": (lambda: parsed(IF), {"inner": "subgraph"}),
    "loop": (lambda: parsed(LOOP), {"inner/round_0": "linear", "inner/round_2": "linear"}),
    "scan": (lambda: parsed(SCAN), {}),
    "sequence": (lambda: parsed(SEQUENCE), {}),
    "fused": (lambda: parsed(CUSTOM), {}),
    "strings": (lambda: parsed(STRINGS), {}),
    "function": (with_function, {}),
}


def odd_data(room: Room, name: str) -> None:
    text: dict[str, Any] = {"name": np.array(["a", "b", "c", "d", "e", "f"])} if name == "strings" else {}
    np.savez(room.data, x=rows(), **text)


@pytest.mark.parametrize("target", ["tensorrt-rtx", "onnxruntime"])
@pytest.mark.parametrize("name", list(ODD))
def test_an_odd_model_is_quantized_where_it_can_be_and_the_rest_has_a_reason(
    room: Room, name: str, target: str
) -> None:
    proto, reasons = ODD[name]
    odd_data(room, name)
    record = room.passes(proto(), "--target", target)
    plan = {one["node"]: one for one in record["plan"]}
    assert plan["layer"]["precision"] == "int8"
    for node, rule in reasons.items():
        assert (plan[node]["rule"], len(plan[node]["why"]) > 20) == (rule, True)
    assert record["verification"]["worst_sqnr_db"] > 20


@pytest.mark.parametrize("name", ["if", "loop", "function", "fused"])
def test_control_flow_functions_and_fused_operators_build(room: Room, name: str) -> None:
    proto, _ = ODD[name]
    odd_data(room, name)
    record = room.passes(proto(), command="compile", output=room.output.with_name("m.engine"))
    assert record["audit"]["mismatches"] == []


@pytest.mark.parametrize(("name", "node"), [("strings", "such as text")])
def test_what_tensorrt_lacks_is_refused_before_the_data_is_read(room: Room, name: str, node: str) -> None:
    proto, _ = ODD[name]
    onnx.save(proto(), room.model)
    odd_data(room, name)
    room.refused(6, node, "--target onnxruntime", command="compile", output=room.output.with_name("m.engine"))


def test_what_came_in_qoperator_format_is_kept_for_onnx_runtime(room: Room) -> None:
    np.savez(room.data, x=np.random.default_rng(2).standard_normal((6, 32)).astype(np.float32))
    record = room.passes(operators(), "--target", "onnxruntime")
    assert [one["rule"] for one in record["plan"] if one["op"] == "QLinearMatMul"] == ["quantized-already"]


def test_bf16_is_verified_although_no_cpu_has_its_kernels(room: Room) -> None:
    record = room.passes(layers(), "--precision", "bf16")
    assert 30 < record["verification"]["worst_sqnr_db"] < 80
